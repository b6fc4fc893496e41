"""The routes by which sites send their releases."""

from __future__ import annotations

import asyncio
import base64
import binascii
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response
from pydantic import Field
from starlette.exceptions import HTTPException

from ..core.errors import FileFormatError
from .replies import ReleaseReply, ReleasesReply
from .routes import SAFETENSORS, Authenticated, errors
from .service import Service

ReleaseId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]


def add_releases(app: FastAPI, service: Service) -> None:
    file = {"required": True, "content": {SAFETENSORS: {"schema": {"type": "string", "format": "binary"}}}}

    @app.put(
        "/v1/releases/{release_id}",
        responses=errors(409, 503, 507) | {201: {"model": ReleaseReply}},
        openapi_extra={"requestBody": file},  # read as a stream, so FastAPI does not see it
    )
    async def put(
        release_id: ReleaseId,
        request: Request,
        response: Response,
        token: Authenticated,
        content_length: Annotated[int, Header(ge=1, include_in_schema=False)],
        content_digest: Annotated[str | None, Header(description="RFC 9530: sha-256=:BASE64:")] = None,
    ) -> ReleaseReply:
        """Receive a release of the token's client. The same bytes again are no second release. Scope: release."""
        token.require("release", token.client)
        digest = None if content_digest is None else _sha256(content_digest)
        with service.shares.request(token.id):
            received, new = await service.receiver.receive(
                token.client, release_id, request.stream(), content_length, digest
            )
        if new:
            response.status_code = 201
            service.metrics.release_bytes.inc(received.bytes)
        return _release(received)

    @app.get("/v1/releases", responses=errors())
    async def held(token: Authenticated) -> ReleasesReply:
        """The releases of the token's client that lie here durably. Scope: release."""
        token.require("release", token.client)
        found = await asyncio.to_thread(service.registry.releases, token.client)
        limit = service.limits.release_bytes
        return ReleasesReply(releases=[_release(one) for one in found], release_bytes=limit)

    @app.get("/v1/releases/{release_id}", responses=errors(404))
    async def get(release_id: ReleaseId, token: Authenticated) -> ReleaseReply:
        """A release of the token's client that lies here durably; 404 when it does not. Scope: release."""
        token.require("release", token.client)
        held = await asyncio.to_thread(service.receiver.held, token.client, release_id)
        if held is None:
            raise HTTPException(404, f"no release {release_id!r} of {token.client!r} lies here")
        return _release(held)


def _release(received: Any) -> ReleaseReply:
    fields = ReleaseReply.model_fields
    return ReleaseReply(**{name: getattr(received, name) for name in fields})


def _sha256(text: str) -> str:
    """The hexadecimal SHA-256 of a Content-Digest. Raises FileFormatError."""
    try:
        name, _, value = text.partition("=")
        digest = base64.b64decode(value.strip(":"), validate=True)
        if name != "sha-256" or len(digest) != 32 or not value.startswith(":"):
            raise ValueError
    except (ValueError, binascii.Error):
        raise FileFormatError(f"Content-Digest {text[:100]!r}; expected sha-256=:BASE64: of 32 bytes.") from None
    return digest.hex()
