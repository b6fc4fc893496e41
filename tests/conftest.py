"""What tests of every folder share: a tiny experiment and the files it would leave, made once per session.

Nothing here is trained. torch is imported inside the fixtures, so that tests that do without it stay quick.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import numpy as np
import pytest

from collafuse.config import Config, from_mapping
from collafuse.core.intermediate import Intermediate
from collafuse.core.noise import SIGMA_MIN
from tests.nursery import Nursery

if TYPE_CHECKING:
    from collafuse.learning.weights import TrainedModel

# No deadline: a first call that loads a library is not a failure. The same examples each time, so that a red
# test is red for everyone.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=60, derandomize=True, database=None)
hypothesis.settings.register_profile("torture", parent=hypothesis.settings.get_profile("tests"), max_examples=10_000)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: begun last, a long one would keep one core busy while the others wait."""
    slow = {item.path for item in items if item.get_closest_marker("slow") or item.path.parent.name == "torture"}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What is loaded by now stays: torch alone makes so many objects that looking through them again and again for
    some that nobody needs takes an eighth of an export's time."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The figures that tests recorded, which docs/reliability.md keeps."""
    reports = terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
    if figures := [value for report in reports for name, value in report.user_properties if name == "figure"]:
        terminalreporter.section("figures")
        for text in figures:
            terminalreporter.write_line(str(text))


@pytest.fixture(scope="session", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What devices remember and trust lies in folders of this session, not in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory, own_folders: None) -> Iterator[Nursery]:
    """Starts commands in processes of their own, in any folder."""
    with Nursery(tmp_path_factory.mktemp("nursery")) as found:
        yield found


# With norms: of weights that learned for six steps, 8 bits lose more without than an export allows.
TINY_NETWORK = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "norm": "group"}
TINY_TRAINING = {"steps": 6, "batch_size": 16, "warmup_steps": 2, "log_every": 2, "checkpoint_every": 3}


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    """Digits, networks of a few thousand parameters, and three sites with three labels and a cut of their own."""
    return from_mapping(
        {
            "name": "tiny",
            "data": {"dataset": "digits", "held_out": 0.2},
            "server": {"network": TINY_NETWORK, "training": TINY_TRAINING, "sampler": {"steps": 4}},
            "client": {
                "network": TINY_NETWORK,
                "training": TINY_TRAINING,
                "sampler": {"name": "dpmpp_2m", "steps": 4, "sigma_low": 0.05},
            },
            "clients": {
                "north": {"labels": ["0", "1", "2"], "cut": {"sigma": 0.5}},
                "east": {"labels": ["3", "4", "5"], "cut": {"sigma": 1.0}},
                "south": {"labels": ["6", "7", "8", "9"], "cut": {"t": 0.4, "schedule": "cosine"}},
            },
        }
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_config: Config) -> TrainedModel:
    """North's denoiser with arbitrary weights. All are perturbed: as built, the last layers are zero, and a
    graph that dropped the whole network would still agree with torch."""
    import torch

    from collafuse.core.conditioning import ConditionSpace
    from collafuse.learning.denoiser import Denoiser
    from collafuse.learning.weights import TrainedModel

    client = tiny_config.client("north")
    generator = torch.Generator().manual_seed(7)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(7)
        denoiser = Denoiser(client.network, tiny_config.data.image_shape, ConditionSpace(client.labels))
        for parameter in denoiser.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return TrainedModel(denoiser.eval(), "client", SIGMA_MIN, client.handover_sigma, steps=0, id="tiny")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_config: Config, tiny_model: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of :func:`tiny_model`. Shared: copy it before changing it."""
    from export.writer import export_client

    path = tmp_path_factory.mktemp("bundle") / "north.onnx"
    export_client(tiny_model, tiny_config.client("north"), "north", path)
    return path


@pytest.fixture(scope="session")
def tiny_intermediate(tiny_config: Config) -> Intermediate:
    """Five images where north takes over, labelled 0 1 2 0 1 by names in another order than the bundle's."""
    shape, sigma = tiny_config.data.image_shape, tiny_config.client("north").handover_sigma
    noise = np.random.default_rng(11).standard_normal((5, *shape))
    pattern = np.cos(np.arange(noise.size)).reshape(noise.shape)
    labels = np.zeros((5, 4), dtype=np.uint8)
    labels[np.arange(5), [3, 0, 1, 3, 0]] = 1
    return Intermediate(
        x=(0.8 * pattern + sigma * noise).astype(np.float32),
        sigma=sigma,
        labels=labels,
        label_names=("1", "2", "3", "0"),
        server_model="0123456789abcdef",
        sampler="dpmpp_2m",
        nfe=4,
        guidance=1.0,
    )
