"""The HTTP application: a thin layer over the engine, the registry and the receiver."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import collafuse

from ..core import intermediate as intermediates
from ..core.errors import BusyError, CollaFuseError, RefusedError
from .authentication import Authentication
from .bodies import Application, Bodies
from .engine import Engine
from .gate import PATH, Gate
from .orders import Job, Order
from .page import gallery, page
from .registry import Token
from .replies import (
    HealthReply,
    IntermediatesRequest,
    ModelReply,
    SiteReply,
    StateReply,
    error_reply,
    reply_for,
)
from .routes import SAFETENSORS, Authenticated, Responses, errors
from .service import Readiness, Service
from .uploads import add_releases

BLOCK_BYTES = 1 << 20


def make_app(service: Service) -> Application:
    """The ASGI application of a service."""
    app = FastAPI(
        title="CollaFuse",
        version=collafuse.__version__,
        summary="Delivers intermediates and receives releases.",
        docs_url=None,  # FastAPI's pages load scripts from elsewhere; ours is at /
        redoc_url=None,
        redirect_slashes=False,  # behind a proxy the address would be ours, over plain HTTP
    )
    _add_errors(app, service)
    _add_health(app, service)
    _add_model(app, service)
    add_releases(app, service)
    _add_page(app, service)
    return Authentication(Gate(Bodies(app, service.limits.release_bytes), service), service)


def _add_errors(app: FastAPI, service: Service) -> None:
    @app.exception_handler(CollaFuseError)
    async def ours(_: Request, error: CollaFuseError) -> JSONResponse:
        return reply_for(error, service.registry.path.parent)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:5])
        return error_reply(
            422, "UsageError", f"the request does not fit ({found}); /openapi.json says what is expected."
        )

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return error_reply(500, "InternalError", "the server failed at this; its log says why. Tell its operator.")

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        reply = error_reply(error.status_code, "HTTPError", f"{error.detail}; /openapi.json lists what there is.")
        reply.headers.update(error.headers or {})
        return reply


def _add_health(app: FastAPI, service: Service) -> None:
    ready = Readiness(service.engine)

    @app.get("/livez", responses={503: {"model": HealthReply}})
    async def livez() -> HealthReply:
        """Whether the process is worth keeping; restart it when not."""
        if service.engine is not None and service.engine.ended:
            return JSONResponse({"status": "the engine has stopped; restart the server."}, 503)  # type: ignore[return-value]
        return HealthReply(status="ok")

    @app.get("/readyz", responses={503: {"model": HealthReply}})
    async def readyz() -> HealthReply:
        """Whether requests will be answered: a real step of the model."""
        reason = await ready.reason()
        if reason is not None:
            return JSONResponse({"status": reason}, 503)  # type: ignore[return-value]
        return HealthReply(status="ok")

    @app.get("/metrics", responses=errors() | {200: {"content": {"text/plain": {}}}}, response_class=Response)
    async def metrics(token: Authenticated) -> Response:
        """Numbers for Prometheus. Scope: admin."""
        token.require("admin", token.client)
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


def _engine(service: Service) -> Engine:
    if service.engine is None:
        raise RefusedError("this server receives releases and has no model yet; ask again when it is trained.")
    return service.engine


def _add_model(app: FastAPI, service: Service) -> None:
    binary: Responses = {200: {"content": {SAFETENSORS: {"schema": {"type": "string", "format": "binary"}}}}}

    @app.post(PATH, responses=errors(409, 503) | binary, response_class=Response)
    async def intermediates_(asked: IntermediatesRequest, request: Request, token: Authenticated) -> Response:
        """Half-denoised images where the client takes over, as a safetensors file. Scope: sample."""
        token.require("sample", asked.client)
        engine, began = _engine(service), time.monotonic()
        rows = range(asked.start, asked.count if asked.stop is None else asked.stop)
        service.shares.check_size(len(rows))
        with service.shares.request(token.id):
            order = Order.plan(
                engine.server,
                asked.client,
                asked.count,
                labels=asked.labels,
                text=None if asked.text is None else asked.text.decoded(engine.server.model.space.text),
                seed=asked.seed,
                sampler=asked.sampler,
                rows=rows,
            )
            await service.shares.take_images(token.id, order.count)
            longest = service.limits.deadline_seconds
            try:
                job = engine.submit(order, min(asked.deadline_seconds or longest, longest))
            except BusyError:
                await service.shares.give_back_images(token.id, order.count)
                raise
            if not await _finished(engine, job, request):
                service.metrics.left.inc()
                return Response(status_code=499)  # nobody reads it
            data = await asyncio.to_thread(lambda: intermediates.to_bytes(engine.package(job, half=asked.half)))
        service.metrics.seconds.observe(time.monotonic() - began)
        return _whole(data)

    @app.get("/v1/model", responses=errors(503))
    async def model(token: Authenticated) -> ModelReply:
        """The model and what is delivered to whom. Scope: sample, for its own client; admin, for all."""
        token.require("sample", token.client)
        return _describe(_engine(service), service, token)

    @app.get("/v1/model/weights", responses=errors(503) | binary, response_class=Response)
    async def weights(token: Authenticated) -> Response:
        """The server's weights, for a warm start. Scope: admin."""
        token.require("admin", token.client)
        _engine(service)
        file = service.weights.open("rb")  # a training may put others in their place meanwhile
        headers = {"Content-Length": str(os.fstat(file.fileno()).st_size)}
        return StreamingResponse(_blocks(file), media_type=SAFETENSORS, headers=headers)


