"""Where things lie in a run folder: ``server/`` holds what the server may see, ``clients/NAME/`` what that site may."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Config, load, unknown_client
from ..core import received
from ..core.atomic import PARTIAL_PREFIX, write_bytes
from ..core.errors import FileFormatError, OutputExistsError, RefusedError, StorageError
from ..data.dealing import SiteData
from ..data.record import split_csv

CONFIG = "config.yaml"
SPLIT = "split.csv"
REGISTRY = "registry.sqlite"
"""In a server's folder: the tokens and received releases of ``serve``."""
LIMITS = "limits.sqlite"
"""Beside it: what is left of each token's minute. It may be deleted when nothing serves."""
RESULTS = tuple(
    f"{CONFIG} {SPLIT} weights.safetensors early.safetensors checkpoints metrics.jsonl samples sites.json distilled "
    "tensorboard wandb".split()
)
"""What training a node writes."""
MODELS = "models"
"""In a baseline's run, in place of ``server/`` and ``clients/``: what it trained."""
MARKS = ("clients", MODELS)
"""One of them holds what a run is known by."""
RUN_ENTRIES = (CONFIG, "server", "clients", MODELS, "pictures", "finished", "evaluation", "report.html")
RUN_SUFFIXES = (".onnx", ".safetensors")
"""What ``train`` and ``demo`` write into a run folder, and the commands that measure a run."""


@dataclass(frozen=True)
class NodeFolder:
    """One node's folder."""

    path: Path

    @property
    def weights(self) -> Path:
        """The averaged weights after training."""
        return self.path / "weights.safetensors"

    @property
    def distilled(self) -> NodeFolder:
        """A trained client's distilled one, with a configuration of its own."""
        return NodeFolder(self.path / "distilled")

    @property
    def samples(self) -> Path:
        """Sample sheets made while training."""
        return self.path / "samples"

    @property
    def ledger(self) -> Path:
        """A simulated client's ledger; a real site configures its own."""
        return self.path / "ledger.sqlite"

    @property
    def shared(self) -> Path:
        """Beside it: a digest of the labels and captions that were released with the images."""
        return self.path / "shared.sha256"

    @property
    def releases(self) -> Path:
        """At the server: the releases it received, one file per client."""
        return self.path / "releases"

    @property
    def sites(self) -> Path:
        """At the server: the cut and labels of each client it learned from."""
        return self.path / "sites.json"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Make sure that a node may be trained here: nothing there yet, or ``resume``, or ``overwrite``.

        Changes nothing. Raises OutputExistsError.
        """
        held = self._results()
        if held and not resume and not overwrite:
            raise OutputExistsError(f"{held[0]} exists already; pass --resume or --overwrite, or choose another run.")

    def check_start(self, step: int, *, resume: bool) -> None:
        """Raise OutputExistsError where a resumed training would begin at step 0 and end in writing over weights."""
        if resume and step == 0 and self.weights.exists():
            raise OutputExistsError(
                f"{self.weights} is trained, and {self.path / 'checkpoints'} holds nothing to go on from; restore the "
                "checkpoints, or remove the weights to train from the start."
            )

    def clear(self) -> None:
        """Remove an older training's results only; releases and a ledger stay. Raises StorageError."""
        _remove(self._results())

    def _results(self) -> list[Path]:
        return [self.path / name for name in RESULTS if (self.path / name).exists()]

    def write_config(self, config: Config) -> None:
        """Write the fully resolved configuration beside the results."""
        _write_config(self.path, config)

    def write_split(self, site: SiteData) -> None:
        """Write down which of a site's images are trained on and which are held out."""
        write_bytes(self.path / SPLIT, split_csv(site).encode("utf-8", "surrogateescape"), overwrite=True)

    def read_config(self) -> Config:
        """The configuration this node was trained with. Raises FileFormatError when there is none."""
        return _read_config(self.path, "trained node")


