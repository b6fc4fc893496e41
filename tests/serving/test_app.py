"""The service over HTTP: what it delivers, what it says of itself, and how it refuses."""

from __future__ import annotations

import socket
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest

from collafuse.core import intermediate as intermediates
from collafuse.core import tensorfile
from collafuse.nodes.server import Server
from tests.serving.parts import SECONDS, Gated
from tests.tiny import CPU


def read(data):
    file = tensorfile.from_bytes(data, intermediates.KIND, intermediates.VERSION, source="the reply")
    return intermediates.from_tensorfile(file, "the reply")


def ask(http, **body):
    return http.post("/v1/intermediates", json={"client": "north"} | body)


def test_file_and_http_give_the_same_bytes_at_the_same_batch_shape(running):
    with running.http() as http:
        reply = ask(http, count=8, seed=3)
    server = Server.load(running.folder, CPU)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.content == intermediates.to_bytes(server.deliver("north", 8, seed=3, batch_size=4))


def test_labels_half_precision_sampler_and_rows_are_as_asked(running):
    with running.http() as http:
        one = read(ask(http, count=2, labels=["y"], half=True, sampler="euler").content)
        part = read(ask(http, count=9, seed=1, start=4, stop=6).content)
        whole = read(ask(http, count=9, seed=1).content)
    assert (one.x.dtype, one.sampler, one.sigma) == (np.float16, "euler", 0.5)
    assert one.labels[:, one.label_names.index("y")].all()
    assert np.abs(part.x - whole.x[4:6]).max() < 1e-4
    assert np.array_equal(part.labels, whole.labels[4:6])


def test_it_describes_the_model_to_each_token_as_far_as_it_may_know(running):
    with running.http() as http:
        own = http.get("/v1/model").json()
    with running.http(running.token("operator", "admin")) as http:
        everything = http.get("/v1/model").json()
    assert [site["client"] for site in own["clients"]] == ["north"]
    assert own["clients"][0] == {
        "client": "north",
        "sigma_cut": 0.5,
        "sigma": 0.5,
        "labels": ["x", "y"],
        "dealt_labels": ["x", "y"],
        "text": False,
    }
    assert (own["image_shape"], own["batch"], own["steps"]) == ([1, 4, 4], 4, 4)
    assert (own["request_images"], own["deadline_seconds"]) == (256, 120.0)
    assert own["server_model"] == Server.load(running.folder, CPU).model.id
    assert [site["client"] for site in everything["clients"]] == ["east", "north"]


def test_the_weights_are_for_admins_only(running):
    with running.http() as http:
        assert http.get("/v1/model/weights").status_code == 403
    with running.http(running.token("operator", "admin")) as http:
        assert http.get("/v1/model/weights").content == running.folder.weights.read_bytes()


WRONG = [
    ({"client": "west"}, 403, "belongs to client 'north', not to 'west'"),
    ({"labels": ["nine"]}, 422, "label 'nine' is not known; known are x, y"),
    ({"count": 300}, 422, "300 images in one request; at most 256"),
    ({"count": 5, "start": 5}, 422, "images 5 to 5 of 5"),
    ({"count": 0}, 422, "count: Input should be greater than or equal to 1"),
    ({"count": "3"}, 422, "body.count: Input should be a valid integer"),
    ({"colour": 1}, 422, "body.colour: Extra inputs are not permitted"),
    ({"sampler": "heun"}, 409, "below 0.525 where a release of clients.north teaches nothing"),
    ({"seed": -1}, 422, "body.seed"),
]


@pytest.mark.parametrize(("body", "status", "says"), WRONG)
def test_what_cannot_be_delivered_is_refused_with_the_sentence_it_has_elsewhere(running, body, status, says):
    with running.http() as http:
        reply = ask(http, **body)
    assert reply.status_code == status
    assert says in reply.json()["message"]
    assert set(reply.json()) == {"error", "message", "retry_after"}


def test_what_is_no_json_and_what_is_not_there_are_refused_in_the_same_form(running):
    with running.http() as http:
        replies = [
            http.post("/v1/intermediates", content=b"{", headers={"Content-Type": "application/json"}),
            http.get("/v1/nothing"),
            http.get("/v1/model/"),  # no redirect: behind a proxy it would lead to plain HTTP
            http.delete("/v1/model"),
        ]
    assert [reply.status_code for reply in replies] == [422, 404, 404, 405]
    assert all(set(reply.json()) == {"error", "message", "retry_after"} for reply in replies)


