"""collafuse.evaluation.tables: what is written is what is read, and nothing else is read."""

from __future__ import annotations

import json
import math

import pytest

from collafuse.core.errors import FileFormatError
from collafuse.evaluation.tables import Table, read_results, shown, write_results

TABLE = Table("Quality", ("arm", "distance", "images"), (("server | client", 1.23456, 10), ("alone", None, 2)), ("n.",))


def test_markdown_has_a_line_per_row_and_keeps_bars_inside_their_cell():
    lines = TABLE.to_markdown().splitlines()
    assert lines[2:6] == [
        "| arm | distance | images |",
        "|---|---|---|",
        "| server \\| client | 1.235 | 10 |",
        "| alone | - | 2 |",
    ]
    assert (lines[0], lines[-1]) == ("**Quality**", "n.")


def test_a_table_survives_its_file(tmp_path):
    write_results(tmp_path / "a.json", [TABLE], seed=3)
    tables, values = read_results(tmp_path / "a.json")
    assert tables == [TABLE]
    assert values["seed"] == 3


def test_what_is_not_finite_is_written_as_nothing():
    assert Table("t", ("a",), ((math.nan,), (math.inf,))).to_json()["rows"] == [[None], [None]]


def test_long_counts_are_grouped_and_figures_rounded():
    assert [shown(cell) for cell in (1234567, 9999, 0.000123456, -3.5, None, "x")] == [
        "1,234,567", "9999", "0.0001235", "-3.5", "-", "x",
    ]  # fmt: skip


def test_a_row_of_another_length_is_refused():
    with pytest.raises(FileFormatError, match="2 cells for 1 columns"):
        Table("t", ("a",), (("1", "2"),))


@pytest.mark.parametrize(
    "damaged",
    ["", "[]", "{}", '{"tables": {}}', '{"tables": [3]}', '{"tables": [{"title": "t"}]}', "\xff"],
)
def test_a_file_that_holds_no_tables_is_named(damaged, tmp_path):
    (tmp_path / "a.json").write_text(damaged, encoding="latin-1")
    with pytest.raises(FileFormatError, match=r"a\.json is no file of results"):
        read_results(tmp_path / "a.json")


@pytest.mark.parametrize(
    "change", [{"title": 3}, {"columns": "ab"}, {"rows": [[{}]]}, {"rows": [[True]]}, {"notes": [1]}]
)
def test_a_table_of_other_values_is_refused(change):
    with pytest.raises(FileFormatError, match="write the results again"):
        Table.from_json(json.loads(json.dumps(TABLE.to_json() | change)))
