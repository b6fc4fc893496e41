"""The batch size that is fastest: found by trying, whatever stands in the way of the largest."""

from __future__ import annotations

import pytest
import torch

from collafuse.core.errors import CollaFuseError
from collafuse.learning.batchsize import evaluation_seconds, fastest_batch
from tests.tiny import CPU, denoiser


def test_a_device_that_is_full_at_32_images_gets_no_more():
    assert fastest_batch(lambda size: max(32, size) / 1000) == 32


def test_a_few_per_cent_are_not_worth_twice_the_batch():
    assert fastest_batch(lambda size: size / (100 if size < 8 else 1000 if size < 64 else 1030)) == 8


def test_it_stops_where_larger_batches_are_slower():
    tried = []

    def seconds(size):
        tried.append(size)
        return size / {1: 100, 2: 150, 4: 200, 8: 190}.get(size, 120)

    assert fastest_batch(seconds) == 4 and tried == [1, 2, 4, 8, 16]


def test_it_stays_below_what_the_memory_holds():
    def seconds(size):
        if size > 16:
            raise torch.OutOfMemoryError("no room")
        return 1.0

    assert fastest_batch(seconds) == 16


def test_no_memory_for_one_image_is_said():
    def seconds(size):
        raise torch.OutOfMemoryError("no room at all")

    with pytest.raises(CollaFuseError, match="no memory for one image.*no room at all"):
        fastest_batch(seconds)


@pytest.mark.parametrize(("guidance", "evaluated"), [(1.0, 4), (2.0, 8)])
def test_what_is_timed_is_the_evaluation_that_a_delivery_makes(guidance, evaluated):
    plain, seen = denoiser(), set()
    plain.network.register_forward_pre_hook(lambda _, given: seen.add(len(given[0])))
    assert evaluation_seconds(plain, guidance, CPU)(4) > 0
    assert seen == {evaluated}
