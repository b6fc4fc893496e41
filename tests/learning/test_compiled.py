"""Compiled sampling: the same images, at batches of one size, and without it where it does not work."""

from __future__ import annotations

import shutil

import pytest
import torch

from collafuse.core.samplers import STEPS, run
from collafuse.learning.compiled import CompiledDenoiser, Recorded
from collafuse.learning.denoiser import guided_together
from tests.tiny import CPU, NETWORK, denoiser

LEVELS = [80.0, 10.0, 2.0, 0.5]


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()  # torch keeps at most eight compilations of one function


def inputs(count, device=CPU):
    generator = torch.Generator().manual_seed(count)
    conditions = torch.eye(3)[torch.arange(count) % 3]
    return (
        torch.randn(count, 1, 4, 4, generator=generator).to(device),
        torch.linspace(0.5, 5.0, count, device=device),
        conditions.to(device),
    )


def refuse(note):
    pytest.fail(note)


@pytest.fixture
def shapes():
    """The numbers of images at which a denoiser was evaluated, beside it."""
    seen: list[int] = []
    plain = denoiser()
    plain.network.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    return plain, seen


@torch.inference_mode()
def test_batches_are_filled_up_to_one_size_and_give_what_they_give_alone(shapes):
    plain, seen = shapes
    compiled = CompiledDenoiser(plain, 4, refuse, backend="eager")
    for count in (1, 3, 4, 5, 8, 9):
        seen.clear()
        made = compiled(*inputs(count))
        assert set(seen) == {4 if count <= 4 else 8 if count <= 8 else 9}
        torch.testing.assert_close(made, denoiser()(*inputs(count)), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sampling_is_the_same(sampler, guidance):
    plain, (x, _, conditions) = denoiser(), inputs(3)
    both = [
        run(STEPS[sampler], guided_together(one, conditions, guidance), 80 * x, LEVELS)[0]
        for one in (plain, CompiledDenoiser(plain, 4, refuse, backend="eager"))
    ]
    torch.testing.assert_close(both[1], both[0], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_another_size_is_evaluated_at_that_size(shapes):
    plain, seen = shapes
    smaller = CompiledDenoiser(plain, 64, refuse, backend="eager").of_rows(2)
    smaller(*inputs(1))
    assert set(seen) == {2}


@torch.inference_mode()
def test_a_device_without_memory_is_not_one_that_cannot_compile():
    plain = denoiser()

    def full(*given):
        raise torch.OutOfMemoryError("full")

    plain.network.register_forward_pre_hook(full)
    with pytest.raises(torch.OutOfMemoryError):
        CompiledDenoiser(plain, 2, refuse, backend="eager")(*inputs(2))


@torch.inference_mode()
@pytest.mark.torture
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.parametrize("norm", ["group", "magnitude", "none"])
def test_compiled_kernels_give_the_same_estimates(norm):
    plain = denoiser(NETWORK.model_copy(update={"norm": norm}))
    compiled = CompiledDenoiser(plain, 4, refuse)
    for count in (4, 3, 7):
        torch.testing.assert_close(compiled(*inputs(count)), plain(*inputs(count)), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mixed_precision", [False, True])
def test_a_recording_on_cuda_gives_the_same_estimates_and_keeps_none_of_them(mixed_precision):
    plain = denoiser().to("cuda")
    plain.mixed_precision = mixed_precision
    recorded = Recorded(plain, inputs(4, "cuda"))
    other = tuple(2 * tensor for tensor in inputs(4, "cuda"))
    first, second = recorded(*inputs(4, "cuda")), recorded(*other)
    torch.testing.assert_close(first, plain(*inputs(4, "cuda")), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(second, plain(*other), atol=1e-4, rtol=1e-4)
