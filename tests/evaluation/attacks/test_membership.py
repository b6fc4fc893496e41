"""Membership inference: a model that remembers gives its members away, one that does not know them does not."""

from __future__ import annotations

import numpy as np
import pytest

from collafuse.evaluation.attacks.membership import levels_between, scores, together, told_apart, told_apart_by_kind
from tests.evaluation.attacks.worlds import blobs
from tests.oracles import GaussianMixture

MEMBERS, OTHERS = blobs(150).x0(), blobs(120, seed=9).x0()


def _attack(denoise, seed=0):
    both = np.concatenate([MEMBERS, OTHERS])
    found = scores(denoise, both, np.zeros((270, 3), np.float32), levels_between(0.1, 2), np.random.default_rng(seed))
    return told_apart(found[:150], found[150:])


def test_a_model_that_remembers_its_images_is_found():
    remembers = GaussianMixture(MEMBERS.astype(float), np.full(150, 1 / 150), std=0.02)
    found = _attack(lambda x, sigma, conditions: remembers(x, sigma))
    assert found.alarm and found.auc > 0.95 and found.true_positives > 0.6


@pytest.mark.parametrize("seed", range(3))
def test_a_model_of_other_images_raises_no_alarm(seed):
    knows_others = GaussianMixture(blobs(200, seed=5).x0().astype(float), np.full(200, 1 / 200), std=0.1)
    assert not _attack(lambda x, sigma, conditions: knows_others(x, sigma), seed).alarm


def test_scores_that_say_nothing_raise_no_alarm():
    noise = np.random.default_rng(0).standard_normal(270)
    assert not told_apart(noise[:150], noise[150:]).alarm


def test_the_figures_are_those_of_the_definition():
    members, others = np.array([3.0, 2.0, 1.0]), np.array([2.0, 0.0])
    found = told_apart(members, others)
    assert found.auc == pytest.approx((1 + 0.5 + 0 + 3) / 6)
    assert found.true_positives == pytest.approx(1 / 3)  # above 2, since one accused of two is more than 1 %


@pytest.mark.parametrize("seed", range(3))
def test_sites_whose_images_differ_are_each_asked_apart(seed):
    """One site's errors are skewed, another's are not, and one holds out a smaller share: no model knows a member."""
    rng = np.random.default_rng(seed)
    skewed, even = (-rng.lognormal(-0.98, 1.4, 550), -rng.normal(1, 0.2, 1000))
    sites = [(skewed[:500], skewed[500:]), (even[:500], even[500:])]
    heap = told_apart(*(np.concatenate(scores) for scores in zip(*sites, strict=True)))
    assert heap.alarm  # it tells the sites apart
    found = together([told_apart(*site) for site in sites])
    assert not found.alarm and (found.members, found.others) == (1000, 550)


def test_what_one_of_two_sites_gives_away_is_found_among_both():
    rng = np.random.default_rng(0)
    honest, remembered = (rng.normal(size=(2, 200)) for _ in range(2))
    found = together([told_apart(*honest), told_apart(remembered[0] + 1, remembered[1])])
    assert found.alarm and found.auc == pytest.approx(0.63, abs=0.05)


def test_one_site_together_is_itself():
    noise = np.random.default_rng(0).standard_normal(270)
    one = told_apart(noise[:150], noise[150:])
    assert together([one]) == one


def test_without_groups_the_error_is_that_of_mann_and_whitney():
    scores = np.random.default_rng(0).standard_normal(90)
    assert told_apart(scores[:70], scores[70:]).error == pytest.approx(np.sqrt(91 / (12 * 70 * 20)))


def test_patients_whose_images_are_alike_are_as_many_draws_as_patients():
    """25 patients of 20 images each, 5 of them held out: what their images have in common is no memory of a model."""
    groups, deviates = np.repeat(np.arange(25), 20), []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        scores = np.repeat(rng.standard_normal(25), 20) + 0.7 * rng.standard_normal(500)
        found = told_apart(scores[:400], scores[400:], groups)
        deviates.append((found.auc - 0.5) / found.error)
        assert not found.alarm
    assert np.std(deviates) == pytest.approx(1, abs=0.25)
    # A model that remembers is still found, of as few as 40 patients.
    remembered = told_apart(scores[:400] + 8, scores[400:], np.arange(500) * 40 // 500)
    assert remembered.alarm and remembered.auc > 0.99


def test_images_are_compared_with_those_of_their_own_kind_alone():
    """One kind scores higher than the other, and is held out more rarely: in one heap that would look like memory."""
    rng = np.random.default_rng(0)
    members, others = (rng.normal(5, 1, 400), rng.normal(0, 1, 100)), (rng.normal(5, 1, 100), rng.normal(0, 1, 400))
    assert told_apart(np.concatenate(members), np.concatenate(others)).alarm
    found = told_apart_by_kind(members, others)
    assert not found.alarm and found == together([told_apart(*pair) for pair in zip(members, others, strict=True)])


def test_groups_with_images_of_several_kinds_are_counted_once():
    """20 patients with 10 images of each of two kinds, that all score alike: they are 20 draws, not 40."""
    rng = np.random.default_rng(0)
    patient = rng.standard_normal(20)
    scores_of = [np.repeat(patient, 10) + 0.1 * rng.standard_normal(200) for _ in range(2)]
    groups = np.repeat(np.arange(20), 10)
    members, others = ([one[part] for one in scores_of] for part in (slice(0, 100), slice(100, 200)))
    both = told_apart_by_kind(members, others, [groups, groups])
    one = told_apart(members[0], others[0], groups)
    assert both.error == pytest.approx(one.error, rel=0.05)  # the second kind says nothing new
    assert told_apart_by_kind(members[:1], others[:1], [groups]) == one
