"""Continuous batching: what it makes, in which order, and what happens to work that nobody waits for."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from collafuse.core import intermediate as intermediates
from collafuse.core.errors import BusyError, ConfigError, UsageError
from collafuse.serving.engine import Engine
from collafuse.serving.orders import Order
from tests.serving.parts import SECONDS, Gated, server
from tests.tiny import denoiser


@pytest.fixture
def started():
    """Starts engines and stops them afterwards."""
    engines = []

    def start(*arguments, run=True, **settings):
        engine = Engine(*arguments, **settings)
        engines.append(engine)
        if run:
            engine.start()
        return engine

    yield start
    for engine in engines:
        if isinstance(engine.server.model.denoiser, Gated):
            engine.server.model.denoiser.open()
        if not engine.ended and engine._thread.is_alive():
            engine.stop()


def made_by(engine, job, **settings):
    job.future.result(timeout=SECONDS)
    return intermediates.to_bytes(engine.package(job, **settings))


SETTINGS = [
    {"sampler": {"steps": 4}},
    {"sampler": {"steps": 4}, "send_previous": True},
    {"sampler": {"steps": 5, "name": "euler", "guidance": 2.0}},
    {"sampler": {"steps": 3, "guidance": 0.5}, "send_previous": True},
    {"sampler": {"steps": 4, "name": "euler_ancestral"}},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("client", ["a", "b", "c", "all"])
def test_file_and_service_give_the_same_bytes_at_the_same_batch_shape(started, settings, client):
    made = server(**settings)
    engine = started(made, slots=6)
    strangers = [engine.submit(Order.plan(made, name, 3), SECONDS) for name in ("a", "b", "c")]
    job = engine.submit(Order.plan(made, client, 12, seed=5), SECONDS)
    assert made_by(engine, job) == intermediates.to_bytes(made.deliver(client, 12, seed=5, batch_size=6))
    assert made_by(engine, job, half=True) == intermediates.to_bytes(
        made.deliver(client, 12, seed=5, batch_size=6, half=True)
    )
    for stranger in strangers:
        stranger.future.result(timeout=SECONDS)


def test_heun_above_the_release_gives_the_same_bytes_too(started):
    made = server(sampler={"steps": 3})
    engine = started(made, slots=4)
    job = engine.submit(Order.plan(made, "c", 4, seed=1, sampler="heun"), SECONDS)
    settings = made.config.server.sampler.model_copy(update={"name": "heun"})
    configured = made.config.server.model_copy(update={"sampler": settings})
    made.config = made.config.model_copy(update={"server": configured})
    assert made_by(engine, job) == intermediates.to_bytes(made.deliver("c", 4, seed=1, batch_size=4))


def test_at_another_batch_shape_file_and_service_agree_within_rounding(started):
    made = server()
    engine = started(made, slots=5)
    job = engine.submit(Order.plan(made, "a", 7, seed=2), SECONDS)
    x, _ = job.future.result(timeout=SECONDS)
    assert np.abs(x - made.deliver("a", 7, seed=2).x).max() < 1e-4


def test_requests_with_different_cuts_and_samplers_share_one_evaluation(started):
    model = Gated(denoiser(label_names=("x", "y", "z")))
    made = server(model, sampler={"steps": 4})
    engine = started(made, slots=4)
    jobs = [
        engine.submit(Order.plan(made, "a", 1), SECONDS),
        engine.submit(Order.plan(made, "b", 1, sampler="euler"), SECONDS),
        engine.submit(Order.plan(made, "c", 1), SECONDS),
    ]
    model.open()
    for job in jobs:
        job.future.result(timeout=SECONDS)
    assert model.evaluations <= 5  # four steps for all three; the first may have been made for one alone


def test_a_request_joins_at_the_next_step_and_leaves_when_it_is_done(started):
    model = Gated(denoiser(label_names=("x", "y", "z")))
    made = server(model, sampler={"steps": 4})
    engine = started(made, slots=2)
    first = engine.submit(Order.plan(made, "a", 1), SECONDS)
    model.let(1)
    assert model.asked.acquire(timeout=SECONDS)  # the second step of the first has begun
    second = engine.submit(Order.plan(made, "b", 1), SECONDS)
    order = []
    first.future.add_done_callback(lambda _: order.append(("first", model.evaluations)))
    second.future.add_done_callback(lambda _: order.append(("second", model.evaluations)))
    model.open()
    second.future.result(timeout=SECONDS)
    assert order == [("first", 4), ("second", 6)]


def test_a_small_request_does_not_wait_for_a_large_one(started):
    made = server(sampler={"steps": 2})
    engine = started(made, slots=2, run=False)
    large = engine.submit(Order.plan(made, "a", 60), SECONDS)
    small = engine.submit(Order.plan(made, "b", 1), SECONDS)
    done = threading.Event()
    seen = []

    def small_is_done(_):
        seen.append(large.finished)
        done.set()

    small.future.add_done_callback(small_is_done)
    engine.start()
    assert done.wait(SECONDS)
    assert seen[0] <= 2
    assert large.future.result(timeout=SECONDS)[0].shape == (60, 1, 4, 4)


def test_a_cancelled_request_frees_its_rows_at_the_next_step(started):
    model = Gated(denoiser(label_names=("x", "y", "z")))
    made = server(model, sampler={"steps": 4})
    engine = started(made, slots=2)
    lost = engine.submit(Order.plan(made, "a", 50), SECONDS)
    assert model.asked.acquire(timeout=SECONDS)
    assert engine.state().running == 2
    waiting = engine.submit(Order.plan(made, "b", 2), SECONDS)
    engine.cancel(lost)
    model.open()
    waiting.future.result(timeout=SECONDS)
    assert model.evaluations == 5  # the step that was under way, then the four of the other
    assert lost.finished == 0
    assert engine.state().running == engine.state().jobs == 0


def test_a_request_that_is_too_late_ends_with_a_reason_and_frees_its_rows(started):
    model = Gated(denoiser(label_names=("x", "y", "z")))
    made = server(model, sampler={"steps": 4})
    engine = started(made, slots=1)
    late = engine.submit(Order.plan(made, "a", 3), seconds=0.0)
    model.open()
    with pytest.raises(BusyError, match=r"3 of 3 images were not finished in time; ask again"):
        late.future.result(timeout=SECONDS)
    after = engine.submit(Order.plan(made, "a", 1), SECONDS)
    after.future.result(timeout=SECONDS)


def test_the_line_is_bounded_and_says_when_to_come_back(started):
    made = server(sampler={"steps": 2})
    engine = started(made, slots=2, run=False, queue_images=10)
    first = engine.submit(Order.plan(made, "a", 8), SECONDS)
    with pytest.raises(BusyError, match="8 images to make and accepts at most 10") as refused:
        engine.submit(Order.plan(made, "a", 3), SECONDS)
    assert refused.value.retry_after == 5  # nothing has been measured yet
    engine.start()
    first.future.result(timeout=SECONDS)
    assert engine.submit(Order.plan(made, "a", 3), SECONDS).future.result(timeout=SECONDS)
    assert engine.state().images_per_second > 0


def test_what_cannot_be_done_in_time_is_refused_at_once(started):
    model = Gated(denoiser(label_names=("x", "y", "z")))
    made = server(model, sampler={"steps": 1})
    engine = started(made, slots=1)
    model.permits.release(1)
    engine.submit(Order.plan(made, "a", 1), SECONDS).future.result(timeout=SECONDS)
    engine.submit(Order.plan(made, "a", 500), SECONDS)
    rate = engine.state().images_per_second
    with pytest.raises(BusyError, match=r"400 more would not be finished within .*; ask again in \d+ s, or for fewer"):
        engine.submit(Order.plan(made, "a", 400), 100 / rate)
    assert engine.submit(Order.plan(made, "a", 1), 100 / rate)  # a small one is dealt rows in turn


def test_what_takes_no_step_is_in_the_line_too(started):
    made = server(sampler={"steps": 2})
    engine = started(made, slots=2, run=False, queue_images=10)
    drawn = engine.submit(Order.plan(made, "all", 8, seed=1), SECONDS)
    with pytest.raises(BusyError, match="8 images to make and accepts at most 10"):
        engine.submit(Order.plan(made, "all", 3), SECONDS)
    engine.start()
    assert made_by(engine, drawn) == intermediates.to_bytes(made.deliver("all", 8, seed=1))
    after = engine.submit(Order.plan(made, "all", 3), SECONDS)
    after.future.result(timeout=SECONDS)
    assert engine.state().finished == len(engine.recent()) == 11
    engine.submit(Order.plan(made, "a", 1), SECONDS).future.result(timeout=SECONDS)
    rate = engine.state().images_per_second
    engine.submit(Order.plan(made, "all", 10), SECONDS).future.result(timeout=SECONDS)
    assert engine.state().images_per_second == rate  # that of images which take steps


def test_a_request_that_would_take_many_times_as_long_as_alone_is_refused(started):
    made = server(sampler={"steps": 2})
    engine = started(made, slots=2, run=False, stretch=2.0)
    engine.submit(Order.plan(made, "a", 50), SECONDS)
    for _ in range(2):
        engine.submit(Order.plan(made, "b", 1), SECONDS)
        engine.check_room()
    engine.submit(Order.plan(made, "b", 1), SECONDS)
    with pytest.raises(BusyError, match="with 4 images before it this would take more than 2 times as long as alone"):
        engine.check_room()
    with pytest.raises(BusyError):
        engine.submit(Order.plan(made, "b", 1), SECONDS)


def test_a_beat_is_a_step_of_the_model_even_when_there_is_nothing_to_do(started):
    model = Gated(denoiser(label_names=("x", "y", "z")))
    engine = started(server(model), slots=2)
    beat = engine.beat()
    assert not beat.done()
    given_up = engine.beat()
    given_up.cancel()
    model.let(1)
    assert beat.result(timeout=SECONDS) is None
    model.open()
    assert engine.beat().result(timeout=SECONDS) is None


def test_parts_of_a_delivery_make_the_whole(started):
    made = server()
    engine = started(made, slots=4)
    parts = [engine.submit(Order.plan(made, "a", 8, seed=3, rows=rows), SECONDS) for rows in (range(5, 8), range(5))]
    for job in parts:
        job.future.result(timeout=SECONDS)
    last, first = (engine.package(job) for job in parts)
    whole = made.deliver("a", 8, seed=3, batch_size=4)
    assert np.concatenate([first.x, last.x]).tobytes() == whole.x.tobytes()
    assert np.array_equal(np.concatenate([first.labels, last.labels]), whole.labels)


@pytest.mark.parametrize("rows", [range(0), range(3, 3), range(2, 9), range(-1, 2)])
def test_rows_that_a_delivery_does_not_have_are_refused(rows):
    with pytest.raises(UsageError, match=r"of 8; ask for at least one"):
        Order.plan(server(), "a", 8, rows=rows)


def test_stopping_ends_what_is_not_finished_with_a_reason(started):
    model = Gated(denoiser(label_names=("x", "y", "z")))
    engine = started(server(model), slots=2)
    job = engine.submit(Order.plan(engine.server, "a", 5), SECONDS)
    assert model.asked.acquire(timeout=SECONDS)
    model.permits.release(1)
    engine.stop()
    with pytest.raises(BusyError, match="stopped before it was done"):
        job.future.result(timeout=SECONDS)
    with pytest.raises(BusyError, match="shutting down"):
        engine.submit(Order.plan(engine.server, "a", 1), SECONDS)


def test_a_model_that_fails_ends_every_request_with_a_reason(started):
    model = denoiser(label_names=("x", "y", "z"))
    engine = started(server(model), slots=2, run=False)
    job = engine.submit(Order.plan(engine.server, "a", 5), SECONDS)
    hook = threading.excepthook
    threading.excepthook = lambda arguments: None  # the traceback belongs in a log, not in this test's
    try:
        model.network = None
        engine.start()
        with pytest.raises(BusyError, match="stopped before it was done"):
            job.future.result(timeout=SECONDS)
        engine._thread.join(SECONDS)
    finally:
        threading.excepthook = hook
    assert engine.ended
    with pytest.raises(BusyError, match="engine has stopped"):
        engine.beat().result(timeout=SECONDS)


def test_what_the_server_may_not_deliver_is_no_order():
    with pytest.raises(ConfigError, match="client 'west' does not exist"):
        Order.plan(server(), "west", 1)
