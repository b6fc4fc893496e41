"""Where things lie in a run folder: ``server/`` holds what the server may see, ``clients/NAME/`` what that site may."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..config import Config, load
from ..core.atomic import write_bytes
from ..core.errors import FileFormatError, OutputExistsError

CONFIG = "config.yaml"
RESULTS = tuple(f"{CONFIG} weights.safetensors checkpoints metrics.jsonl samples sites.json tensorboard wandb".split())
"""What training a node writes."""


@dataclass(frozen=True)
class NodeFolder:
    """One node's folder."""

    path: Path

    @property
    def weights(self) -> Path:
        """The averaged weights after training."""
        return self.path / "weights.safetensors"

    @property
    def samples(self) -> Path:
        """Sample sheets made while training."""
        return self.path / "samples"

    @property
    def ledger(self) -> Path:
        """A simulated client's ledger; a real site configures its own."""
        return self.path / "ledger.sqlite"

    @property
    def releases(self) -> Path:
        """At the server: the releases it received, one file per client."""
        return self.path / "releases"

    @property
    def sites(self) -> Path:
        """At the server: the cut and labels of each client it learned from."""
        return self.path / "sites.json"

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Make sure that a node may be trained here: nothing there yet, or ``resume``, or ``overwrite``.

        Overwriting removes an older training's results only; releases and a ledger stay. Raises OutputExistsError.
        """
        held = [self.path / name for name in RESULTS if (self.path / name).exists()]
        if not held or resume:
            return
        if not overwrite:
            raise OutputExistsError(f"{held[0]} exists already; pass --resume or --overwrite, or choose another run.")
        for path in held:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    def write_config(self, config: Config) -> None:
        """Write the fully resolved configuration beside the results."""
        write_bytes(self.path / CONFIG, config.to_yaml().encode(), overwrite=True)

    def read_config(self) -> Config:
        """The configuration this node was trained with. Raises FileFormatError when there is none."""
        if not (self.path / CONFIG).is_file():
            raise FileFormatError(f"{self.path} is no trained node: it lacks {CONFIG}. Check the run folder and name.")
        return load(self.path / CONFIG)


@dataclass(frozen=True)
class RunFolder:
    """A run."""

    path: Path

    @property
    def server(self) -> NodeFolder:
        """What the server may see."""
        return NodeFolder(self.path / "server")

    def client(self, name: str) -> NodeFolder:
        """What this site may see."""
        return NodeFolder(self.path / "clients" / name)

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Make sure that a run may be written here.

        Raises OutputExistsError for a folder that holds something already, unless it is resumed; ``overwrite``
        removes an older run, but refuses to remove anything that is not one.
        """
        held = {p.name for p in self.path.iterdir()} if self.path.is_dir() else set()
        if not self.path.is_dir() and self.path.exists():
            raise OutputExistsError(f"{self.path} is a file; choose another run folder.")
        if not held or resume:
            return
        if not overwrite:
            raise OutputExistsError(
                f"{self.path} holds files already; pass --resume or --overwrite, or choose another."
            )
        if not held & {"server", "clients"}:
            raise OutputExistsError(
                f"{self.path} is no run folder ({', '.join(sorted(held)[:3])}); it is not overwritten."
            )
        shutil.rmtree(self.path)