async def _finished(engine: Engine, job: Job, request: Request) -> bool:
    """Wait for a job; False when its client left before. Raises what the job ended with."""
    leaving = asyncio.ensure_future(_left(request))
    result = asyncio.wrap_future(job.future)
    either: set[asyncio.Future[Any]] = {leaving, result}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            return False
        result.result()
        return True
    finally:
        leaving.cancel()
        if not result.done():
            engine.cancel(job)
            result.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _whole(data: bytes) -> Response:
    """Bytes as a reply. Many go out block by block, so that others are answered in between."""
    if len(data) <= BLOCK_BYTES:
        return Response(data, media_type=SAFETENSORS)
    return StreamingResponse(_slices(data), media_type=SAFETENSORS, headers={"Content-Length": str(len(data))})


async def _slices(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), BLOCK_BYTES):
        yield data[start : start + BLOCK_BYTES]


async def _blocks(file: Any) -> AsyncIterator[bytes]:
    with file:
        while block := await asyncio.to_thread(file.read, BLOCK_BYTES):
            yield block


def _describe(engine: Engine, service: Service, token: Token) -> ModelReply:
    server, settings = engine.server, engine.server.config.server.sampler
    mine = list(server.sites) if "admin" in token.scopes else [n for n in server.sites if n == token.client]
    sites = []
    for name in mine:
        site = server.site(name)
        sites.append(
            SiteReply(
                client=name,
                sigma_cut=site.sigma_cut,
                sigma=server.handover_sigma(name),
                labels=list(server.deliverable(name)),
                dealt_labels=list(site.label_names or ()),
                text=server.delivers_text(name),
            )
        )
    known = {name for site in sites for name in site.labels}
    # A site that shares none is told of none, as of labels.
    text = server.model.space.text if any(site.text for site in sites) else None
    return ModelReply(
        server_model=server.model.id,
        image_shape=list(server.model.denoiser.image_shape),
        label_names=[name for name in server.model.label_names if name in known],
        text_encoder=None if text is None else text.encoder,
        text_width=0 if text is None else text.width,
        sampler=settings.name,
        steps=settings.steps if server.config.server.kind == "images" else 0,
        guidance=settings.guidance,
        autoguidance=settings.autoguidance,
        batch=engine.state().slots,
        request_images=service.limits.request_images,
        deadline_seconds=service.limits.deadline_seconds,
        clients=sites,
    )


def _add_page(app: FastAPI, service: Service) -> None:
    app.get("/", include_in_schema=False)(page)

    @app.get("/v1/state", responses=errors())
    async def state(token: Authenticated) -> StateReply:
        """What the server is doing now. Scope: admin."""
        token.require("admin", token.client)
        held = len(await asyncio.to_thread(service.registry.releases))
        if service.engine is None:
            empty = dict.fromkeys(("rows", "rows_used", "requests", "images_waiting", "images_finished", "steps"), 0)
            return StateReply(server_model=None, images_per_second=None, releases=held, **empty)
        now = service.engine.state()
        return StateReply(
            server_model=service.engine.server.model.id,
            rows=now.slots,
            rows_used=now.running,
            requests=now.jobs,
            images_waiting=now.waiting,
            images_finished=now.finished,
            steps=now.steps,
            images_per_second=None if now.images_per_second is None else round(now.images_per_second, 2),
            releases=held,
        )

    picture: Responses = {200: {"content": {"image/png": {}}}, 204: {"description": "Nothing has left yet."}}

    @app.get("/v1/gallery", responses=errors() | picture, response_class=Response)
    async def recent(token: Authenticated) -> Response:
        """The images that left last, as they were delivered, as a PNG file. Scope: admin."""
        token.require("admin", token.client)
        images = [] if service.engine is None else service.engine.recent()
        if not images:
            return Response(status_code=204)
        return Response(await asyncio.to_thread(gallery, images), media_type="image/png")
