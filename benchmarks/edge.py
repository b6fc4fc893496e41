"""``python -m benchmarks.edge``: the device side against its peers, on one machine in one run.

    --run RUN     a run of ``collafuse train`` on 32x32x3 images
    --data DIR    or a folder of images, to train a reduced configuration on first

Every row alternates with the others and shows medians. The factors below the table say how much of each ratio comes
from fewer steps, a smaller network, the runtime and the precision: they are ratios of times measured in the same run,
and multiply to the whole.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import tempfile
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from collafuse.config import load
from collafuse.core.intermediate import Intermediate
from collafuse.core.noise import client_sigmas
from collafuse.core.samplers import STEPS
from collafuse.core.samplers import run as sample
from collafuse.learning import weights
from collafuse.nodes.experiment import CALIBRATION
from edge_client import Finisher
from edge_client.bench import HEADER, bench
from edge_client.cores import default_threads
from export.writer import export_client

from . import edge_profile, peak
from .edge_quality import Ways, quality_rows
from .edge_run import EdgeRun, open_run, train_run
from .peers import Peer, convolution_flops, denoiser_call, diffusers_peers, reference

ROUNDS = 7
REFERENCE_ROUNDS = 2
SETTLE_SECONDS = 1.5
"""Threads of torch and onnxruntime stay awake for about a second after their last work, in the way of whoever is next;
and our device side sleeps within a call where it finds the processors in use when it loads."""
TURN_SECONDS = 0.3
MANY_STEPS = 40
PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class Bundles:
    """The client's bundles by precision, opened; the one in fp32 with many steps; the twin's."""

    by_precision: dict[str, Finisher]
    many_steps: Finisher
    twin: Finisher


def main() -> None:
    """Run the whole measurement and print it as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.edge", description=__doc__)
    parser.add_argument("--run", type=Path, help="a trained run")
    parser.add_argument("--data", type=Path, help="a folder of images to train on first, in at most ten minutes")
    parser.add_argument("--client", help="which of the run's clients; the first by default")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-edge"), help="where --data trains")
    given = parser.parse_args()
    if (given.run is None) == (given.data is None):
        parser.error("give either --run RUN, a trained run, or --data DIR, images to train on first")
    if given.run is not None:
        print(f"Measuring the trained run {given.run}.\n", flush=True)
        edge = open_run(given.run, given.client)
    else:
        print(f"Training a reduced configuration on {given.data} first, for at most ten minutes.\n", flush=True)
        edge = train_run(given.data, given.out)
    threads = default_threads()
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as scratch:
        bundles = _export(edge, Path(scratch), threads)
        default = _speeds(edge, bundles, threads)
        # Started from an install as a device has it: compiled modules, and no finder of an editable package.
        base = Path(scratch) / "venv"
        megabytes = _install_mb(base)
        print(f"\n## Processes\n\n{HEADER}")
        for precision in PRECISIONS:
            command = (str(base / "bin/collafuse"), "finish")
            print(bench(Path(scratch) / f"{precision}.onnx", command, provider="cpu").row(), flush=True)
        print(f"\nBase install, without pip: {megabytes:.0f} MB unpacked.")
        print("\n## Quality\n", flush=True)
        quality_rows(edge, Ways(bundles.by_precision[default], bundles.many_steps, bundles.twin))


def _install_mb(folder: Path) -> float:
    """Size of ``pip install .`` in a new environment, less what pip and an empty environment take."""
    venv.create(folder, with_pip=True)
    empty = _size_mb(folder)
    options = ["--quiet", "--disable-pip-version-check"]
    root = Path(__file__).parents[1]
    subprocess.run([folder / "bin/python", "-m", "pip", "install", *options, str(root)], check=True)
    return _size_mb(folder) - empty


def _size_mb(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir()) / 1e6


def _export(edge: EdgeRun, folder: Path, threads: int) -> Bundles:
    settings = edge.config.client(edge.name)
    calibration = edge.folder.client(edge.name).path / CALIBRATION
    paths = {name: folder / f"{name}.onnx" for name in (*PRECISIONS, "twin")}
    for precision in PRECISIONS:
        # force: a loss above the gate is for the table to show.
        export_client(
            edge.device,
            settings,
            edge.name,
            paths[precision],
            precision=precision,
            intermediates=calibration,
            force=True,
        )
    export_client(edge.twin, settings, edge.name, paths["twin"])
    time.sleep(SETTLE_SECONDS)
    return Bundles(
        {precision: Finisher.load(paths[precision], provider="cpu", threads=threads) for precision in PRECISIONS},
        Finisher.load(paths["fp32"], provider="cpu", threads=threads, steps=MANY_STEPS),
        Finisher.load(paths["twin"], provider="cpu", threads=threads),
    )


