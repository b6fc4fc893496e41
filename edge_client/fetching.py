"""Fetching intermediates in parts, so that a connection that breaks costs one part and not all of them.

A delivery is named by what was asked for and a seed. Both are kept, with the parts that have come, in a hidden folder
beside the pictures until all is there: the next call asks for what is missing. Sending a release is here too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from collafuse.core import intermediate as intermediates
from collafuse.core import received, tensorfile
from collafuse.core.atomic import write_bytes
from collafuse.core.conditioning import MAX_TEXT_WIDTH
from collafuse.core.errors import FileFormatError, MismatchError, OutputExistsError, RefusedError, StorageError
from collafuse.core.intermediate import IntermediateFile, Source
from collafuse.core.metadata import shown
from collafuse.core.parts import Parts

from .wanted import Came, Wanted

if TYPE_CHECKING:
    from .remote import Remote

PART_IMAGES = 64
FOLDER = ".fetching"
REQUEST = "request.json"
MAX_REPLY_BYTES = 4 << 20
LONGEST_SECONDS, SPARE_SECONDS = 3600.0, 60.0
"""How long a server's own deadline is believed, and what an answer may take beyond it."""
BLOCK_BYTES = 1 << 20
ID_DIGITS = 32


@dataclass(frozen=True)
class Terms:
    """What a server says of a request: how many images it may be for, and in how many seconds it is answered."""

    images: int
    seconds: float


