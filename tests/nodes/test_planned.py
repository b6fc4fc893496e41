"""What the images of a comparison are asked to show."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from collafuse.core.conditioning import TextSpace
from collafuse.core.texts import EncodedText
from collafuse.nodes.planned import planned_like
from tests.tiny import image_set

NAMES = ("a", "b", "c")
SPACE = TextSpace("t5-4-00", 4)


def showing(*rows: tuple[int, int, int]):
    """Images with these labels, and a text of their own each."""
    images = image_set(len(rows), NAMES)
    text = EncodedText(SPACE, np.arange(4 * len(rows), dtype=np.float16).reshape(len(rows), 4))
    return replace(images, labels=np.array(rows, dtype=np.uint8), text=text)


ATTRIBUTES = showing((1, 1, 0), (0, 0, 0), (0, 1, 0))
CLASSES = showing((1, 0, 0), (1, 0, 0), (1, 0, 0), (0, 1, 0))


def test_of_images_with_several_attributes_each_is_asked_for_whole():
    """A face is asked for with all that a face has, not with one attribute and nothing else."""
    found = planned_like(4, NAMES, NAMES, ATTRIBUTES, text=True)
    assert np.array_equal(found.labels, ATTRIBUTES.labels[[0, 1, 2, 0]])
    assert np.array_equal(found.text.rows, ATTRIBUTES.text.rows[[0, 1, 2, 0]])


def test_what_may_not_be_asked_for_is_left_out_with_its_image():
    assert planned_like(3, ("b",), NAMES, ATTRIBUTES).labels.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    every = showing((1, 1, 0), (1, 1, 0))
    assert planned_like(2, ("b",), NAMES, every).labels.tolist() == [[0, 1, 0], [0, 1, 0]]


def test_single_labels_are_dealt_out_evenly_or_in_their_mix():
    evenly, mixed = (planned_like(4, ("a", "b"), NAMES, CLASSES, in_turn=turn).labels for turn in (False, True))
    assert evenly.sum(axis=0).tolist() == [2, 2, 0] and mixed.sum(axis=0).tolist() == [3, 1, 0]


def test_a_model_that_takes_one_label_is_asked_for_one():
    for in_turn in (False, True):
        found = planned_like(3, NAMES, NAMES, ATTRIBUTES, several=False, in_turn=in_turn)
        assert found.labels.tolist() == np.eye(3, dtype=int).tolist()


def test_what_is_kept_is_not_asked_for():
    assert not planned_like(3, None, NAMES, ATTRIBUTES).conditioned
    text_alone = planned_like(4, None, NAMES, ATTRIBUTES, text=True, in_turn=True)
    assert text_alone.labels is None and np.array_equal(text_alone.text.rows, ATTRIBUTES.text.rows[[0, 1, 2, 0]])


@pytest.mark.parametrize("in_turn", [False, True])
def test_of_a_site_whose_images_show_no_label_just_that_is_asked_for(in_turn):
    found = planned_like(2, (), NAMES, showing((0, 0, 0), (0, 0, 0)), in_turn=in_turn)
    assert found.conditioned and found.labels.tolist() == [[0, 0, 0]] * 2
    assert not planned_like(2, (), (), None, in_turn=in_turn).conditioned  # where no label is known it says nothing


def test_no_images_are_no_obstacle():
    for none in (None, CLASSES.take(np.arange(0))):
        found = planned_like(3, NAMES, NAMES, none, text=True, in_turn=True)
        assert found.labels.sum(axis=0).tolist() == [1, 1, 1] and found.text is None
