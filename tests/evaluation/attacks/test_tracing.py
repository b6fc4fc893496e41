"""Who was counted: found where numbers give it away, and never where they cannot."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from collafuse.core.mechanism import Budget
from collafuse.core.moments import moments_of, noised, statistics_of
from collafuse.core.statistics import Statement, Statistics
from collafuse.data.imageset import ImageSet
from collafuse.evaluation.attacks.statistics import apart, counted, of_label, rows_of
from collafuse.evaluation.attacks.tracing import BY_DIFFERENCE, BY_LIKELIHOOD, BY_MEAN, Traced, coefficients, trace
from collafuse.nodes.summary import blocks
from tests.evaluation.attacks.worlds import blobs

NAMES = ("a", "b")
EXACT = Statement((1, 8, 8), 64)


def private(epsilon: float, coefficients: int = 16) -> Statement:
    return Statement((1, 8, 8), coefficients, Budget(epsilon, 1e-5), clip=0.9)


def statistics(images: ImageSet, about: Statement, seed: int = 0, share: float = 1.0) -> Statistics:
    """What a site sends of images, with so much of the noise that it owes."""
    own = moments_of(blocks(images, rows_of(images, NAMES)), about, 2)
    noise = np.random.default_rng(seed)
    if about.budget is not None:
        own = noised(own, about, lambda shape: share * noise.standard_normal(shape))
    return statistics_of(own, about, NAMES, simulated=True)


def attacked(images: ImageSet, held_out: ImageSet, *files: Statistics, seed: int = 0) -> dict[str, Traced]:
    site = counted("north", images, held_out, files)
    others, known = (site.held_out.take(np.flatnonzero(np.arange(len(held_out)) // 2 % 2 == i)) for i in (0, 1))
    found = trace(site, others, {name: of_label(known, name) for name in NAMES}, apart(site), seed)
    return {one.attack: one for one in found}


def test_fifty_images_of_a_label_are_given_away_by_their_exact_covariance():
    images, held_out = blobs(100), blobs(80, seed=9)
    found = attacked(images, held_out, statistics(images, EXACT))
    one = found[BY_LIKELIHOOD].membership
    assert found[BY_LIKELIHOOD].alarm and one.auc > 0.99 and one.true_positives > 0.9
    assert (one.members, one.others, found[BY_LIKELIHOOD].known) == (100, 40, 40)
    assert found[BY_LIKELIHOOD].allowed is None and BY_DIFFERENCE not in found


def test_few_images_are_traced_by_their_exact_mean_alone():
    """Of images of pure noise, in which a mean of 50 tells as much as 64 numbers can."""
    rng = np.random.default_rng(0)

    def noise(count: int) -> ImageSet:
        pixels = rng.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)
        digests = rng.integers(0, 256, (count, 32), dtype=np.uint8)
        return replace(blobs(count), pixels=pixels, digests=digests)

    images, held_out = noise(100), noise(800)
    one = attacked(images, held_out, statistics(images, EXACT))[BY_MEAN]
    # Whitened, the mean of n of d numbers tells by a shift of sqrt(d / n) deviations, less what the kind's own errs.
    assert one.alarm and one.membership.auc == pytest.approx(
        NormalDist().cdf((64 / 50 / 1.25) ** 0.5 / 2**0.5), abs=0.06
    )


@pytest.mark.parametrize("about", [EXACT, Statement((1, 8, 8), 6), private(8.0)])
def test_images_that_were_not_counted_are_never_told_from_others(about):
    deviates = []
    for seed in range(15):
        file = statistics(blobs(200, seed=1000 + seed), about, seed)
        found = attacked(blobs(200, seed=2000 + seed), blobs(160, seed=3000 + seed), file)
        for attack in (BY_LIKELIHOOD, BY_MEAN):
            assert not found[attack].membership.alarm
            deviates.append((found[attack].membership.auc - 0.5) / found[attack].membership.error)
    assert abs(np.mean(deviates)) < 4 * 2**0.5 / len(deviates) ** 0.5 and np.std(deviates) < 1.4


def test_a_small_budget_hides_who_was_counted_from_everybody():
    for seed in range(15):
        images = blobs(200, seed=seed)
        found = attacked(images, blobs(160, seed=500 + seed), statistics(images, private(1.0), seed), seed=seed)
        assert len(found) == 3 and not any(one.alarm or one.membership.alarm for one in found.values())


def test_who_knows_all_other_images_finds_what_the_noise_leaves_and_no_more_than_the_budget_allows():
    """A candidate and the average image lie d deviations of the noise apart, so the likelihood ratio's AUC is about
    Phi(d / sqrt(2)); a candidate that was not counted is asked about with another image left over."""
    found, expected, about = [], [], private(20.0)
    for seed in range(5):
        images = blobs(400, seed=seed)
        one = attacked(images, blobs(300, seed=700 + seed), statistics(images, about, seed), seed=seed)[BY_DIFFERENCE]
        assert one.membership.alarm and not one.alarm and one.membership.auc < one.allowed
        found.append(one.membership.auc)
        s = about.budget.noise_multiplier * 2**0.5 * 1.25
        for name in NAMES:
            u = coefficients(of_label(images, name), about) / (0.9 * 8)
            vectors = np.concatenate([0.5**0.5 * u, np.einsum("ni,nj->nij", u, u).reshape(len(u), -1)], axis=1) / s
            lengths = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
            expected += [NormalDist().cdf(d / 2**0.5) for d in lengths]
    assert np.mean(found) == pytest.approx(np.mean(expected), abs=0.05)


def test_more_than_the_budget_allows_is_found_where_a_site_saved_its_noise():
    images = blobs(400)
    found = attacked(images, blobs(300, seed=9), statistics(images, private(2.0), share=0.02))
    assert found[BY_DIFFERENCE].broken and found[BY_DIFFERENCE].alarm
    honest = attacked(images, blobs(300, seed=9), statistics(images, private(2.0)))
    assert not honest[BY_DIFFERENCE].broken


def test_images_in_either_of_two_files_are_found():
    images, held_out = blobs(200), blobs(80, seed=9)
    files = [statistics(images.take(rows), EXACT) for rows in (np.arange(100), np.arange(100, 200))]
    found = attacked(images, held_out, *files)
    assert found[BY_LIKELIHOOD].membership.auc > 0.95 and found[BY_LIKELIHOOD].membership.members == 200


def test_patients_that_were_held_out_whole_are_counted_as_patients():
    images, held_out = blobs(200), blobs(160, seed=9)
    file = statistics(blobs(200, seed=5), EXACT)
    alone = attacked(images, held_out, file)[BY_LIKELIHOOD].membership
    # A patient's images are alike: here, as bright.
    patients = [
        replace(
            part,
            groups=np.array([f"{side} {rank // 20}" for rank in part.x0().mean(axis=(1, 2, 3)).argsort().argsort()]),
        )
        for part, side in ((images, "trained on"), (held_out, "held out"))
    ]
    grouped = attacked(*patients, file)[BY_LIKELIHOOD].membership
    assert grouped.auc == alone.auc and grouped.error > 1.5 * alone.error


def test_labels_of_which_too_little_is_known_are_not_asked_about():
    images = blobs(100)
    assert attacked(images, blobs(36, seed=9), statistics(images, EXACT)) == {}