def _speeds(edge: EdgeRun, bundles: Bundles, threads: int) -> str:
    """Print the table of times and what the ratios are made of; returns the precision that is fastest here."""
    model, info = edge.device, bundles.by_precision["fp32"].bundle.info
    shape, labels = info.image_shape, len(info.label_names)
    flops = convolution_flops(denoiser_call(model.denoiser))
    cifar10 = load("cifar10.yaml", ["data.path=unused"]).server.network
    one = _one_image(edge)
    peers = [
        reference(cifar10, shape, info.space, info.sigma_max),
        *diffusers_peers(shape, labels, flops, info.steps, threads),
        Peer("ours, torch", flops, info.steps, _in_torch(model, edge)),
        *(Peer(f"ours, {p}", flops, info.steps, lambda f=f: f.finish(one)) for p, f in bundles.by_precision.items()),
    ]
    times = _alternating({peer.name: peer for peer in peers})
    default = min(PRECISIONS, key=lambda p: times[f"ours, {p}"])
    print(
        f"{threads} threads, batch 1, {shape[1]}x{shape[2]}x{shape[0]}, the client takes over at sigma "
        f"{info.sigma_max:.3g}. Default here: {default}.\n"
    )
    print("| who | convolution GFLOP per evaluation | evaluations | ms per image | times ours |\n|---|---|---|---|---|")
    ours = times[f"ours, {default}"]
    for peer in peers:
        print(
            f"| {peer.name} | {peer.flops / 1e9:.3f} | {peer.evaluations} | {times[peer.name]:.2f} "
            f"| {times[peer.name] / ours:.1f} |"
        )
    _factors(times, peers[0].evaluations, info.steps, default)
    _share_of_peak(flops, info.steps, times, threads)
    for finisher in bundles.by_precision.values():
        print(edge_profile.sentence(finisher.bundle, threads))
    return default


def _factors(times: dict[str, float], reference_steps: int, steps: int, default: str) -> None:
    big = times["reference, torch"] / reference_steps
    small = times["ours, torch"] / steps
    parts = {
        "steps": reference_steps / steps,
        "size": big / small,
        "runtime": times["ours, torch"] / times["ours, fp32"],
        "precision": times["ours, fp32"] / times[f"ours, {default}"],
    }
    whole = times["reference, torch"] / times[f"ours, {default}"]
    print(f"\nAgainst the reference {whole:.0f} = " + " x ".join(f"{v:.2f} ({k})" for k, v in parts.items()))
    for peer in ("diffusers, torch", "diffusers, onnxruntime"):
        runtime, precision = times[peer] / times["ours, fp32"], parts["precision"]
        print(
            f"Against {peer} {runtime * precision:.2f} = {runtime:.2f} (network and runtime) "
            f"x {precision:.2f} (precision)"
        )


def _share_of_peak(flops: int, steps: int, times: dict[str, float], threads: int) -> None:
    for precision, limit in (("fp32", peak.fp32_gflops(threads)), ("int8", peak.int8_gops(threads))):
        reached = flops * steps / times[f"ours, {precision}"] / 1e6
        print(
            f"Convolutions in {precision}: {reached:.0f} GFLOP/s of {limit:.0f} that a matrix product of this machine "
            f"reaches in onnxruntime, {reached / limit:.0%}."
        )


def _one_image(edge: EdgeRun) -> Intermediate:
    return edge.server.deliver(edge.name, 1, seed=0)


def _in_torch(model: weights.TrainedModel, edge: EdgeRun) -> Callable[[], None]:
    settings = edge.config.client(edge.name)
    sampler = settings.sampler
    sigmas = client_sigmas(settings.handover_sigma, sampler.steps, sampler.sigma_low)
    conditions = torch.from_numpy(model.space.conditions(1, None))

    @torch.inference_mode()
    def finish() -> None:
        x = torch.zeros(1, *model.denoiser.image_shape)
        sample(STEPS[sampler.name], lambda x, sigma: model.denoiser(x, sigma, conditions), x, sigmas)

    return finish


def _alternating(peers: dict[str, Peer]) -> dict[str, float]:
    """Milliseconds per finished image: medians over rounds in which everybody has a turn.

    Whoever has a turn waits until the threads of the one before sleep, works until processors and caches are warm, and
    is then timed over as many images as fit into a moment, as in a job.
    """
    measured: dict[str, list[float]] = {name: [] for name in peers}
    for number in range(ROUNDS):
        for name, peer in peers.items():
            long = peer.evaluations > MANY_STEPS
            if long and number >= REFERENCE_ROUNDS:
                continue  # the reference takes most of the time
            time.sleep(SETTLE_SECONDS)
            if not long:
                _milliseconds(peer)
            measured[name].append(_milliseconds(peer))
    return {name: statistics.median(times) for name, times in measured.items()}


def _milliseconds(peer: Peer) -> float:
    """Per image, over TURN_SECONDS or one image."""
    started, images = time.perf_counter(), 0
    while not images or time.perf_counter() - started < TURN_SECONDS:
        peer.finish()
        images += 1
    return (time.perf_counter() - started) / images * 1000


if __name__ == "__main__":
    main()
