"""What training and server sampling are measured against, at our convolution FLOPs: diffusers and lucidrains' package.

diffusers' UNet2DModel is trained in the loop of its own tutorial, with accelerate and an average of the weights; the
network of denoising-diffusion-pytorch by that package's own Trainer, from a folder of image files as it wants them.
Their pictures are not looked at, since the weights are random: only time is compared.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

from collafuse.config import NetworkSettings

from .peers import convolution_flops

GROUPS = 4
FILES = 256
"""Image files that the Trainer reads from."""


@dataclass(frozen=True)
class TrainPeer:
    """flops: of the convolutions of one evaluation on one image, two for a multiplication and an addition.
    train: one optimiser step on a batch. sample: a batch of images in as many evaluations as it is told."""

    name: str
    flops: int
    train: Callable[[], Any]
    sample: Callable[[], Any]


def nearest_width(flops: int, counted: Callable[[int], int]) -> int:
    """The width, a multiple of four, whose network's convolution FLOPs come nearest."""
    return min(range(8, 513, 4), key=lambda width: abs(counted(width) - flops))


def diffusers_peer(
    network: NetworkSettings, shape: tuple[int, int, int], flops: int, batch: int, steps: int, device: torch.device
) -> TrainPeer:
    """UNet2DModel under accelerate, as in diffusers' tutorial "Train a diffusion model", with its EMAModel."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    channels, side, _ = shape
    attends = [side >> level in network.attention for level in range(len(network.multipliers))]

    def unet(width: int) -> nn.Module:
        return UNet2DModel(
            sample_size=side,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=network.blocks,
            block_out_channels=[width * m for m in network.multipliers],
            down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
            up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
            norm_num_groups=GROUPS,
            add_attention=attends[-1],
        )

    def counted(width: int) -> int:
        with torch.device("meta"):
            model, x, t = unet(width), torch.zeros(1, *shape), torch.zeros(1, dtype=torch.int64)
            return convolution_flops(lambda: model(x, t))

    width = nearest_width(flops, counted)
    accelerator = Accelerator(mixed_precision="bf16" if device.type == "cuda" else "no", cpu=device.type == "cpu")
    model = unet(width)
    images = torch.rand(FILES, *shape) * 2 - 1
    loader: Any = torch.utils.data.DataLoader(images, batch_size=batch, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-4), loader)
    average = EMAModel(model.parameters(), decay=0.9999)
    schedule = DDPMScheduler(num_train_timesteps=1000)
    batches = _endless(loader)

    def train() -> None:
        model.train()
        clean = next(batches)
        noise = torch.randn_like(clean)
        t = torch.randint(0, 1000, (len(clean),), device=clean.device)
        with accelerator.accumulate(model):
            predicted = model(schedule.add_noise(clean, noise, t), t, return_dict=False)[0]
            loss = functional.mse_loss(predicted, noise)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        average.step(model.parameters())
        loss.detach().item()  # the tutorial shows the loss of each step

    @torch.inference_mode()
    def sample() -> None:
        model.eval()
        solver = DPMSolverMultistepScheduler(num_train_timesteps=1000)
        solver.set_timesteps(steps)
        x = torch.randn(batch, *shape, device=device)
        for t in solver.timesteps:
            x = solver.step(model(x, t).sample, t, x).prev_sample

    return TrainPeer("diffusers, accelerate", counted(width), train, sample)


def trainer_peer(
    network: NetworkSettings,
    shape: tuple[int, int, int],
    flops: int,
    batch: int,
    steps: int,
    device: torch.device,
    folder: Path,
) -> TrainPeer:
    """denoising-diffusion-pytorch's Unet under its Trainer, which reads image files in processes of its own."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Trainer, Unet

    channels, side, _ = shape

    def unet(width: int) -> nn.Module:
        return Unet(dim=width, dim_mults=network.multipliers, channels=channels, flash_attn=device.type == "cuda")

    def counted(width: int) -> int:
        with torch.device("meta"):
            model, x, t = unet(width), torch.zeros(1, *shape), torch.zeros(1)
            return convolution_flops(lambda: model(x, t))

    width = nearest_width(flops, counted)
    _write_images(folder / "images", shape)
    diffusion = GaussianDiffusion(unet(width), image_size=side, timesteps=1000, sampling_timesteps=steps)
    trainer = Trainer(
        diffusion, str(folder / "images"), train_batch_size=batch, train_num_steps=0, save_and_sample_every=1 << 30,
        results_folder=str(folder / "results"), calculate_fid=False, amp=device.type == "cuda",
        mixed_precision_type="bf16",
    )  # fmt: skip

    def train() -> None:
        trainer.train_num_steps = trainer.step + 1
        with redirect_stdout(sys.stderr):  # where it says each time that it is done
            trainer.train()

    @torch.inference_mode()
    def sample() -> None:
        diffusion.sample(batch_size=batch)

    return TrainPeer("denoising-diffusion-pytorch, Trainer", counted(width), train, sample)


def _endless(loader: Any) -> Any:
    while True:
        yield from loader


def _write_images(folder: Path, shape: tuple[int, int, int]) -> None:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for index in range(FILES):
        pixels = generator.integers(0, 256, (*shape[1:], 3), dtype=np.uint8)
        Image.fromarray(pixels if shape[0] == 3 else pixels[..., 0]).save(folder / f"{index:04d}.png")
