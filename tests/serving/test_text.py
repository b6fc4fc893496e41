"""Text over HTTP: the request carries the numbers, the reply the same file as without a network."""

from __future__ import annotations

import base64
from functools import partial

import numpy as np
import pytest
from PIL import Image

from collafuse.core import intermediate as intermediates
from collafuse.core.conditioning import ConditionSpace, TextSpace
from collafuse.core.errors import MismatchError
from collafuse.core.noise import SIGMA_MAX
from collafuse.core.texts import MAX_ASKED, EncodedText, Prompts, to_bytes
from collafuse.learning.weights import TrainedModel
from collafuse.nodes.runfolder import NodeFolder
from collafuse.nodes.server import Server
from collafuse.nodes.sites import Site
from collafuse.serving.admission import Limits
from collafuse.serving.engine import Engine
from collafuse.serving.orders import Order
from edge_client.fetching import fetched
from edge_client.remote import Remote, Trust
from edge_client.wanted import Wanted, WantedText
from tests.bundles import steered_bundle
from tests.cli.conftest import InProcess
from tests.nodes.sites import config
from tests.serving.conftest import ANYWHERE, run_service
from tests.tiny import CPU, denoiser

SPACE = TextSpace("t5-4-00", 4)
TEXT = EncodedText(SPACE, np.array([[1, -1, 1, -1], [-1, -1, 1, 1]], dtype=np.float16))
FOLDERS = ("web", "by-file", "without")


@pytest.fixture(scope="module")
def server():
    sites = {"north": Site(0.5, ("x",), text=True), "east": Site(0.4, ("y",))}
    model = TrainedModel(denoiser(label_names=("x", "y"), text=SPACE), "server", 0.4, SIGMA_MAX, 0, "id")
    return Server(config({name: {"cut": {"sigma": site.sigma_cut}} for name, site in sites.items()}), model, sites, CPU)


@pytest.fixture(scope="module")
def of_text(server, tmp_path_factory):
    """One service of this server, for tests that change nothing in it."""
    folder = NodeFolder(tmp_path_factory.mktemp("of-text"))
    with run_service(folder, Engine(server, 4), Limits(), ANYWHERE) as one:
        yield one


def rows(text: EncodedText = TEXT) -> list[str]:
    return [base64.b64encode(row.astype("<f2").tobytes()).decode() for row in text.rows]


def ask(http, client="north", **text):
    body = {"client": client, "count": 5, "seed": 3, "text": {"encoder": SPACE.encoder, "rows": rows()} | text}
    return http.post("/v1/intermediates", json=body)


def test_a_device_fetches_what_the_server_would_write_to_a_file(serve, server, tmp_path):
    running = serve(server, slots=4)
    with Remote(running.url, Trust(running.token())) as remote:
        wanted = Wanted("north", 5, seed=3, text=WantedText.of(TEXT))
        with fetched(remote, wanted, (1, 4, 4), tmp_path / "out", part_images=2) as whole:
            found = whole.block(slice(0, 5))
    file = server.deliver("north", 5, text=TEXT, seed=3, batch_size=4)
    assert np.abs(found.x - file.x).max() < 1e-4
    assert found.text.space == SPACE and np.array_equal(found.text.rows, file.text.rows)


def test_a_part_of_a_large_delivery_holds_nothing_of_the_rest(server):
    part = Order.plan(server, "north", 10_000, labels=["x"], text=TEXT, rows=range(4999, 5001)).planned
    assert np.array_equal(part.text.rows, TEXT.rows) and part.labels.tolist() == [[1, 0], [1, 0]]
    assert part.text.rows.base is None and part.labels.base is None


def test_one_batch_serves_text_and_labels_and_gives_the_bytes_of_the_file(serve, server):
    running = serve(server, slots=8)
    with running.http() as http:
        reply = ask(http)
    file = server.deliver("north", 5, text=TEXT, seed=3, batch_size=8)
    assert reply.status_code == 200
    found = intermediates.from_tensorfile(
        intermediates.tensorfile.from_bytes(reply.content, intermediates.KIND, 1, source="reply"), "reply"
    )
    assert np.abs(found.x - file.x).max() < 1e-4 and np.array_equal(found.text.rows, file.text.rows)


