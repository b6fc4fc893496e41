"""Statistics beside the images that they are of: promises that are kept raise no alarm, broken ones are found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from collafuse.core.mechanism import Budget
from collafuse.core.moments import Moments, moments_of, noised, statistics_of
from collafuse.core.statistics import Statement, Statistics
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.attacks.exposure import NOT_ASKED
from collafuse.evaluation.attacks.statistics import (
    ALL,
    Counted,
    apart,
    broken_promises,
    counted,
    noise_rows,
    received,
    rows_of,
    shared_noise,
)
from collafuse.nodes.summary import blocks
from tests.evaluation.attacks.worlds import blobs

EXACT = Statement((1, 8, 8), 16)
PRIVATE = Statement((1, 8, 8), 16, Budget(1.0, 1e-5), clip=0.9)
IMAGES = blobs(400)


def moments(images: ImageSet = IMAGES, about: Statement = PRIVATE, names: tuple[str, ...] = ("a", "b")) -> Moments:
    return moments_of(blocks(images, rows_of(images, names)), about, len(names))


OWN = moments()


def sent(of: Moments, about: Statement, names: tuple[str, ...] | None = ("a", "b")) -> Statistics:
    return statistics_of(of, about, names, simulated=True)


def private(seed: int, of: Moments = OWN, about: Statement = PRIVATE) -> Statistics:
    return sent(noised(of, about, np.random.default_rng(seed).standard_normal), about)


def site(*files: Statistics, images: ImageSet = IMAGES, name: str = "north") -> Counted:
    return counted(name, images, blobs(100, seed=9), files)


def alarms(*files: Statistics, images: ImageSet = IMAGES) -> list[str]:
    one = site(*files, images=images)
    return [found.says for found in broken_promises(one, apart(one)) if found.alarm]


def test_exact_numbers_of_these_images_are_no_alarm_in_one_file_or_in_two():
    assert alarms(sent(moments(about=EXACT), EXACT)) == []
    parts = [IMAGES.take(np.arange(*span)) for span in ((0, 150), (150, 400))]
    assert alarms(*(sent(moments(part, EXACT), EXACT) for part in parts)) == []


def test_exact_numbers_of_other_images_or_counted_twice_are_found():
    file = sent(moments(about=EXACT), EXACT)
    assert "not those of its images" in alarms(file, images=blobs(400, seed=3))[0]
    pixels = IMAGES.pixels.copy()
    pixels[7] = 255 - pixels[7]  # a single image exchanged
    assert "not those of its images" in alarms(file, images=replace(IMAGES, pixels=pixels))[0]
    assert "counted more than once" in alarms(file, file)[0]


def test_honest_noise_is_never_called_too_little_or_too_much():
    assert [found for seed in range(200) for found in alarms(private(seed))] == []
    two = [moments(IMAGES.take(np.arange(*span))) for span in ((0, 150), (150, 400))]
    assert [found for seed in range(20) for found in alarms(*(private(seed + i, of) for i, of in enumerate(two)))] == []


def test_labels_that_stand_in_a_file_by_the_luck_of_their_noise_are_no_alarm():
    """Of 60 and of 2 images: where noise takes the count below 50 the row is left out, as a site does."""
    few = IMAGES.take(np.r_[0:120:2, 1:5:2])
    own, asked = moments(few), 0
    for seed in range(300):
        made = noised(own, PRIVATE, np.random.default_rng(seed).standard_normal)
        kept = np.flatnonzero(made.counts >= 50)
        if len(kept):
            file = sent(
                Moments(made.counts[kept], made.sums[kept], made.products[kept]), PRIVATE, tuple("ab"[i] for i in kept)
            )
            assert alarms(file, images=few) == []
            asked += len(kept)
    assert asked > 150


@pytest.mark.parametrize("kind", ["counts", "sums", "products"])
@pytest.mark.parametrize("label", [None, 1])
def test_noise_that_is_left_out_of_one_kind_of_numbers_is_found_of_one_label_too(kind, label):
    made = noised(OWN, PRIVATE, np.random.default_rng(0).standard_normal)
    part = getattr(made, kind).copy()
    rows = slice(None) if label is None else label
    part[rows] = getattr(OWN, kind)[rows]
    said = alarms(sent(replace(made, **{kind: part}), PRIVATE))
    shown = {"counts": "counts", "sums": "means", "products": "covariances"}[kind]
    assert len(said) == 1 and f"too little noise on the {shown} of {'b' if label else ''}" in said[0]


def test_half_of_the_noise_and_a_budget_smaller_than_the_noise_are_found():
    half = np.random.default_rng(0)
    made = noised(OWN, PRIVATE, lambda shape: 0.5 * half.standard_normal(shape))
    assert "0.51 times what the stated budget demands" in alarms(sent(made, PRIVATE))[0]
    loose = replace(PRIVATE, budget=Budget(2.0, 1e-5))
    lied = replace(private(0, about=loose), about=PRIVATE)
    assert "too little noise" in alarms(lied)[0]


def test_noised_numbers_of_other_images_or_counted_twice_are_found_where_the_noise_allows():
    loose = replace(PRIVATE, budget=Budget(100.0, 1e-5))
    file = private(0, about=loose)
    assert alarms(file) == []
    assert "as far from those of its images" in alarms(file, images=blobs(400, seed=3))[0]
    assert "as far from those of its images" in alarms(file, private(1, about=loose))[0]


def test_noise_used_twice_is_found_between_labels_and_between_sites_and_own_noise_is_not():
    def shared(files):
        return shared_noise([row for name, file in files.items() for row in noise_rows(name, apart(site(file)))])

    assert [found for seed in range(0, 100, 2) for found in shared({"a": private(seed), "b": private(seed + 1)})] == []
    again = shared({"a": private(0), "b": private(0)})
    assert [found.subject for found in again] == ["a", "b"]
    assert again[1].says.startswith("its a and a of a and 1 more pairs share their noise")
    made = noised(OWN, PRIVATE, np.random.default_rng(0).standard_normal)
    off = Moments(*(getattr(made, k) - getattr(OWN, k) for k in ("counts", "sums", "products")))
    same = Moments(*(getattr(OWN, k) + getattr(off, k)[:1] for k in ("counts", "sums", "products")))
    assert "its a and b share their noise" in shared({"a": sent(same, PRIVATE)})[0].says


def test_files_of_different_clips_are_not_asked_and_say_so():
    one = site(private(0), private(1, about=replace(PRIVATE, clip=0.5)))
    (found,) = broken_promises(one, apart(one))
    assert found.attack == NOT_ASKED and not found.alarm


def test_what_travelled_is_turned_back_into_sums():
    file = private(3)
    made = noised(OWN, PRIVATE, np.random.default_rng(3).standard_normal)
    back = received(file, [1])
    np.testing.assert_allclose(back.counts, made.counts[1:])
    np.testing.assert_allclose(back.sums[0], made.sums[1], rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(back.products[0], made.products[1], rtol=1e-5, atol=0.05)


def test_a_site_that_keeps_its_labels_counts_every_image_in_one_row():
    file = sent(moments(about=EXACT, names=(ALL,)), EXACT, None)
    assert site(file).labels == (ALL,) and alarms(file) == []


def test_images_count_once_and_what_was_counted_is_not_held_out():
    twice = IMAGES.take(np.r_[0:400, 5, 7])
    one = counted("north", twice, IMAGES.take(np.arange(3)), [private(0)])
    assert len(one.images) == 400 and len(one.held_out) == 0
    assert one.mu == pytest.approx(0.2681, abs=1e-4) and not one.exact
