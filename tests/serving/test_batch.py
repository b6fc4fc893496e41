"""Rows of one batch: what a row becomes does not depend on what shares the batch with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from collafuse.core.conditioning import ConditionSpace
from collafuse.core.samplers import SERVER_SAMPLERS, Counted, evaluations
from collafuse.nodes.streams import draw, streams
from collafuse.serving.batch import Batch, Row
from tests.tiny import CPU, denoiser

LEVELS = [80.0, 20.0, 5.0, 1.0]
SPACE = ConditionSpace(("a", "b"))


def row(index=0, sigmas=LEVELS, sampler="dpmpp_2m", conditioned=True):
    return Row("owner", index, sigmas, sampler, conditioned, stream=None)


def join(batch, rows, seed=0, label=0):
    labels = np.eye(2, dtype=np.uint8)[[label] * len(rows)]
    conditions = [SPACE.conditions(1, labels[i : i + 1] if r.conditioned else None) for i, r in enumerate(rows)]
    for one in rows:
        (one.stream,) = streams(range(one.index, one.index + 1), seed)
    batch.join(rows, draw([one.stream for one in rows], (1, 4, 4)), np.concatenate(conditions))


def run(batch, wanted):
    """Step until a row has finished; its pixels."""
    with torch.inference_mode():
        while not wanted.finished:
            done = [slot for slot in batch.step() if batch.rows[slot] is not wanted]
            batch.leave(done)
    return batch.take([slot for slot, one in batch.rows.items() if one is wanted])[0][0]


@pytest.mark.parametrize("sampler", SERVER_SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_row_is_the_same_bytes_whatever_shares_its_batch(sampler, guidance):
    alone, crowded = (Batch(denoiser(), 6, guidance, CPU) for _ in range(2))
    one = row(3, sampler=sampler)
    join(alone, [one])
    expected = run(alone, one)
    join(crowded, [row(0, [80.0, 2.0]), row(1, [80.0, 60.0, 40.0, 30.0, 20.0, 10.0, 2.0], "euler")], seed=5, label=1)
    with torch.inference_mode():
        crowded.leave(crowded.step())
    other = row(3, sampler=sampler)
    join(crowded, [row(2, [80.0, 3.0], "heun", conditioned=False), other, row(4, [80.0, 9.0, 3.0])])
    assert crowded.free == 2
    assert run(crowded, other).tobytes() == expected.tobytes()


def test_a_row_forgets_who_had_it_before():
    batch = Batch(denoiser(), 1, 1.0, CPU)
    first, again = row(), row()
    join(batch, [first])
    expected = run(batch, first)
    batch.leave([0])
    stranger = row(9)
    join(batch, [stranger], seed=8, label=1)
    run(batch, stranger)
    batch.leave([0])
    join(batch, [again])
    assert run(batch, again).tobytes() == expected.tobytes()


def test_a_fitted_batch_evaluates_the_next_power_of_two():
    batch = Batch(denoiser(), 6, 1.0, CPU, fit=True)
    widths = []
    for index in range(6):
        join(batch, [row(index)])
        widths.append(batch.width)
    assert widths == [1, 2, 4, 4, 6, 6]
    batch.leave([0, 4, 5])
    assert batch.width == 4
    assert Batch(denoiser(), 6, 1.0, CPU).width == 6


def test_a_fitted_batch_agrees_with_a_fixed_one_within_rounding():
    one, other = row(), row()
    fixed, fitted = Batch(denoiser(), 8, 1.0, CPU), Batch(denoiser(), 8, 1.0, CPU, fit=True)
    join(fixed, [one])
    join(fitted, [other])
    assert np.abs(run(fixed, one) - run(fitted, other)).max() < 1e-4


@pytest.mark.parametrize(
    ("conditioned", "sampler", "expected"), [(True, "heun", 4), (False, "heun", 2), (True, "euler", 2)]
)
def test_guidance_costs_a_second_evaluation_only_where_there_is_a_label(conditioned, sampler, expected):
    model = Counted(denoiser())
    model.image_shape, model.condition_width = (1, 4, 4), 3
    batch = Batch(model, 2, 3.0, CPU)
    join(batch, [row(sampler=sampler, conditioned=conditioned)])
    with torch.inference_mode():
        batch.step()
    assert model.nfe == expected
    assert evaluations(sampler, LEVELS[:2], guided=conditioned) == expected