def test_a_full_line_is_a_503_and_a_used_up_share_a_429_that_say_when_to_ask_again(serve, trained_folder):
    server = Server.load(trained_folder, CPU)
    gate = Gated(server.model.denoiser)
    object.__setattr__(server.model, "denoiser", gate)
    running = serve(server, slots=2, queue_images=10, request_images=10, images_per_minute=12)
    with running.http() as http, ThreadPoolExecutor(1) as pool:
        long = pool.submit(ask, http, count=8)
        assert gate.asked.acquire(timeout=SECONDS)
        full = [ask(http, count=4) for _ in range(3)]  # refused requests use up nothing
        used = ask(http, count=5)
        gate.open()
        assert long.result(SECONDS).status_code == 200
    assert [reply.status_code for reply in full] == [503] * 3
    assert "8 images to make and accepts at most 10" in full[0].json()["message"]
    assert used.status_code == 429
    assert "12 images a minute" in used.json()["message"]
    for reply in (*full, used):
        assert int(reply.headers["retry-after"]) == reply.json()["retry_after"] >= 1


def test_what_nobody_expected_is_a_500_that_shows_nothing(serve, monkeypatch):
    running = serve()
    monkeypatch.setattr("collafuse.serving.app.gallery", None)
    with running.http(running.token("operator", "admin")) as http:
        ask(http)
        reply = http.get("/v1/gallery")
    assert reply.status_code == 500
    assert reply.json()["message"].startswith("the server failed at this; its log says why")


def test_it_is_alive_and_ready_while_its_model_makes_steps(serve, monkeypatch):
    monkeypatch.setattr("collafuse.serving.service.READY_FOR_SECONDS", 0.0)
    running = serve()
    with running.http() as http:
        assert http.get("/livez").json() == http.get("/readyz").json() == {"status": "ok"}
    assert running.service.engine.state().steps >= 1
    running.service.engine.stop()
    with running.http() as http:
        replies = [http.get(path) for path in ("/livez", "/readyz")]
    assert [reply.status_code for reply in replies] == [503, 503]
    assert all(reply.json() == {"status": "the engine has stopped; restart the server."} for reply in replies)


def test_a_model_that_does_not_answer_is_not_ready(serve, monkeypatch, trained_folder):
    monkeypatch.setattr("collafuse.serving.service.READY_SECONDS", 0.05)
    server = Server.load(trained_folder, CPU)
    gate = Gated(server.model.denoiser)
    object.__setattr__(server.model, "denoiser", gate)
    running = serve(server)
    with running.http() as http:
        reply = http.get("/readyz")
        assert http.get("/livez").status_code == 200
    gate.open()
    assert reply.status_code == 503
    assert "made no step within" in reply.json()["status"]


def test_a_model_whose_steps_take_long_is_waited_for_as_long(serve, monkeypatch, trained_folder):
    monkeypatch.setattr("collafuse.serving.service.READY_SECONDS", 0.05)
    monkeypatch.setattr("collafuse.serving.service.READY_FOR_SECONDS", 0.0)
    server = Server.load(trained_folder, CPU)
    server.model.denoiser.register_forward_pre_hook(lambda *given: time.sleep(0.5))
    running = serve(server)
    with running.http() as http:
        first = http.get("/readyz").status_code
        while not running.service.engine.step_seconds:
            time.sleep(0.01)
        assert (first, http.get("/readyz").status_code) == (503, 200)


def test_metrics_count_requests_and_name_nobody(serve):
    running = serve()
    with running.http() as http:
        ask(http, count=3)
        assert http.get("/metrics").status_code == 403
    with running.http(running.token("operator", "admin")) as http:
        text = http.get("/metrics").text
    assert 'collafuse_requests_total{route="/v1/intermediates",status="200"} 1.0' in text
    assert "collafuse_images_finished 3.0" in text
    assert "north" not in text


def test_a_small_reply_is_sent_at_once(serve):
    running = serve()
    with running.http() as http:
        assert http.get("/livez").status_code == 200
        (connection,) = running.server.server_state.connections
        sent_by = connection.transport.get_extra_info("socket")
        assert sent_by.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_description_of_the_api_covers_what_it_answers(running):
    with running.http() as http:
        paths = http.get("/openapi.json").json()["paths"]
    open_to_all, protected = {"/livez", "/readyz"}, {"/metrics", "/v1/intermediates", "/v1/model", "/v1/model/weights"}
    more = {"/v1/releases", "/v1/releases/{release_id}", "/v1/state", "/v1/gallery"}
    assert set(paths) == open_to_all | protected | more
    assert {"200", "401", "403", "422", "429", "503"} <= set(paths["/v1/intermediates"]["post"]["responses"])


def test_a_client_that_leaves_frees_its_rows(serve, trained_folder):
    server = Server.load(trained_folder, CPU)
    gate = Gated(server.model.denoiser)
    object.__setattr__(server.model, "denoiser", gate)
    running = serve(server, slots=2)
    body = b'{"client": "north", "count": 100}'
    head = f"POST /v1/intermediates HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {running.token()}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        connection.sendall(head.encode() + body)
        assert gate.asked.acquire(timeout=SECONDS)
        job = running.service.engine._jobs[0]
    with pytest.raises(CancelledError):
        job.future.result(timeout=SECONDS)
    gate.open()
    with running.http() as http:
        assert len(read(ask(http, count=2).content)) == 2
    assert job.finished == 0
