"""The page: what it shows, to whom, and in a real browser."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess

import httpx
import numpy as np
import pytest
from PIL import Image

from collafuse.serving.page import gallery
from tests.serving.parts import SECONDS

BROWSER = os.environ.get("COLLAFUSE_BROWSER") or shutil.which("chromium") or shutil.which("google-chrome")


def test_the_page_is_for_everyone_and_what_it_shows_for_admins(serve):
    running = serve()
    reply = httpx.get(f"{running.url}/", timeout=SECONDS)
    assert reply.headers["content-type"].startswith("text/html")
    nonce = re.search(r"script-src 'nonce-([\w-]+)'", reply.headers["content-security-policy"]).group(1)
    assert reply.text.count(f'nonce="{nonce}"') == 2
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", reply.text)
    with running.http() as http:
        assert http.get("/v1/state").status_code == http.get("/v1/gallery").status_code == 403
    with running.http(running.token("operator", "admin")) as http:
        assert http.get("/v1/gallery").status_code == 204
        http.post("/v1/intermediates", json={"client": "north", "count": 5})
        state = http.get("/v1/state").json()
        picture = Image.open(io.BytesIO(http.get("/v1/gallery").content))
    assert (state["rows"], state["images_finished"], state["requests"], state["releases"]) == (4, 5, 0, 0)
    assert picture.format == "PNG" and picture.mode == "RGB"


def test_a_server_without_a_model_has_a_state_too(serve):
    running = serve(receive_only=True)
    with running.http(running.token("operator", "admin")) as http:
        assert http.get("/v1/state").json()["server_model"] is None
        assert http.get("/v1/gallery").status_code == 204


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_gallery_shows_images_of_any_number_of_channels(channels):
    picture = Image.open(io.BytesIO(gallery([np.zeros((channels, 4, 4), np.float32)] * 20)))
    assert picture.width > picture.height


@pytest.mark.skipif(BROWSER is None, reason="no chromium is installed (or named by COLLAFUSE_BROWSER)")
def test_a_browser_shows_state_gallery_and_api(serve, tmp_path):
    running = serve()
    token = running.token("operator", "admin")
    with running.http(token) as http:
        http.post("/v1/intermediates", json={"client": "north", "count": 5})

    def dom(address):
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
        command += ["--virtual-time-budget=3000", "--dump-dom", address]
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout

    shown = dom(f"{running.url}/#{token}")
    assert "It is ready." in shown
    assert "<td>images finished</td><td>5</td>" in shown
    assert re.search(r'<img id="gallery"[^>]* src="blob:', shown)
    assert "<td>POST /v1/intermediates</td>" in shown
    assert token not in shown
    assert "this token is not known here" in dom(f"{running.url}/#collafuse_wrong")
