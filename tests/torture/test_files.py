"""Each kind of file, cut short anywhere or with one bit turned, is refused with a sentence that names it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from collafuse.core import bundle, intermediate, release, tensorfile
from collafuse.core.describe import describe
from collafuse.core.errors import FileFormatError
from collafuse.learning import checkpoint
from tests.cli.conftest import InProcess
from tests.damage import bit_flips
from tests.nodes.sites import release_of
from tests.tiny import denoiser
from tests.torture.amounts import amount

KINDS = ("checkpoint", "release", "intermediate", "bundle")


def read_whole_intermediate(path: Path) -> None:
    with intermediate.IntermediateFile(path) as file:
        file.block(slice(None))


READERS: dict[str, Callable[[Path], object]] = {
    "checkpoint": lambda path: tensorfile.read(path, checkpoint.KIND, checkpoint.VERSION),
    "release": release.read,
    "intermediate": read_whole_intermediate,
    "bundle": bundle.read,
}
"""What a training, a server and a device open each of them with."""


@pytest.fixture(scope="module")
def files(tiny_bundle, tiny_intermediate, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    model, ema = denoiser(), denoiser(seed=1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 1, 4, 4), 0.5, torch.ones(1, 3)).sum().backward()
    optimizer.step()
    saved = checkpoint.save(
        folder, 3, checkpoint.tensors_of(model, ema, optimizer), checkpoint.Identity("c" * 64, "d" * 64)
    )
    return {
        "checkpoint": saved.read_bytes(),
        "release": release.to_bytes(release_of(0.5)),
        "intermediate": intermediate.to_bytes(tiny_intermediate),
        "bundle": tiny_bundle.read_bytes(),
    }


def cuts(data: bytes, count: int) -> list[bytes]:
    """The file cut at random lengths; the first keeps nothing and the last all but one byte."""
    lengths = np.random.default_rng(0).integers(0, len(data), count)
    return [data[:length] for length in (0, len(data) - 1, *lengths[2:])]


def assert_refused(path: Path, readers: tuple[Callable[[Path], object], ...]) -> None:
    for reader in readers:
        with pytest.raises(FileFormatError) as refused:
            reader(path)
        sentence = str(refused.value)
        assert str(path) in sentence and "\n" not in sentence and sentence.rstrip().endswith(".")


@pytest.mark.parametrize("kind", KINDS)
@amount(20, 100)
def test_a_file_cut_at_any_length_is_refused(files, tmp_path, kind, amount, figure):
    path = tmp_path / f"cut.{kind}"
    for spoiled in cuts(files[kind], amount):
        path.write_bytes(spoiled)
        assert_refused(path, (READERS[kind], describe))
    figure(f"{kind} cut at random lengths: {amount}/{amount} refused by name")


@pytest.mark.parametrize("kind", KINDS)
@amount(50, 1000)
def test_a_file_with_one_bit_turned_is_refused(files, tmp_path, kind, amount, figure):
    path = tmp_path / f"turned.{kind}"
    for spoiled in bit_flips(files[kind], amount):
        path.write_bytes(spoiled)
        assert_refused(path, (READERS[kind], describe))
    figure(f"{kind} with one bit turned: {amount}/{amount} refused by name")


@pytest.mark.parametrize("kind", KINDS)
@amount(3, 50)
def test_the_command_says_one_sentence_and_exits_with_5(files, tmp_path, monkeypatch, capsys, kind, amount, figure):
    call, path = InProcess(tmp_path, monkeypatch, capsys), tmp_path / f"spoiled.{kind}"
    for spoiled in (*cuts(files[kind], amount), *bit_flips(files[kind], amount)):
        path.write_bytes(spoiled)
        said = call("inspect", path, code=FileFormatError.exit_code)
        assert not said.stdout and said.stderr.startswith("error: ") and said.stderr.count("\n") == 1
        assert str(path) in said.stderr
    figure(f"inspect of a spoiled {kind}: {2 * amount}/{2 * amount} one sentence, exit code 5, no traceback")