@contextmanager
def fetched(
    remote: Remote,
    wanted: Wanted,
    image_shape: tuple[int, int, int],
    folder: Path,
    *,
    part_images: int = PART_IMAGES,
    fits: Callable[[Source], None] = lambda part: None,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> Iterator[Parts]:
    """The whole delivery, while the block lasts; ``advance`` hears of each part, of ``part_images`` or of as many as
    the server makes at once, if that is fewer. No more than a part is held. ``fits`` refuses a part that could not be
    finished, before another is asked for.

    What has come is forgotten when the block ends well; otherwise the next call for the same goes on with it. Raises
    OutputExistsError where parts of another delivery lie there, unless ``overwrite`` gives them up, MismatchError when
    a part is not what was asked for or the server's model changes between two, StorageError where what came cannot be
    kept or removed, and what ``fits`` and :meth:`Remote.ask` raise.
    """
    kept = folder / FOLDER
    terms = cache(lambda: _terms(remote))  # asked for once, and not where everything has come
    wanted, at_once = _remembered(wanted, remote.url, kept, lambda: min(part_images, terms().images), overwrite)
    with ExitStack() as stack:
        files = []
        for start in range(0, wanted.count, at_once):
            rows = range(start, min(start + at_once, wanted.count))
            for file in _part(remote, wanted, rows, image_shape, fits, kept, terms):
                files.append(stack.enter_context(file))
                file.let_go()
            advance(len(rows))
        try:
            whole = Parts(files)
        except MismatchError:
            _forget(kept)
            raise
        yield whole
    _forget(kept)


def _forget(kept: Path) -> None:
    """Remove what came. Raises StorageError where that is not possible; that it is gone already is no fault."""
    try:
        shutil.rmtree(kept)
    except OSError as error:
        if kept.exists():
            raise StorageError(
                f"cannot remove {kept} ({error.strerror or error}), which keeps what came from the server while a job "
                "runs; remove it by hand, or choose another folder."
            ) from error


def is_interrupted(folder: Path) -> bool:
    """Whether an earlier delivery to this folder has not come to its end."""
    return (folder / FOLDER / REQUEST).exists()


def _remembered(
    wanted: Wanted, url: str, kept: Path, part_images: Callable[[], int], overwrite: bool
) -> tuple[Wanted, int]:
    """The delivery with its seed, and the images of a part: those of an interrupted call for the same, or new ones."""
    request = json.loads(json.dumps({"url": url, **asdict(wanted)}))
    said: Any = None
    try:
        said = json.loads((kept / REQUEST).read_bytes())
        seed, chosen = said.pop("chosen_seed"), said.pop("part_images")
        if said == request and type(seed) is type(chosen) is int and chosen > 0:
            return replace(wanted, seed=seed), chosen
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        pass  # nothing there, or nothing that can be gone on with
    another = isinstance(said, dict) and said.keys() == request.keys() and said != request
    if another and not overwrite and any(kept.glob("*.safetensors")):
        different = ", ".join(f"{key} {shown(said[key])}" for key in request if said[key] != request[key])
        raise OutputExistsError(
            f"{kept} holds what came of another order that was interrupted ({different}); run that command again, "
            "choose another folder, or pass --overwrite to do without what came."
        )
    chosen = part_images()
    _forget(kept)
    seed = secrets.randbits(63) if wanted.seed is None else wanted.seed
    write_bytes(kept / REQUEST, json.dumps({**request, "chosen_seed": seed, "part_images": chosen}).encode())
    return replace(wanted, seed=seed), chosen


def _terms(remote: Remote) -> Terms:
    """What the server says of a request. Raises FileFormatError for what is none."""
    said = remote.ask("GET", "/v1/model", limit=MAX_REPLY_BYTES).json()
    images, seconds = said.get("request_images"), said.get("deadline_seconds")
    if not isinstance(images, int) or not isinstance(seconds, int | float) or images < 1 or not 0 < seconds < math.inf:
        raise FileFormatError(
            f"{remote.url} says that it makes {shown(images)} images for one request, in {shown(seconds)} seconds; "
            "expected two numbers. It is no CollaFuse server of this version, check the URL."
        )
    return Terms(images, min(float(seconds), LONGEST_SECONDS))


def _part(
    remote: Remote,
    wanted: Wanted,
    rows: range,
    image_shape: tuple[int, int, int],
    fits: Callable[[Source], None],
    kept: Path,
    terms: Callable[[], Terms],
) -> Iterator[IntermediateFile]:
    """One part, from the disk if it came before; in several files where the server makes fewer at once by now."""
    path = kept / f"{rows.start}-{rows.stop}.safetensors"
    if path.exists():
        try:
            file = _found(path, wanted, rows, image_shape, fits)
        except (FileFormatError, MismatchError):
            path.unlink()
        else:
            yield file
            return
    if len(rows) > (most := terms().images):
        for start in rows[::most]:
            fewer = range(start, min(start + most, rows.stop))
            yield from _part(remote, wanted, fewer, image_shape, fits, kept, terms)
        return
    body = {name: value for name, value in asdict(wanted).items() if value is not None}
    body |= {"start": rows.start, "stop": rows.stop}
    # Two arrays of float32 images, labels of at most a byte each, text in half precision, and the header.
    described = 4096 + (0 if wanted.text is None else 2 * MAX_TEXT_WIDTH)
    limit = 2 * 4 * len(rows) * int(np.prod(image_shape)) + described * len(rows) + tensorfile.MAX_HEADER_BYTES
    seconds = terms().seconds + SPARE_SECONDS
    data = remote.ask("POST", "/v1/intermediates", body=body, limit=limit, seconds=seconds).content
    source = f"the reply of {remote.url}"
    tensors = tensorfile.from_bytes(data, intermediates.KIND, intermediates.VERSION, source=source)
    part = intermediates.from_tensorfile(tensors, source)
    wanted.check(Came.in_memory(part), rows, image_shape)
    fits(part)
    write_bytes(path, data)
    yield IntermediateFile(path)


def _found(
    path: Path, wanted: Wanted, rows: range, image_shape: tuple[int, int, int], fits: Callable[[Source], None]
) -> IntermediateFile:
    """A part that came before. Raises FileFormatError where it is damaged, MismatchError where it is another."""
    file = IntermediateFile(path)
    try:
        wanted.check(Came.in_file(file), rows, image_shape)
        fits(file)
    except (FileFormatError, MismatchError):
        file.close()
        raise
    return file


def send_release(remote: Remote, path: Path) -> dict[str, Any]:
    """Send a release file; returns what the server holds then: client, id, images. Sending it again changes nothing.

    Raises before anything is sent FileFormatError when the file is no release, RefusedError when it is too large there.
    Raises FileFormatError too when the server does not say that it holds these very bytes.
    """
    received.read(path)
    digest, size = hashlib.sha256(), path.stat().st_size
    for block in _blocks(path):
        digest.update(block)
    name = f"/v1/releases/{digest.hexdigest()[:ID_DIGITS]}"  # named by its digest: once more is the same one
    headers = {
        "Content-Length": str(size),
        "Content-Digest": f"sha-256=:{base64.b64encode(digest.digest()).decode()}:",
        "Content-Type": "application/octet-stream",
    }
    # Asked first, so that a token or a size that is not taken is refused before the upload: a server that hangs up in
    # the midst of one may not be heard.
    known = remote.ask("GET", "/v1/releases", limit=MAX_REPLY_BYTES).json()
    held = known.get("releases")
    for one in held if isinstance(held, list) else []:
        if _acknowledges(one, digest.hexdigest()):
            return dict(one)
    most = known.get("release_bytes")
    if isinstance(most, int) and size > most:
        raise RefusedError(
            f"{path} has {size} bytes, the server accepts at most {most}; ask its operator for a larger --max-release."
        )
    said = remote.ask("PUT", name, content=lambda: _blocks(path), headers=headers, limit=MAX_REPLY_BYTES).json()
    if not _acknowledges(said, digest.hexdigest()):
        raise FileFormatError(
            f"{remote.url} does not say that it holds {path} (SHA-256 {digest.hexdigest()[:16]}...); it is no "
            "CollaFuse server of this version, check the URL and send it again."
        )
    return said


def _acknowledges(said: Any, sha256: str) -> bool:
    """Whether this is a release that a server holds, with these bytes."""
    kinds = {"client": str, "id": str, "images": int, "sha256": str}
    whole = isinstance(said, dict) and all(isinstance(said.get(name), kind) for name, kind in kinds.items())
    return whole and said["sha256"] == sha256


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except OSError as error:
        raise FileFormatError(f"cannot read {path}: {error.strerror}; check the name of the release.") from error
