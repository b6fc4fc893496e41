"""collafuse.core.conditioning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collafuse.core import conditioning
from collafuse.core.conditioning import ConditionSpace, TextSpace
from collafuse.core.errors import MismatchError, UsageError

NAMES = ("cat", "dog", "emu")
THREE = ConditionSpace(NAMES)


def test_labels_become_conditions_with_the_flag_down():
    conditions = THREE.conditions(1, np.array([[1, 0, 1]], dtype=np.uint8))
    assert conditions.tolist() == [[1, 0, 1, 0]]
    assert conditions.dtype == np.float32


def test_no_label_is_not_the_same_as_none_of_the_attributes():
    none_of_them = THREE.conditions(2, np.zeros((2, 3), dtype=np.uint8))
    no_label = THREE.conditions(2, None)
    assert none_of_them.tolist() == [[0, 0, 0, 0]] * 2
    assert no_label.tolist() == [[0, 0, 0, 1]] * 2


def test_a_model_without_labels_has_the_flag_alone():
    assert ConditionSpace().conditions(2, None).tolist() == [[1], [1]]


def test_labels_where_none_is_known_say_nothing_of_an_image():
    """Or an unlabelled set would be learned as "none of the labels" and asked for as "no condition"."""
    assert ConditionSpace().conditions(2, np.zeros((2, 0), dtype=np.uint8)).tolist() == [[1], [1]]
    only_text = ConditionSpace(text=TextSpace("t5-3-00", 3))
    assert only_text.conditions(1, np.zeros((1, 0), dtype=np.uint8)).tolist() == [[0, 0, 0, 1]]
    assert only_text.conditions(1, np.zeros((1, 0), dtype=np.uint8), TEXT[:1]).tolist() == [[1, -1, 1, 0]]


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_unconditional_sets_the_flag_and_leaves_its_argument(library):
    conditions = library(np.array([[1, 0, 0], [0, 1, 0]], dtype=np.float32))
    assert conditioning.unconditional(conditions).tolist() == [[0, 0, 1], [0, 0, 1]]
    assert conditions.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_labels_are_translated_by_name():
    labels = np.array([[1, 0, 1], [0, 1, 0]], dtype=np.uint8)
    translated = conditioning.translate_labels(labels, NAMES, ("dog", "yak", "emu", "cat"))
    assert translated.tolist() == [[0, 0, 1, 1], [1, 0, 0, 0]]


@given(st.permutations(range(6)), st.integers(0, 2**32 - 1))
def test_translation_there_and_back(order, seed):
    labels = np.random.default_rng(seed).integers(0, 2, size=(4, 6)).astype(np.uint8)
    names = [f"label {i}" for i in range(6)]
    shuffled = [names[i] for i in order]
    there = conditioning.translate_labels(labels, names, shuffled)
    assert (there == labels[:, order]).all()
    assert (conditioning.translate_labels(there, shuffled, names) == labels).all()


def test_a_name_that_no_image_carries_need_not_be_known():
    labels = np.array([[0, 1]], dtype=np.uint8)
    assert conditioning.translate_labels(labels, ("griffin", "dog"), NAMES).tolist() == [[0, 1, 0]]


def test_an_unknown_label_is_named_with_the_closest():
    with pytest.raises(MismatchError, match="label 'cats' is not known; known are cat, dog, emu. Did you mean 'cat'?"):
        conditioning.translate_labels(np.array([[1]], dtype=np.uint8), ("cats",), NAMES)


def test_an_unknown_label_where_there_are_none():
    with pytest.raises(MismatchError, match="label 'cat' is not known; known are none."):
        conditioning.indices_of(["cat"], ())


# --- guidance -----------------------------------------------------------------------------------------------


def model(x, sigma, conditions):
    """Answers 10 for "no label" and 1 for a label."""
    return x * 0 + 10.0 * conditions[:, -1:] + 1.0 * conditions[:, :1]


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize(("guidance", "expected"), [(0.0, 10.0), (1.0, 1.0), (2.0, -8.0), (0.5, 5.5)])
def test_guidance_goes_from_no_label_through_the_label(guidance, expected, library):
    conditions = library(np.array([[1.0, 0.0]], dtype=np.float32))
    x = library(np.zeros((1, 2), dtype=np.float32))
    assert conditioning.guided(model, conditions, guidance)(x, 1.0).tolist() == [[expected] * 2]


@pytest.mark.parametrize(("guidance", "evaluations"), [(1.0, 1), (1.5, 2)])
def test_plain_conditioning_is_half_the_work(guidance, evaluations):
    asked = []
    conditions = np.array([[1.0, 0.0]], dtype=np.float32)
    denoise = conditioning.guided(lambda *a: asked.append(a) or model(*a), conditions, guidance)
    denoise(np.zeros((1, 2), dtype=np.float32), 1.0)
    assert len(asked) == evaluations


# --- text ---------------------------------------------------------------------------------------------------

BOTH = ConditionSpace(("a", "b"), TextSpace("t5-3-00", 3))
LABELS = np.array([[1, 0], [0, 1]], dtype=np.uint8)
TEXT = np.array([[1, -1, 1], [0, 0, 0]], dtype=np.float16)


def test_text_stands_between_labels_and_flag():
    assert BOTH.width == 6
    assert BOTH.conditions(2, LABELS, TEXT).tolist() == [[1, 0, 1, -1, 1, 0], [0, 1, 0, 0, 0, 0]]
    assert BOTH.conditions(2, None, TEXT).tolist() == [[0, 0, 1, -1, 1, 0], [0, 0, 0, 0, 0, 0]]
    assert BOTH.conditions(2, LABELS).tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert BOTH.conditions(1, None).tolist() == [[0, 0, 0, 0, 0, 1]]


@pytest.mark.parametrize("as_array", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
def test_dropping_takes_all_or_labels_or_text(as_array):
    conditions = np.repeat(BOTH.conditions(1, LABELS[:1], TEXT[:1]), 4, axis=0)
    draw = np.array([0.05, 0.15, 0.25, 0.35])
    dropped = BOTH.with_parts_dropped(as_array(conditions), as_array(draw), 0.1).tolist()
    assert dropped == [[0, 0, 0, 0, 0, 1], [0, 0, 1, -1, 1, 0], [1, 0, 0, 0, 0, 0], [1, 0, 1, -1, 1, 0]]


@pytest.mark.parametrize("share", [0.25, 0.34, 0.5, 0.9])
def test_however_much_is_dropped_as_many_keep_labels_and_text_as_lose_one_of_them(share):
    conditions = np.repeat(BOTH.conditions(1, LABELS[:1], TEXT[:1]), 1000, axis=0)
    dropped = BOTH.with_parts_dropped(conditions, np.arange(1000) / 1000, share)
    labels, text = dropped[:, BOTH.label_columns].any(axis=1), dropped[:, BOTH.text_columns].any(axis=1)
    for one, other in ((True, True), (True, False), (False, True)):
        assert abs(int(((labels == one) & (text == other)).sum()) - 1000 * (1 - share) / 3) <= 1


def test_without_text_dropping_takes_all_or_nothing():
    conditions = np.repeat(THREE.conditions(1, np.array([[1, 0, 1]], dtype=np.uint8)), 3, axis=0)
    dropped = THREE.with_parts_dropped(conditions, np.array([0.05, 0.15, 0.25]), 0.1)
    assert dropped.tolist() == [[0, 0, 0, 1], [1, 0, 1, 0], [1, 0, 1, 0]]


@pytest.mark.parametrize(("count", "rows"), [(5, [0, 0, 0, 1, 1]), (2, [0, 1]), (3, [0, 0, 1])])
def test_texts_are_dealt_in_blocks(count, rows):
    assert conditioning.dealt_row(np.arange(count), count, 2).tolist() == rows
    assert [conditioning.dealt_row(i, count, 2) for i in range(count)] == rows


def test_more_texts_than_images_are_refused():
    with pytest.raises(UsageError, match="3 texts and 2 images"):
        conditioning.check_one_each(2, 3)


def test_columns_of_another_space_are_found_by_name():
    other = ConditionSpace(("b", "c"), BOTH.text)
    assert BOTH.columns_from(other) == [-1, 0, 2, 3, 4, -1]
    assert BOTH.columns_from(ConditionSpace(("b",))) == [-1, 0, -1, -1, -1, -1]
    with pytest.raises(MismatchError, match="text of the encoder t5-3-11, here it is t5-3-00"):
        BOTH.columns_from(ConditionSpace((), TextSpace("t5-3-11", 3)))
