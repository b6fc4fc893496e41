"""Attribute inference: near the clean attack without noise, chance on pure noise."""

from __future__ import annotations

import numpy as np
import pytest

from collafuse.data.imageset import ImageSet
from collafuse.evaluation.attacks.attributes import balanced_accuracy, infer, questions
from tests.evaluation.attacks.worlds import blobs, exposure


def _infer(z, sigma, seed=0):
    site = exposure()
    what, answers = next(iter(questions(site.images)))
    return infer(site.images.x0(), z, answers, sigma, what, np.random.default_rng(seed))


def test_a_quiet_release_tells_the_label_as_a_clean_image_does():
    found = _infer(exposure(0.1).z, 0.1)
    assert found.what == "label" and found.alarm
    assert found.clean > 0.95 and found.accuracy == pytest.approx(found.clean, abs=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_pure_noise_tells_nothing(seed):
    z = 3.0 * np.random.default_rng(seed + 10).standard_normal((300, 1, 8, 8))
    assert not _infer(z, 3.0, seed).alarm


def test_more_noise_tells_less():
    accuracies = [_infer(exposure(sigma).z, sigma).accuracy for sigma in (0.3, 3.0, 30.0)]
    assert accuracies[0] > accuracies[1] > accuracies[2]


def test_attributes_are_asked_one_by_one():
    images = blobs(40)
    several = ImageSet(images.pixels, np.ones_like(images.labels), images.label_names, images.digests)
    assert [what for what, _ in questions(images)] == ["label"]
    assert [what for what, _ in questions(several)] == ["a", "b"]


def test_what_too_few_images_show_is_not_asked():
    x0 = blobs(40).x0()
    assert infer(x0, x0, np.zeros(40, int), 1.0, "a", np.random.default_rng(0)) is None


def test_balanced_accuracy_counts_classes_alike():
    assert balanced_accuracy(np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])) == 0.5