@pytest.mark.parametrize(
    ("text", "status", "says"),
    [
        ({"encoder": "t5-4-11"}, 422, "the request holds text of the encoder t5-4-11"),
        ({"encoder": "../x"}, 422, "text.encoder"),
        ({"rows": []}, 422, "text.rows"),
        ({"rows": rows() * MAX_ASKED}, 422, "text.rows"),
        ({"rows": ["not base64!"]}, 422, "no base64"),
        ({"rows": [base64.b64encode(bytes(6)).decode()]}, 422, "a text of 6 bytes, expected 4 float16"),
        ({"rows": rows(EncodedText(SPACE, TEXT.rows * 3))}, 422, "root mean square 3"),
        ({"rows": rows(EncodedText(SPACE, TEXT.rows * np.float16(np.nan)))}, 422, "not finite"),
        ({"rows": ["A" * 20_000]}, 422, "text.rows"),
        ({"rows": ["A" * 70_000]}, 413, "at most 65536"),
        ({"rows": rows() * 3}, 422, "6 texts and 5 images"),
        ({"prompts": ["a cat"]}, 422, "text.prompts"),
    ],
)
def test_what_is_no_text_of_this_model_is_refused(of_text, text, status, says):
    with of_text.http() as http:
        reply = ask(http, **text)
    assert reply.status_code == status and says in reply.json()["message"]


def test_text_that_was_not_released_at_a_clients_cut_is_refused(of_text):
    with of_text.http(of_text.token("east")) as http:
        assert "no site released text at or below sigma 0.4" in ask(http, "east").json()["message"]
        assert http.get("/v1/model").json()["text_encoder"] is None  # and it is not told of any


def test_it_says_what_text_it_takes(of_text):
    with of_text.http() as http:
        told = http.get("/v1/model").json()
    assert (told["text_encoder"], told["text_width"]) == (SPACE.encoder, 4)
    assert told["clients"][0]["text"] is True


def test_text_that_a_site_keeps_is_chosen_at_its_device_and_not_sent(serve, tmp_path, monkeypatch, capsys):
    """No text was shared with this server, which refuses a request that holds one: that it is answered proves the
    silence."""
    labels, sites = ("x", "y"), {"north": Site(0.5, ("x", "y"))}
    (tmp_path / "north.onnx").write_bytes(steered_bundle((1, 4, 4), ConditionSpace(labels, SPACE), text_kept=True))
    knows = TrainedModel(denoiser(label_names=labels), "server", 0.5, SIGMA_MAX, 0, "id")
    server = Server(config({"north": {"cut": {"sigma": 0.5}, "handover": 1.0}}), knows, sites, CPU)
    running, finish = serve(server, slots=4), partial(InProcess(tmp_path, monkeypatch, capsys), "finish", "north.onnx")
    (tmp_path / "token").write_text(running.token())
    (tmp_path / "prompts").write_bytes(to_bytes(Prompts(TEXT, ("a cat", "a dog"))))
    asked = ("--server", running.url, "--token-file", "token", "--seed", 3, "--text", "prompts")
    assert "2 texts and 1 images" in finish(*asked, "-n", 1, "-o", "web", code=2).stderr
    assert not (tmp_path / "web").exists() and running.service.engine.state().finished == 0  # nothing was fetched
    finish(*asked, "-n", 4, "-o", "web")
    (tmp_path / "file").write_bytes(intermediates.to_bytes(server.deliver("north", 4, seed=3, batch_size=4)))
    finish("file", "--text", "prompts", "-o", "by-file")
    finish("file", "-o", "without")
    web, file, without = ([Image.open(tmp_path / name / f"00000{i}.png") for i in range(4)] for name in FOLDERS)
    assert [one.text["collafuse:prompt"] for one in web] == ["a cat", "a cat", "a dog", "a dog"]
    assert [(one.tobytes(), one.text) for one in web] == [(one.tobytes(), one.text) for one in file]
    assert [one.tobytes() for one in web] != [one.tobytes() for one in without]


def test_a_model_without_text_says_so(serve, tmp_path):
    running = serve()
    with Remote(running.url, Trust(running.token())) as remote:
        wanted = Wanted("north", 2, text=WantedText.of(TEXT))
        with pytest.raises(MismatchError, match="trained without text"), fetched(remote, wanted, (1, 4, 4), tmp_path):
            pass
