"""collafuse.core.conditioning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from collafuse.core import conditioning
from collafuse.core.errors import MismatchError

NAMES = ("cat", "dog", "emu")


def test_labels_become_conditions_with_the_flag_down():
    conditions = conditioning.conditions_from_labels(np.array([[1, 0, 1]], dtype=np.uint8), 1, 3)
    assert conditions.tolist() == [[1, 0, 1, 0]]
    assert conditions.dtype == np.float32


def test_no_label_is_not_the_same_as_none_of_the_attributes():
    none_of_them = conditioning.conditions_from_labels(np.zeros((2, 3), dtype=np.uint8), 2, 3)
    no_label = conditioning.conditions_from_labels(None, 2, 3)
    assert none_of_them.tolist() == [[0, 0, 0, 0]] * 2
    assert no_label.tolist() == [[0, 0, 0, 1]] * 2


def test_a_model_without_labels_has_the_flag_alone():
    assert conditioning.conditions_from_labels(None, 2, 0).tolist() == [[1], [1]]


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
