"""The same service as a Ray Serve application: each replica owns one engine, and their number follows the load.

    serve run collafuse.serving.ray_app:build run=at-server most=4 gpus=1

Ray's proxy takes the place of ours in front of it. It ends no TLS and knows no slow clients, so it listens on this
machine behind nginx, as ``collafuse serve`` does. Releases are sent to a ``collafuse serve --receive-only``: a replica
may end at any time. Needs the extra ``ray``.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ray import serve
from starlette.applications import Starlette

from ..core.errors import UsageError
from ..learning.device import choose_device
from ..nodes.runfolder import RunFolder
from ..nodes.server import Server
from .admission import Limits
from .app import make_app
from .bodies import Application, Receive, Scope, Send
from .connection import MAX_CONNECTIONS
from .engine import DEFAULT_QUEUE_IMAGES, DEFAULT_SLOTS, DEFAULT_STRETCH, Engine
from .service import Service

ANSWER_SPARE_SECONDS = 15


class Arguments(BaseModel):
    """What ``build`` takes; the same as the options of ``collafuse serve``, and how many replicas there may be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Path
    slots: Annotated[int, Field(ge=1, le=4096)] = DEFAULT_SLOTS
    queue: Annotated[int, Field(ge=1)] = DEFAULT_QUEUE_IMAGES
    stretch: Annotated[float, Field(ge=1)] = DEFAULT_STRETCH
    deadline: Annotated[float, Field(ge=1)] = 120.0
    max_images: Annotated[int, Field(ge=1)] = 256
    rate: Annotated[int, Field(ge=1)] = 6000
    open: Annotated[int, Field(ge=1)] = 64
    compile: bool = False
    device: str = "auto"
    accept_simulated: bool = False
    least: Annotated[int, Field(ge=1)] = 1
    """Replicas, at least."""
    most: Annotated[int, Field(ge=1)] = 1
    """Replicas, at most; more than ``least`` lets their number follow the load."""
    cpus: Annotated[float, Field(ge=0)] = 1.0
    """Cores of one replica."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one replica; 1 keeps each replica on its own."""


def _application() -> Application:
    """The application of the replica that this is called in; it cannot travel there itself."""

    nothing = Starlette()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # Ray announces its start and end, when there is no replica
            await nothing(scope, receive, send)
            return
        replica: Any = serve.get_replica_context().servable_object
        await replica.application(scope, receive, send)

    return application


@serve.ingress(_application)
class Replica:
    """One engine and the application around it."""

    def __init__(self, arguments: Arguments, limits: Limits) -> None:
        folder = RunFolder(arguments.run).server
        server = Server.load(folder, choose_device(arguments.device))
        if arguments.compile:
            server.compile(arguments.slots, logging.getLogger("ray.serve").warning)
        self.engine = Engine(server, arguments.slots, queue_images=arguments.queue, stretch=arguments.stretch)
        self.service = Service.open(folder, self.engine, limits, accept_simulated=arguments.accept_simulated)
        self.application = make_app(self.service)
        self.engine.start()
        self.engine.beat().result()  # a replica is ready once it has made a step; where it compiles that takes a minute

    def check_health(self) -> None:
        """Ray asks this now and then, and replaces a replica that raises."""
        if self.engine.ended:
            raise RuntimeError("the engine has stopped")

    def __del__(self) -> None:
        # Ray's way to end a replica, after it has answered what it had accepted.
        if hasattr(self, "application"):
            self.engine.stop()
            self.service.close()


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application, for Ray's ``serve run``, ``serve build`` or :func:`ray.serve.run`. Raises UsageError."""
    try:
        chosen = Arguments.model_validate(arguments)
    except ValidationError as error:
        raise UsageError(f"these arguments do not fit: {error}") from error
    if chosen.least > chosen.most:
        raise UsageError(f"at least {chosen.least} and at most {chosen.most} replicas; raise most or lower least.")
    # Here, so that limits that contradict each other are refused now, and not by each replica in turn.
    limits = Limits(chosen.max_images, chosen.rate, chosen.open, chosen.deadline)
    RunFolder(chosen.run).refuse_baseline("serve")
    deployment = serve.deployment(
        Replica,
        name="collafuse",
        # Who is let in is decided by the replica, which knows its line; Ray's own limit must not come before it.
        max_ongoing_requests=MAX_CONNECTIONS,
        autoscaling_config={
            "min_replicas": chosen.least,
            "max_replicas": chosen.most,
            "target_ongoing_requests": chosen.slots,  # a full batch
        },
        ray_actor_options={"num_cpus": chosen.cpus, "num_gpus": chosen.gpus},
        graceful_shutdown_timeout_s=chosen.deadline + ANSWER_SPARE_SECONDS,
    )
    return deployment.bind(chosen, limits)