@dataclass(frozen=True)
class RunFolder:
    """A run."""

    path: Path

    def write_config(self, config: Config) -> None:
        """Write the whole experiment's configuration, for whoever plays all of its nodes."""
        _write_config(self.path, config)

    def read_config(self) -> Config:
        """The whole experiment's configuration. Raises FileFormatError where ``train`` did not write one."""
        return _read_config(self.path, "run of train or demo")

    @property
    def server(self) -> NodeFolder:
        """What the server may see."""
        return NodeFolder(self.path / "server")

    def client(self, name: str) -> NodeFolder:
        """What this site may see."""
        return NodeFolder(self.path / "clients" / name)

    @property
    def models(self) -> Path:
        """In a baseline's run: a folder for each model that it trained."""
        return self.path / MODELS

    def refuse_baseline(self, what: str) -> None:
        """Raise RefusedError for a baseline's run; ``what`` is asked of the method's own runs alone."""
        if self.models.is_dir():
            method = self.read_config().method
            raise RefusedError(
                f"{self.path} is a run of the baseline {method!r}, which is there to compare with; {what} needs a run "
                "of collafuse. Train the same configuration without method, or with method: collafuse."
            )

    def trained_client(self, name: str) -> NodeFolder:
        """The folder of a client that was trained here. Raises ConfigError for a name that is not there."""
        there = sorted(p.name for p in self.path.glob("clients/*") if p.is_dir())
        if there and name not in there:
            raise unknown_client(name, there)
        return self.client(name)

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Make sure that a run may be written here; changes nothing.

        Raises OutputExistsError for a folder that holds something, unless it is a run of ``train`` or ``demo`` and to
        be resumed or overwritten. A folder with anything else in it is neither; one with releases of real sites or
        with a service's tokens is never overwritten.
        """
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise OutputExistsError(f"{self.path} is no plain folder; choose another run folder.")
        held = sorted(self.path.iterdir()) if self.path.is_dir() else []
        held = [p for p in held if not p.name.startswith(PARTIAL_PREFIX)]  # what a killed run was writing
        if not held:
            return
        if not overwrite and not resume:
            raise OutputExistsError(
                f"{self.path} holds files already; pass --resume or --overwrite, or choose another."
            )
        foreign = [p.name for p in held if p.name not in RUN_ENTRIES and p.suffix not in RUN_SUFFIXES]
        # The first thing that a run writes, and a baseline's.
        trained = any(self.path.glob("clients/*/ledger.sqlite")) or self.models.is_dir()
        if foreign or not trained:
            shown = ", ".join(foreign or [p.name for p in held][:3])
            raise OutputExistsError(
                f"{self.path} is no run of train or demo alone ({shown}); it is neither resumed nor overwritten. "
                "Choose another run folder."
            )
        if resume:
            return
        if (registry := self.server.path / REGISTRY).exists():
            raise OutputExistsError(
                f"{registry} holds a service's tokens; it is not overwritten. Choose another folder."
            )
        for path in self.server.releases.glob("*.safetensors"):
            if not received.read(path).simulated:
                raise OutputExistsError(
                    f"{path} is a real site's release; it is not overwritten. Choose another folder."
                )

    def clear(self) -> None:
        """Remove an older run that :meth:`check` has accepted, last what it is known by: killed at any moment, it
        leaves a run, or what :meth:`check` takes for nothing. Raises StorageError."""
        held = sorted(self.path.iterdir()) if self.path.is_dir() else []
        marks = [path for path in held if path.name in MARKS]
        _remove([path for path in held if path not in marks])
        for path in marks:
            hidden = path.with_name(f"{PARTIAL_PREFIX}{path.name}")
            try:
                path.rename(hidden)
            except OSError as error:
                raise _not_removed(path, error) from error
            _remove([hidden])


def _write_config(folder: Path, config: Config) -> None:
    write_bytes(folder / CONFIG, config.to_yaml().encode(), overwrite=True)


def _read_config(folder: Path, what: str) -> Config:
    if not (folder / CONFIG).is_file():
        raise FileFormatError(f"{folder} is no {what}: it lacks {CONFIG}. Check the run folder and name.")
    return load(folder / CONFIG)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            raise _not_removed(path, error) from error


def _not_removed(path: Path, error: OSError) -> StorageError:
    return StorageError(f"cannot remove {path}: {error.strerror}; remove it by hand and try again.")
