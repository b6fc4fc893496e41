"""collafuse.core.pairing: an intermediate that a bundle cannot finish is refused with both values."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from collafuse.core.errors import MismatchError
from collafuse.core.intermediate import Intermediate
from collafuse.core.pairing import check_pair, conditions_for
from tests.bundles import halving_info

INFO = halving_info()  # images [1, 2, 2], labels cat and dog, trained for sigma in (0.002, 0.5]


def batch(**changes) -> Intermediate:
    one = Intermediate(
        x=np.zeros((3, 1, 2, 2), dtype=np.float32),
        sigma=0.5,
        labels=np.array([[1, 0], [0, 1], [0, 0]], dtype=np.uint8),
        label_names=("dog", "cat"),
        server_model="m",
        sampler="euler",
        nfe=1,
        guidance=1.0,
    )
    return dataclasses.replace(one, **changes)


@pytest.mark.parametrize("sigma", [0.5, 0.3, 0.0021, 0.5 * (1 + 1e-7)])
def test_a_level_in_the_trained_range_fits(sigma):
    check_pair(batch(sigma=sigma), INFO)


@pytest.mark.parametrize("sigma", [0.501, 0.50001, 80.0])
def test_a_level_above_the_bundle_is_refused_with_both(sigma):
    with pytest.raises(
        MismatchError, match=rf"stands at sigma {sigma:g}, the bundle was trained for \(0.002, 0.5\]"
    ) as e:
        check_pair(batch(sigma=sigma), INFO)
    assert e.value.exit_code == 6


def test_a_level_below_the_bundle_is_refused_with_both():
    with pytest.raises(MismatchError, match=r"stands at sigma 0.05, the bundle was trained for \(0.1, 0.5\]"):
        check_pair(batch(sigma=0.05), dataclasses.replace(INFO, sigma_min=0.1))


@pytest.mark.parametrize("shape", [(3, 2, 2), (1, 4, 2), (1, 2, 4)])
def test_other_images_are_refused_with_both_shapes(shape):
    with pytest.raises(MismatchError, match=r"of shape \[\d, \d, \d\], the bundle finishes \[1, 2, 2\]") as caught:
        check_pair(batch(x=np.zeros((3, *shape), dtype=np.float32)), INFO)
    assert str(list(shape)) in str(caught.value)


def test_a_label_that_the_bundle_lacks_is_refused_with_those_it_knows():
    with pytest.raises(MismatchError, match="label 'dig' is not known; known are cat, dog. Did you mean 'dog'?"):
        check_pair(batch(label_names=("dig", "cat")), INFO)


def test_a_name_that_no_image_carries_does_no_harm():
    unused = batch(labels=np.array([[1, 0]] * 3, dtype=np.uint8), label_names=("cat", "griffin"))
    check_pair(unused, INFO)
    assert conditions_for(unused, INFO.space).tolist() == [[1, 0, 0]] * 3


def test_labels_are_matched_by_name_not_by_place():
    assert conditions_for(batch(), INFO.space).tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_images_without_labels_are_finished_without():
    unlabelled = batch(labels=None, label_names=())
    check_pair(unlabelled, INFO)
    assert conditions_for(unlabelled, INFO.space).tolist() == [[0, 0, 1]] * 3
