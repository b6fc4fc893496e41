"""Nothing under /v1 is looked at, no body read and no place in line taken, before the token is known to be good.

An ASGI layer around the application; it also counts the replies.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from http import HTTPStatus

from starlette.responses import Response

from ..core.errors import AccessError, BusyError, CollaFuseError
from ..core.loopback import is_loopback
from .bodies import Application, Message, Receive, Scope, Send
from .line import FIRST_RETRY_SECONDS
from .registry import EndedTokenError, Token
from .replies import error_reply, reply_for
from .service import Service

PROTECTED = ("/v1/", "/metrics")


class Authentication:
    """The layer. The token that it has found lies in the request's state."""

    def __init__(self, application: Application, service: Service) -> None:
        self._application, self._service = application, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return

        async def send_counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The route's pattern, not the path: a stranger must not fill the memory with names.
                route = getattr(scope.get("route"), "path", "none")
                self._service.metrics.requests.labels(route, str(message["status"])).inc()
            await send(message)

        if scope["path"].startswith(PROTECTED):
            found = await self._authenticate(scope)
            if isinstance(found, Response):
                await found(scope, receive, send_counting)
                return
            scope.setdefault("state", {})["token"] = found
        await self._application(scope, receive, send_counting)

    async def _authenticate(self, scope: Scope) -> Token | Response:
        header = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        kind, _, text = header.partition(" ")
        try:
            if kind.lower() != "bearer" or not text.strip():
                raise AccessError("a token is needed; send the header Authorization: Bearer TOKEN.")
            # Within microseconds, on this thread: a request that is refused must not wait for those that are not.
            token = self._service.lookup.authenticate(text.strip())
            if token is None:
                token = await asyncio.to_thread(self._service.registry.authenticate, text.strip())
            return token
        except EndedTokenError as error:
            return error_reply(HTTPStatus.UNAUTHORIZED, error)
        except AccessError as error:
            address = _address(scope)
            wait = self._service.strangers.failed(address, time.monotonic())
            if wait is None:
                return error_reply(HTTPStatus.UNAUTHORIZED, error)
            busy = BusyError(f"too many wrong tokens from {address}; ask again in {wait} s.", wait)
            return error_reply(HTTPStatus.TOO_MANY_REQUESTS, busy)
        except CollaFuseError as error:  # the registry cannot be used; a stranger hears no more
            logging.getLogger(__name__).error("%s", error)
            message = "the server cannot read its registry, and its log says why; ask again, or tell its operator."
            return reply_for(BusyError(message, FIRST_RETRY_SECONDS))


def _address(scope: Scope) -> str:
    """Where a request comes from: the other end of its connection or, where that is a proxy on this machine, the
    address that it names last, which is the one that it saw itself."""
    peer = scope["client"][0] if scope.get("client") else ""
    named = dict(scope["headers"]).get(b"x-forwarded-for", b"").decode("latin-1").rpartition(",")[2].strip()
    try:
        return str(ipaddress.ip_address(named)) if is_loopback(peer) else peer
    except ValueError:
        return peer
