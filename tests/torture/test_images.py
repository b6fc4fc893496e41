"""Files that say they are images and are bombs, cut short or something else: refused at once, in little memory."""

from __future__ import annotations

import io
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from collafuse.data.images import MAX_PIXELS
from tests.torture.runtimes import run_in

SECONDS = 1.0
MEMORY_MB = 256


def png(width: int, height: int, *, colour: int = 2, rows: int = 0, more: bytes = b"") -> bytes:
    """A PNG that claims a size and holds so many of its rows, all black, which compress a thousandfold."""
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    row = bytes(1 + width * {0: 1, 2: 3, 6: 4}[colour])
    squeeze = zlib.compressobj(9)
    data = b"".join(squeeze.compress(row) for _ in range(rows)) + squeeze.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def claiming(data: bytes, at: int, form: str, *values: int) -> bytes:
    """A file with other numbers at a place of its header."""
    return data[:at] + struct.pack(form, *values) + data[at + struct.calcsize(form) :]


def hostile() -> Iterator[tuple[str, bytes]]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    small = Image.new("RGB", (8, 8))
    yield "50,000 x 50,000.png", png(50_000, 50_000, rows=50)
    yield "largest side.png", png(2**31 - 1, 2**31 - 1)
    yield "grey, just too large.png", png(7072, 7072, colour=0, rows=7072)
    yield "nothing of what it claims.png", png(7000, 7000, colour=6)
    yield "half of what it claims.png", png(4000, 4000, colour=2, rows=2000)
    yield "a text of 64 MiB.png", png(8, 8, rows=8, more=chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(64 << 20), 9)))
    yield (
        "a profile of 64 MiB.png",
        png(8, 8, rows=1, more=chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(64 << 20), 9))),
    )
    jpeg = saved(noise, "JPEG")
    yield "65,500 x 65,500.jpg", claiming(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", 65_500, 65_500)
    bmp = saved(small, "BMP")
    yield "100,000 x 100,000.bmp", claiming(bmp, 18, "<ii", 100_000, 100_000)
    yield "as far as there is room.bmp", claiming(bmp, 18, "<ii", 7000, 7000)
    tiff = saved(small, "TIFF")
    yield "cut short.tif", tiff[: len(tiff) // 2]
    webp = saved(noise, "WEBP", lossless=True)
    yield "cut short.webp", webp[: len(webp) // 2]
    yield "cut short.png", saved(noise, "PNG")[:-3000]
    yield "cut short.jpg", jpeg[: len(jpeg) // 2]
    frames = [Image.new("RGB", (64, 64), (i, 0, 0)) for i in range(50)]
    yield "fifty pictures.png", saved(frames[0], "PNG", save_all=True, append_images=frames[1:])
    yield "fifty pictures.webp", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("image.png", bytes(32 << 20))
    yield "an archive.png", archive.getvalue()
    for kind in ("GIF", "PDF", "EPS", "ICO", "PPM", "TGA", "PCX"):
        yield f"{kind} in disguise.png", saved(small, kind)
    yield "a drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
    yield "a page.jpg", b"<html><script>alert(1)</script></html>"
    yield "a program.png", b"\x7fELF" + bytes(500)
    yield "nothing.png", b""


READ_EACH = """
import json, sys, time, warnings
from pathlib import Path
from collafuse.core.errors import DataError
from collafuse.data.images import read_image
from edge_client import machine

warnings.simplefilter("ignore")
for path in sorted(Path(sys.argv[1]).iterdir()):
    started = time.process_time()
    try:
        read_image(path, 3, 32)
        said = None
    except DataError as error:
        said = str(error)
    print(json.dumps([path.name, said, time.process_time() - started, machine.peak_memory_mb()]))
"""


def test_hostile_images_are_refused_at_once_in_little_memory(tmp_path, figure):
    for name, data in hostile():
        (tmp_path / name).write_bytes(data)
    done = run_in(sys.executable, READ_EACH, tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(list(hostile()))
    for name, said, seconds, _ in rows:
        assert said is not None and name in said and "\n" not in said, (name, said)
        assert seconds < SECONDS, (name, seconds)
    peak = rows[-1][-1]
    assert peak < MEMORY_MB, [(name, held) for name, _, _, held in rows]
    slowest = max(seconds for _, _, seconds, _ in rows)
    figure(f"{len(rows)} hostile images: all refused by name, slowest {slowest:.2f} s, {peak:.0f} MB at most")


@pytest.mark.torture
def test_the_largest_image_that_is_read_needs_a_bounded_amount(tmp_path, figure):
    side = int(MAX_PIXELS**0.5)
    (tmp_path / "large.png").write_bytes(png(side, side, colour=6, rows=side))
    done = run_in(sys.executable, READ_EACH, tmp_path, timeout=300)
    ((_, said, seconds, peak),) = map(json.loads, done.stdout.splitlines())
    assert said is None and peak < 2048
    size = (tmp_path / "large.png").stat().st_size
    figure(f"the largest image that is read ({size >> 10} KiB as a file): {seconds:.1f} s, {peak:.0f} MB")
