"""What the device side is measured against: the reference procedure, and diffusers in torch and in onnxruntime.

A peer finishes one image per call. It starts where our client starts and evaluates its network as often as it says;
its pictures are not looked at, since its weights are random: only time is compared. The reference is a full-size client
on 200 ancestral steps in eager torch; diffusers' UNet2DModel gets the width that matches our client's convolution
FLOPs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnxruntime
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from collafuse.config import NetworkSettings
from collafuse.core.conditioning import ConditionSpace
from collafuse.core.noise import SIGMA_MIN, karras_sigmas
from collafuse.core.samplers import euler_ancestral
from collafuse.learning.denoiser import Denoiser

REFERENCE_STEPS = 200
WIDTHS = range(8, 257, 4)
GROUPS = 4


@dataclass(frozen=True)
class Peer:
    """flops: of one evaluation's convolutions on one image, two for a multiplication and an addition."""

    name: str
    flops: int
    evaluations: int
    finish: Callable[[], None]


def convolution_flops(call: Callable[[], Any]) -> int:
    """Counted, not estimated: FLOPs of the convolutions in a call."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call()
    counts = counter.get_flop_counts().get("Global", {})
    return sum(number for operator, number in counts.items() if "convolution" in str(operator))


def denoiser_call(denoiser: Denoiser, batch: int = 1) -> Callable[[], Any]:
    """One evaluation of one of our denoisers in torch."""
    x = torch.zeros(batch, *denoiser.image_shape)
    conditions = torch.zeros(batch, denoiser.condition_width)
    return lambda: denoiser(x, torch.ones(batch), conditions)


def reference(network: NetworkSettings, image_shape: tuple[int, int, int], space: ConditionSpace, sigma: float) -> Peer:
    """The published procedure: a client of the server's size, 200 ancestral steps from sigma, eager torch in fp32."""
    denoiser = Denoiser(network, image_shape, space).eval()
    sigmas = [*karras_sigmas(sigma, SIGMA_MIN, REFERENCE_STEPS - 1), 0.0]
    conditions = torch.zeros(1, space.width)

    @torch.inference_mode()
    def finish() -> None:
        x = torch.randn(1, *image_shape)
        euler_ancestral(lambda x, sigma: denoiser(x, sigma, conditions), x, sigmas, torch.randn_like)

    return Peer("reference, torch", convolution_flops(denoiser_call(denoiser)), REFERENCE_STEPS, finish)


def diffusers_peers(
    image_shape: tuple[int, int, int], num_labels: int, flops: int, evaluations: int, threads: int
) -> tuple[Peer, Peer]:
    """UNet2DModel with as many convolution FLOPs, with DPMSolverMultistepScheduler: in torch, and in onnxruntime."""
    unet, counted = _matching_unet(image_shape, num_labels, flops)
    label = torch.zeros(1, dtype=torch.int64)

    @torch.inference_mode()
    def in_torch(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return unet(x, t, class_labels=label).sample

    session = _exported(unet, image_shape, threads)

    def in_onnxruntime(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        values = {"x": x.numpy(), "t": t.reshape(1).numpy(), "label": label.numpy()}
        return torch.from_numpy(session.run(None, values)[0])

    return (
        Peer("diffusers, torch", counted, evaluations, _dpm_solver(in_torch, image_shape, evaluations)),
        Peer("diffusers, onnxruntime", counted, evaluations, _dpm_solver(in_onnxruntime, image_shape, evaluations)),
    )


def _dpm_solver(
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], image_shape: tuple[int, int, int], evaluations: int
) -> Callable[[], None]:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(num_train_timesteps=1000)

    def finish() -> None:
        scheduler.set_timesteps(evaluations)
        x = torch.randn(1, *image_shape)
        for t in scheduler.timesteps:
            x = scheduler.step(predict(x, t), t, x).prev_sample

    return finish


def _unet(width: int, image_shape: tuple[int, int, int], num_labels: int) -> nn.Module:
    from diffusers import UNet2DModel

    channels, side, _ = image_shape
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=(width, 2 * width),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=GROUPS,
        num_class_embeds=num_labels + 1,
    ).eval()


def _matching_unet(image_shape: tuple[int, int, int], num_labels: int, flops: int) -> tuple[nn.Module, int]:
    """The two-level UNet2DModel whose convolution FLOPs come nearest, and its FLOPs."""
    x, t, label = torch.zeros(1, *image_shape), torch.tensor(1), torch.zeros(1, dtype=torch.int64)

    def counted(width: int) -> int:
        with torch.device("meta"):
            unet = _unet(width, image_shape, num_labels)
            return convolution_flops(lambda: unet(x.to("meta"), t.to("meta"), class_labels=label.to("meta")))

    sizes = {width: counted(width) for width in WIDTHS}
    width = min(sizes, key=lambda w: abs(sizes[w] - flops))
    return _unet(width, image_shape, num_labels), sizes[width]


class _Outputs(nn.Module):
    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return self.unet(x, t, class_labels=label, return_dict=False)[0]


def _exported(unet: nn.Module, image_shape: tuple[int, int, int], threads: int) -> onnxruntime.InferenceSession:
    """The same network as diffusers' users export it: torch's own exporter, onnxruntime with its own defaults."""
    example = (torch.zeros(1, *image_shape), *(torch.zeros(1, dtype=torch.int64) for _ in range(2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _Outputs(unet), example, dynamo=True, opset_version=18, external_data=False,
            input_names=["x", "t", "label"], verbose=False,
        )  # fmt: skip
    assert program is not None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
