"""Receiving releases: streamed to the disk, checked, and acknowledged only when they lie there durably.

A release lies as ``NAME.ID.safetensors`` in the server's folder of releases, where ``train-server`` finds it. NAME is
the client of the token that brought it, never anything that the request says.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, TypeVar

from ..core import received as releases
from ..core.atomic import PARTIAL_PREFIX, give_name, storage_error, sync_folder
from ..core.errors import FileFormatError, MismatchError, OutputExistsError, RefusedError, StorageError
from ..core.noise import SIGMA_SLACK
from ..core.tensorfile import file_digest
from ..nodes.sites import SUFFIX
from .registry import Received, Registry

Result = TypeVar("Result")

DISK_THREADS = 4
SPARE_BYTES = 64 << 20
"""Room on the disk that an upload must leave."""

ABANDONED_SECONDS = 3600.0
"""An upload that has not grown for so long has no process any more; a power cut left it."""


@dataclass(frozen=True)
class Known:
    """What a release must fit: the image shape of the model, and each client's cut, where they are known. The cut is 0
    where a client sent statistics."""

    image_shape: tuple[int, int, int] | None
    cuts: dict[str, float]


class Receiver:
    """Takes releases into one folder."""

    def __init__(self, folder: Path, registry: Registry, known: Known, *, accept_simulated: bool) -> None:
        self._folder, self._registry, self._known = folder, registry, known
        self._accept_simulated = accept_simulated
        self._one_at_a_time = asyncio.Lock()
        # Their own: an upload may wait for the disk, and whoever samples must not stand behind it.
        self._threads = ThreadPoolExecutor(DISK_THREADS, thread_name_prefix="disk")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"{PARTIAL_PREFIX}*{SUFFIX}"):
                if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:  # not one of another process beside this
                    left.unlink()
        except OSError as error:
            raise storage_error(folder, error) from error

    def close(self) -> None:
        """End its threads."""
        self._threads.shutdown()

    def held(self, client: str, release_id: str) -> Received | None:
        """A release that lies here already, or None."""
        return self._registry.release(client, release_id)

    async def receive(
        self, client: str, release_id: str, body: AsyncIterator[bytes], size: int, digest: str | None
    ) -> tuple[Received, bool]:
        """Take one release; returns what is held, and whether it is new.

        ``digest`` is the SHA-256 that its sender states. The same bytes once more are acknowledged and kept once.
        Raises FileFormatError, MismatchError, RefusedError, OutputExistsError or StorageError; nothing is left then.
        """
        held = await self._aside(self.held, client, release_id)
        if held is not None and digest is not None:
            return _same(held, digest), False
        partial, file = await self._aside(self._begin, size)
        try:
            found = await self._stream(file, body, partial, size)
            if digest is not None and digest != found:
                raise FileFormatError(f"the release has SHA-256 {found}, its sender said {digest}; send it again.")
            async with self._one_at_a_time:  # a release may be all that memory holds
                return await self._aside(self._keep, partial, client, release_id, found, size)
        finally:
            with suppress(OSError):
                await self._aside(partial.unlink, True)  # missing_ok

    async def _aside(self, work: Callable[..., Result], *arguments: object) -> Result:
        """Do what may wait for the disk in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    def _begin(self, size: int) -> tuple[Path, IO[bytes]]:
        try:
            free = shutil.disk_usage(self._folder).free
            if free < size + SPARE_BYTES:
                raise StorageError(f"the server's disk has {free} bytes left, too few for {size}; tell its operator.")
            descriptor, name = tempfile.mkstemp(prefix=PARTIAL_PREFIX, suffix=SUFFIX, dir=self._folder)
            return Path(name), os.fdopen(descriptor, "wb")
        except OSError as error:
            raise storage_error(self._folder, error) from error

    async def _stream(self, file: IO[bytes], body: AsyncIterator[bytes], partial: Path, size: int) -> str:
        """Write a body to a file and to the disk; its SHA-256. Raises FileFormatError when it ends too early."""
        digest, count = hashlib.sha256(), 0
        try:
            with file:  # closing writes too
                async for block in body:
                    count += len(block)
                    digest.update(block)
                    await self._aside(file.write, block)
                await self._aside(_sync, file)
        except OSError as error:
            raise storage_error(partial, error) from error
        if count != size:
            raise FileFormatError(f"the release ended after {count} of {size} bytes; send it again.")
        return digest.hexdigest()

    def _keep(self, partial: Path, client: str, release_id: str, digest: str, size: int) -> tuple[Received, bool]:
        """Check a complete upload, give it its name, and list it. Of several at once, in whatever process, each finds
        what was listed before: the registry lets them in one after the other."""
        release = self._checked(partial)
        with self._registry.listing() as add:
            if (held := self.held(client, release_id)) is not None:
                return _same(held, digest), False
            self._check_beside_others(release, client, digest)
            self._name(partial, client, release_id, digest)
            now = datetime.now(timezone.utc).isoformat()
            received = Received(client, release_id, digest, size, release.images, release.sigma_cut, now)
            add(received)
        return received, True

    def _name(self, partial: Path, client: str, release_id: str, digest: str) -> None:
        """Give an upload its name, durably. A power cut before it is listed leaves a file under that name; the client,
        which heard nothing, sends it again and finds it."""
        path = self._folder / f"{client}.{release_id}{SUFFIX}"
        try:
            give_name(partial, path, overwrite=False)
        except OutputExistsError as error:
            if file_digest(path) != digest:
                message = f"another release lies here as {release_id!r}; send this one under another id."
                raise OutputExistsError(message) from error
        except OSError as error:
            raise storage_error(path, error) from error
        sync_folder(self._folder)

    def _checked(self, partial: Path) -> releases.Received:
        """What a release says of itself, which may be taken here whoever sends it."""
        try:
            release = releases.read(partial)
        except FileFormatError as error:
            raise FileFormatError(str(error).replace(str(partial), "the release")) from error
        if release.simulated and not self._accept_simulated:
            raise RefusedError(
                "this release is marked as simulated: it was made by a process that also held the images. Send one "
                "that `collafuse release` made at the site."
            )
        shape = self._known.image_shape
        if shape is not None and release.image_shape != shape:
            raise MismatchError(f"the release holds images of shape {release.image_shape}, this server learns {shape}.")
        return release

    def _check_beside_others(self, release: releases.Received, client: str, digest: str) -> None:
        """Refuse a release at another cut than the client's others, and one that lies here already."""
        held = self._registry.releases(client)
        cuts = {one.sigma_cut for one in held} | {self._known.cuts.get(client, release.sigma_cut)}
        for cut in cuts:
            if abs(cut - release.sigma_cut) > SIGMA_SLACK * cut:
                raise MismatchError(
                    f"client {client!r} released at sigma {cut:g} before, this release stands at "
                    f"{release.sigma_cut:g}; a server keeps one cut for each client."
                )
        for one in held:
            if one.sha256 == digest:
                raise OutputExistsError(f"this release lies here already, as {one.id!r}; it is kept once.")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _same(held: Received, digest: str) -> Received:
    if held.sha256 != digest:
        raise OutputExistsError(
            f"a release {held.id!r} of {held.client!r} lies here with SHA-256 {held.sha256[:16]}..., this one has "
            f"{digest[:16]}...; a release is never replaced, send this one under another id."
        )
    return held
