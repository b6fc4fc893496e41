"""Continuous batching: one thread owns the model, and all requests share its one batch.

A request is a job of one or more images. At every step free rows are dealt to the waiting jobs in turn, one image
each, so that a small job does not wait for a large one; an image that has reached the cut leaves its row to the
next. A job that was cancelled, or whose deadline has passed, frees its rows at the next step.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.errors import BusyError
from ..core.intermediate import Intermediate
from ..core.samplers import evaluations
from ..nodes.server import Server
from ..nodes.streams import draw, streams
from .batch import MULTISTEP, Batch, Row
from .line import FIRST_RETRY_SECONDS, Line, Pending
from .orders import Job, Order

DEFAULT_SLOTS = 16
DEFAULT_QUEUE_IMAGES = 1024
"""Images that may be accepted and not finished, over all requests."""
DEFAULT_STRETCH = 64.0
"""How many times as long as alone a request may take because of those before it."""
GALLERY_IMAGES, GALLERY_BYTES = 48, 8 << 20
"""The images that left last are remembered, at most so many, for whoever wants to look."""


@dataclass(frozen=True)
class State:
    """What the engine is doing: rows in all and in use, requests, images waiting for a row, and its history."""

    slots: int
    running: int
    jobs: int
    waiting: int
    finished: int
    steps: int
    images_per_second: float | None


class Engine:
    """Samples for all requests at once. Start it, submit orders from any thread, stop it."""

    def __init__(
        self,
        server: Server,
        slots: int = DEFAULT_SLOTS,
        *,
        fit: bool = False,
        queue_images: int = DEFAULT_QUEUE_IMAGES,
        stretch: float = DEFAULT_STRETCH,
    ) -> None:
        self.server = server
        guidance = server.config.server.sampler.guidance
        self._batch = Batch(server.denoiser, slots, guidance, server.device, fit=fit)
        self._wake = threading.Condition()
        self._jobs: list[Job] = []
        self._turns: deque[Job] = deque()
        self._draws: deque[Job] = deque()
        self._beats: list[Future[None]] = []
        self._line = Line(slots, queue_images, stretch)
        size = 4 * math.prod(server.model.denoiser.image_shape)
        self._recent: deque[NDArray[np.float32]] = deque(maxlen=max(1, min(GALLERY_IMAGES, GALLERY_BYTES // size)))
        self._finished, self._steps = 0, 0
        self._step_seconds = 0.0
        self._stopping = self._ended = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its present step. What is not finished fails with BusyError."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join()

    def submit(self, order: Order, seconds: float) -> Job:
        """Accept an order that is to be finished in this time.

        Raises BusyError, with the seconds after which to ask again, where the line is too long for that.
        """
        job = Job(order, time.monotonic() + seconds, *self._space(order.count))
        with self._wake:
            self._refuse_at_the_end()
            self._line.check(order.count, seconds)
            self._jobs.append(job)
            # Without a step it is a draw: from statistics, or at SIGMA_MAX, where the client does everything.
            (self._turns if order.steps else self._draws).append(job)
            self._count()
            self._wake.notify()
        return job

    def check_room(self) -> None:
        """Raise BusyError when not even a request for one image would be accepted. Takes no lock and waits for nothing,
        so that a full server can say so at once."""
        self._refuse_at_the_end()
        self._line.check_any()

    def cancel(self, job: Job) -> None:
        """Nobody waits for this job any more: its rows are free at the next step."""
        job.future.cancel()
        with self._wake:
            self._wake.notify()

    def beat(self) -> Future[None]:
        """Ends after the next step of the model, which is made for it if nothing else is to be done."""
        beat: Future[None] = Future()
        with self._wake:
            if self._ended:
                beat.set_exception(BusyError("the engine has stopped; restart the server.", FIRST_RETRY_SECONDS))
            else:
                self._beats.append(beat)
                self._wake.notify()
        return beat

    def package(self, job: Job, *, half: bool = False) -> Intermediate:
        """A finished job's images as an intermediate, the same as a file of them."""
        order, server = job.order, self.server
        x, x0_hat = job.future.result(timeout=0)
        guided = order.planned.conditioned and server.config.server.sampler.guidance != 1.0
        travels = server.config.server.send_previous and order.sampler == MULTISTEP and len(order.sigmas) > 1
        return server.package(
            x,
            order.planned,
            order.sigmas,
            evaluations(order.sampler, order.sigmas, guided=guided),
            x0_hat if travels else None,
            sampler=order.sampler,
            half=half,
        )

    @property
    def ended(self) -> bool:
        """Whether the thread has come to its end, which it does only when it is stopped or fails."""
        return self._ended

    @property
    def step_seconds(self) -> float:
        """How long the last step took; 0 before the first."""
        return self._step_seconds

    def state(self) -> State:
        """What it is doing now."""
        with self._wake:
            return State(
                slots=self._batch.slots,
                running=len(self._batch.rows),
                jobs=len(self._jobs),
                waiting=sum(job.waiting for job in self._jobs),
                finished=self._finished,
                steps=self._steps,
                images_per_second=self._line.rate.per_second,
            )

    def recent(self) -> list[NDArray[np.float32]]:
        """The images [C, H, W] that left last, oldest first, scaled to about [-1, 1]."""
        with self._wake:
            return list(self._recent)

    def _space(self, count: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        shape = (count, *self.server.model.denoiser.image_shape)
        return np.empty(shape, np.float32), np.empty(shape, np.float32)

    def _refuse_at_the_end(self) -> None:
        if self._stopping or self._ended:
            raise BusyError("the server is shutting down; ask again when it is back.", FIRST_RETRY_SECONDS)

    # --- the engine's own thread ----------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    self._tick()
        finally:
            with self._wake:
                self._ended = True
                left, self._jobs = self._jobs, []
                beats, self._beats = self._beats, []
            for job in left:
                _fail(job.future, BusyError("the server stopped before it was done; ask again.", FIRST_RETRY_SECONDS))
            for beat in beats:
                _fail(beat, BusyError("the engine has stopped; restart the server.", FIRST_RETRY_SECONDS))

    def _wait_for_work(self) -> bool:
        with self._wake:
            while not (self._stopping or self._jobs or self._beats):
                self._wake.wait()
            return not self._stopping

    def _tick(self) -> None:
        """One step of the whole batch, with who joins before it and who leaves after it; and one draw."""
        with self._wake:
            self._drop_lost(time.monotonic())
            new = self._deal()
            draw = self._draws.popleft() if self._draws else None
            beats, self._beats = self._beats, []
        complete = [] if draw is None else [self._draw(draw)]
        if new or self._batch.rows or beats:
            complete += self._step(new)
        with self._wake:
            self._jobs = [job for job in self._jobs if job.pending]
            self._count()
        # Last, so that whoever hears of it finds the books in order.
        for job in complete:
            _succeed(job.future, (job.x, job.x0_hat))
        for beat in beats:
            _succeed(beat, None)

    def _count(self) -> None:
        self._line.pending = Pending(job.pending for job in self._jobs)

    def _draw(self, job: Job) -> Job:
        """Make the images of a job that takes no step, all at once, as a file of them is made."""
        started, order = time.monotonic(), job.order
        job.x[:] = self.server.begin(streams(order.indices, order.seed), order.planned, order.sigmas[0])
        with self._wake:
            job.started = job.finished = order.count
            self._finished += order.count
            if self.server.config.server.kind == "statistics":  # elsewhere it says nothing of images that take steps
                self._line.rate.record(order.count, time.monotonic() - started, [1] * order.count)
            self._recent.extend(job.x[-GALLERY_IMAGES:] / (1.0 + order.sigmas[0]))
        return job

    def _step(self, new: Sequence[tuple[Job, int]]) -> list[Job]:
        """One step of the batch, with these images; returns the jobs that are complete with it."""
        started = time.monotonic()
        if new:
            self._join(new)
        width = self._batch.width
        done = self._batch.step()
        complete = self._collect(done) if done else []
        with self._wake:
            steps = [self._batch.rows[slot].position for slot in done]
            self._steps += 1
            self._finished += len(done)
            self._step_seconds = time.monotonic() - started
            self._line.rate.record(width, self._step_seconds, steps)
            self._batch.leave(done)
        return complete

    def _drop_lost(self, now: float) -> None:
        """Forget jobs that nobody waits for or that are too late."""
        for job in self._jobs:
            if job.deadline < now and not job.future.done():
                seconds = self._line.rate.seconds_for(job.pending)
                message = (
                    f"{job.pending} of {job.order.count} images were not finished in time; ask again, or for fewer."
                )
                _fail(job.future, BusyError(message, seconds))
        self._jobs = [job for job in self._jobs if not job.future.done()]
        self._turns = deque(job for job in self._turns if not job.future.done())
        self._draws = deque(job for job in self._draws if not job.future.done())
        self._batch.leave([slot for slot, row in self._batch.rows.items() if row.owner.future.done()])

    def _deal(self) -> list[tuple[Job, int]]:
        """The images that get a free row now, one of each waiting job in turn."""
        dealt = []
        for _ in range(self._batch.free):
            if not self._turns:
                break
            job = self._turns.popleft()
            dealt.append((job, job.started))
            job.started += 1
            if job.waiting:
                self._turns.append(job)
        return dealt

    def _join(self, new: Sequence[tuple[Job, int]]) -> None:
        denoiser = self.server.model.denoiser
        rows, noise, conditions = [], [], []
        for job, index in new:
            order = job.order
            own = streams(order.indices[index : index + 1], order.seed)
            rows.append(Row(job, index, order.sigmas, order.sampler, order.planned.conditioned, own[0]))
            noise.append(draw(own, denoiser.image_shape))
            one = order.planned.take(slice(index, index + 1))
            conditions.append(one.conditions(1, self.server.model.space))
        self._batch.join(rows, np.concatenate(noise), np.concatenate(conditions))

    def _collect(self, done: Sequence[int]) -> list[Job]:
        """Copy finished images to their jobs; returns the jobs that are complete."""
        x, x0_hat = self._batch.take(done)
        with self._wake:
            self._recent.extend(
                one / (1.0 + self._batch.rows[slot].sigmas[-1]) for slot, one in zip(done, x, strict=True)
            )
        for i, slot in enumerate(done):
            row = self._batch.rows[slot]
            row.owner.x[row.index], row.owner.x0_hat[row.index] = x[i], x0_hat[i]
            row.owner.finished += 1
        owners = {id(row.owner): row.owner for row in map(self._batch.rows.__getitem__, done)}
        return [job for job in owners.values() if not job.pending]


def _succeed(future: Future[Any], value: object) -> None:
    """End a future with its result, unless whoever waited has cancelled it meanwhile."""
    if future.set_running_or_notify_cancel():
        future.set_result(value)


def _fail(future: Future[Any], error: Exception) -> None:
    """End a future with an error, unless whoever waited has cancelled it meanwhile."""
    if not future.done() and future.set_running_or_notify_cancel():
        future.set_exception(error)
