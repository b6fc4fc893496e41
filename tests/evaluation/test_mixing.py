"""collafuse.evaluation.mixing: both sides of a comparison get one mix of labels."""

from __future__ import annotations

import numpy as np
import pytest

from collafuse.evaluation.generated import Generated
from collafuse.evaluation.mixing import Mix, by_turns, mix_of, strata_of
from tests.tiny import image_set


def labelled(counts: tuple[int, ...]):
    """Images with so many of each label a, b, ... in that order."""
    images = image_set(sum(counts), ("a", "b", "c")[: len(counts)])
    images.labels[:] = np.eye(len(counts), dtype=np.uint8)[np.repeat(np.arange(len(counts)), counts)]
    return images


def made(counts: tuple[int, ...]) -> Generated:
    images = labelled(counts)
    return Generated(images.pixels.transpose(0, 2, 3, 1), images.labels, images.label_names)


def test_the_mix_is_the_references_and_the_floor_has_enough_of_each():
    mix = mix_of(labelled((30, 10)), labelled((60, 60)), most=1000)
    assert (mix.by_label, mix.count) == ({"a": 60, "b": 20}, 80)
    assert mix_of(labelled((30, 10)), labelled((60, 10)), most=1000).by_label == {"a": 30, "b": 10}
    assert mix_of(labelled((30, 10)), labelled((60, 60)), most=40).by_label == {"a": 30, "b": 10}


@pytest.mark.parametrize("reference", [(30, 10), (1, 1), (3, 4, 90)])
def test_labels_dealt_out_evenly_hold_enough_of_each(reference):
    mix = mix_of(labelled(reference), labelled((50,) * len(reference)), most=1000)
    evenly = mix.to_generate // len(reference)
    taken = mix.take(made((evenly,) * len(reference)))
    assert taken.labels.sum(axis=0).tolist() == list(mix.by_label.values())


@pytest.mark.parametrize("floor", [(500, 500, 500), (20, 30, 9), (25, 25, 24)])
@pytest.mark.parametrize("held_out", [(200, 210, 190), (300, 9, 40), (20, 30, 25), (60, 0, 60)])
def test_the_first_of_labels_that_take_turns_hold_enough_of_each(held_out, floor):
    """A generator that starts from held-out images takes the first of them, and begins anew."""
    images = by_turns(labelled(held_out))
    assert len(np.unique(images.digests, axis=0)) == sum(held_out)
    mix = mix_of(images, labelled(floor), most=150)
    started = images.take(np.arange(mix.to_generate) % len(images))
    taken = mix.take(Generated(started.pixels.transpose(0, 2, 3, 1), started.labels, started.label_names))
    assert mix.by_label and taken.labels.sum(axis=0).tolist() == [mix.by_label.get(name, 0) for name in "abc"]


def test_a_generator_that_does_not_know_a_label_has_no_mix():
    mix = mix_of(labelled((30, 10)), labelled((60, 60)), most=1000)
    assert mix.is_in(mix.take(made((80, 80)))) and mix.is_in(Generated(made((40, 0)).pixels))
    for lacking in (made((160, 0)), made((160,))):  # it never shows b, or was never told of it
        assert not mix.is_in(mix.take(lacking))
    assert Mix(5, {}).is_in(made((5, 0)))


def test_images_of_several_labels_take_no_turns():
    images = image_set(6)
    images.labels[:] = 1
    assert by_turns(images) is images


def test_images_without_labels_are_taken_as_they_come():
    mix = Mix(5, {"a": 3, "b": 2}, 2)
    unlabelled = Generated(made((4, 4)).pixels)
    assert (mix.take(unlabelled).pixels == unlabelled.pixels[:5]).all()
    assert len(mix.take(made((1, 9)))) == 5


def test_a_floor_that_lacks_a_label_leaves_the_mix_as_it_comes():
    mix = mix_of(labelled((5, 5)), labelled((20, 0)), most=1000)
    assert (mix.by_label, mix.count, mix.to_generate) == ({}, 20, 20)


def test_a_floor_that_nearly_lacks_a_label_does_not_leave_a_handful_of_images():
    mix = mix_of(labelled((20, 20)), labelled((60, 2)), most=1000)
    assert (mix.by_label, mix.count) == ({}, 62)


def test_several_labels_of_one_image_are_no_stratum():
    assert strata_of(np.array([[1, 1], [0, 1]], dtype=np.uint8), 2).tolist() == [0, 0]
    assert strata_of(np.array([[1, 0], [0, 1]], dtype=np.uint8), 2).tolist() == [0, 1]
    assert strata_of(None, 2).tolist() == [0, 0]
