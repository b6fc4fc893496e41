"""A whole run with canaries in it, and a search for them in every byte that leaves its place.

Planted: names of files and folders, EXIF, text in a picture, the seed of a site, a token, the paths of the machine.
"""

from __future__ import annotations

import base64
import json
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from tests.cli.test_serve import serving

pytestmark = pytest.mark.torture  # in short: tests of each format say that it holds the allowed fields and no others

SEED = 3918273645
LABEL = "CanaryLabel"
ANSWERED = (
    "/",
    "/openapi.json",
    "/livez",
    "/readyz",
    "/metrics",
    "/v1/model",
    "/v1/state",
    "/v1/gallery",
    "/v1/releases",
)
NAMES = ("CanaryFolder", LABEL, "canary-mueller-hans", "CanaryExif", "CanaryText", "CanaryNotes")
SITE = """
data: {{dataset: folder, path: "{images}", image_size: 8, channels: 1, held_out: 0.2}}
client:
  network: {{channels: 8, multipliers: [1], blocks: 1}}
  training: {{steps: 4, batch_size: 4, warmup_steps: 1, log_every: 1, checkpoint_every: 2, seed: {seed}}}
  sampler: {{steps: 2}}
server: {{network: {{channels: 8, multipliers: [1], blocks: 1}}}}
clients:
  north: {{cut: {{sigma: 0.5}}, ledger: "{ledger}", share_labels: false}}
"""
SERVER = """
data: {dataset: folder, path: nowhere, image_size: 8, channels: 1}
server:
  network: {channels: 8, multipliers: [1], blocks: 1}
  training: {steps: 4, batch_size: 4, warmup_steps: 1, log_every: 1, checkpoint_every: 2}
  sampler: {steps: 2}
clients: {north: {cut: {sigma: 0.5}}}
"""


def plant_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for label in (f"{LABEL}1", f"{LABEL}2"):
        (folder / label).mkdir(parents=True)
        for index in range(10):
            image = Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8))
            exif, text = Image.Exif(), PngImagePlugin.PngInfo()
            exif[ExifTags.Base.ImageDescription] = "CanaryExif of a patient"
            text.add_text("Comment", "CanaryText")
            name = f"canary-mueller-hans-{index}"
            image.save(folder / label / f"{name}.png", pnginfo=text, exif=exif)
    (folder / "CanaryNotes.txt").write_text("not an image")


def forms(secret: str) -> set[bytes]:
    """A secret as it stands, in base64 and in hexadecimal digits."""
    raw = secret.encode()
    return {raw, base64.b64encode(raw).rstrip(b"=")[:-1], raw.hex().encode(), raw.lower(), raw.upper()}


class Search:
    """Looks for canaries in what left its place."""

    def __init__(self, secrets: list[str]) -> None:
        self.wanted = {form: secret for secret in secrets for form in forms(secret)}
        self.files = self.bytes = 0

    def data(self, what: str, data: bytes | str, allowed: str = "") -> None:
        raw = data.encode() if isinstance(data, str) else data
        self.files, self.bytes = self.files + 1, self.bytes + len(raw)
        found = {secret for form, secret in self.wanted.items() if form in raw} - {allowed}
        assert not found, f"{what} holds {found}"

    def path(self, path: Path, allowed: str = "") -> None:
        for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
            self.data(str(file), file.read_bytes(), allowed)
            self.data(f"the name {file.name}", file.name)
            if file.suffix == ".png":
                with Image.open(file) as picture:
                    assert not dict(picture.getexif()), file
                    self.data(f"text of {file}", json.dumps({k: str(v) for k, v in picture.info.items()}))


def ended(process: subprocess.Popen[str]) -> str:
    """What a service said until it was asked to end."""
    process.terminate()
    assert process.stderr is not None
    return process.stderr.read()


def test_nothing_that_leaves_its_place_holds_a_secret(tmp_path, nursery, figure):
    site, server, device = (tmp_path / name for name in ("CanaryFolder-site", "at-server", "device"))
    for folder in (site, server, device):
        folder.mkdir()
    plant_images(site / "images")
    (site / "site.yaml").write_text(SITE.format(images=site / "images", ledger=site / "ledger.sqlite", seed=SEED))
    (server / "server.yaml").write_text(SERVER)
    said: dict[str, str] = {}

    scopes = ("--scope", "sample", "--scope", "release", "--scope", "admin")
    add = ("tokens", "add", "run", "--client", "north", *scopes, "-o", "token")
    said["the server, adding a token"] = nursery.at(server).run(*add)
    token = (server / "token").read_text().strip()
    search = Search([*NAMES, str(SEED), token, token.removeprefix("collafuse_"), str(tmp_path), str(Path.home())])

    for folder in (site, device):
        (folder / "token").write_text(token)
    at = nursery.at(site)
    with serving(server, "--receive-only") as (process, url):
        send = ("--server", url, "--token-file", "token")
        at.run("release", "site.yaml", "--client", "north", "--new-ledger", "-o", "north.safetensors", *send)
        said["the server, receiving"] = ended(process)
    search.path(site / "north.safetensors")

    said["the site, training"] = at.run("train-client", "site.yaml", "--client", "north", "-o", "run")
    said["the site, exporting"] = at.run("export-client", "run", "--client", "north", "-o", "north.onnx")
    search.path(site / "run/clients/north/metrics.jsonl")
    # A bundle names its labels, for the site's own devices; the server of this site never hears of them.
    search.path(site / "north.onnx", allowed=LABEL)
    search.path(site / "run/clients/north/weights.safetensors", allowed=LABEL)
    (device / "north.onnx").write_bytes((site / "north.onnx").read_bytes())

    learn = ("train-server", "server.yaml", "--releases", "run/server/releases", "-o", "run")
    said["the server, training"] = nursery.at(server).run(*learn)
    at = nursery.at(device)
    with serving(server) as (process, url):
        said["the device, fetching"] = at.run(
            "finish", "north.onnx", "--server", url, "--token-file", "token", "-n", 4, "-o", "pictures"
        )
        (device / "wrong").write_text(f"{token}x")
        said["the device, refused"] = at.run(
            "finish", "north.onnx", "--server", url, "--token-file", "wrong", "-o", "none", code=13
        )
        headers = {"Authorization": f"Bearer {token}"}
        with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
            assert client.get("/v1/nowhere").status_code == 404
            for path in ANSWERED:
                reply = client.get(path)
                assert reply.is_success, (path, reply.text)
                search.data(f"GET {path}", reply.content)
            for body in ({"client": "nobody"}, {"client": "north", "count": -1}, {"client": 7}, {"client": "north"}):
                search.data(f"POST {body}", client.post("/v1/intermediates", json=body).content)
        (device / "spoiled.onnx").write_bytes((device / "north.onnx").read_bytes()[:-9])
        said["the device, with a spoiled bundle"] = at.run("inspect", "spoiled.onnx", code=5)
        said["the server, delivering"] = ended(process)
    for name in ("pictures", "run"):
        search.path((device if name == "pictures" else server) / name)
    for what, text in said.items():
        search.data(what, text)
    assert said["the site, training"] and said["the device, fetching"]  # so that there was something to search
    figure(f"secrets: none of {len(search.wanted)} forms of {len(NAMES) + 5} canaries in {search.files} things, "
           f"{search.bytes >> 10} KiB, that left a site, a server or a device")  # fmt: skip
