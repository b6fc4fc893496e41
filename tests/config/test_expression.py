"""Expressions over labels: the same as Python's own operators, and nothing that could be run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from collafuse.config.expression import Expression, parse
from collafuse.core.errors import ConfigError

NAMES = ("a", "b", "c")
ROWS = np.array([[bool(i & 1), bool(i & 2), bool(i & 4)] for i in range(8)])


def rows(expression: Expression) -> list[bool]:
    return expression.rows(lambda name: ROWS[:, NAMES.index(name)]).tolist()


EXPRESSIONS = st.recursive(
    st.sampled_from(NAMES),
    lambda inner: st.one_of(
        inner.map("not {}".format),
        inner.map("({})".format),
        st.tuples(inner, st.sampled_from(("and", "or")), inner).map(" ".join),
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(EXPRESSIONS)
def test_an_expression_means_what_it_means_in_python(text):
    # Python refuses "not" before nothing else than we do, so the texts that this makes are valid in both.
    expected = [bool(eval(text, {"__builtins__": {}}, dict(zip(NAMES, row, strict=True)))) for row in ROWS]  # noqa: S307
    assert rows(parse(text)) == expected


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Eyeglasses", ("Eyeglasses",)),
        ("5_o_Clock_Shadow and not Smiling", ("5_o_Clock_Shadow", "Smiling")),
        ('"Wavy Hair" or \'it is "so"\'', ("Wavy Hair", 'it is "so"')),
        ("has_bill_shape::cone and(b)or b", ("has_bill_shape::cone", "b")),
        ('"and" or "("', ("and", "(")),
        ("  a\n", ("a",)),
    ],
)
def test_names_are_taken_as_they_stand_or_in_quotes(text, names):
    assert parse(text).names == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends where a name is expected"),
        ("   ", "ends where a name is expected"),
        ("a b", "has 'b' where 'and', 'or' or the end is expected"),
        ("a and", "ends where a name"),
        ("and a", "has 'and' where a name"),
        ("not", "ends where a name"),
        ("(a", r"ends where '\)' is expected"),
        ("a)", r"has '\)' where 'and'"),
        ("()", r"has '\)' where a name"),
        ("'a", "quote that does not end"),
        ('a and "', "quote that does not end"),
        ("(" * 5000, "5000 characters; at most 4000"),
        ("(" * 3000, "nested more than 50 deep"),
    ],
)
def test_what_is_no_expression_is_refused_with_the_place(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(text)


def test_a_call_is_only_names_that_no_data_has():
    assert parse("__import__").names == ("__import__",)
    with pytest.raises(ConfigError, match=r"has '\('"):
        parse("__import__('os')")


def test_many_negations_are_no_deep_nesting():
    assert rows(parse("not " * 999 + "a")) == (~ROWS[:, 0]).tolist()
