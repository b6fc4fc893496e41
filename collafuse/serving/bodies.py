"""Bounds on what a request may carry, and on how long it may take to carry it.

An ASGI layer around the application. A body says its length, which is held against the limit of its path before a
byte is read; it comes uncompressed; and it comes at a pace: a slow one is ended with 408.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .replies import error_reply

BODY_SECONDS = 8.0
"""A body may be waited for so long, and one second more for each BYTES_PER_SECOND that have come."""
BYTES_PER_SECOND = 16 * 1024
MAX_JSON_BYTES = 64 * 1024
UPLOADS = "/v1/releases/"

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class TooSlow(BaseException):
    """A body did not come at the pace that is asked for.

    Not an Exception: FastAPI would take it for a body that cannot be parsed.
    """


class Bodies:
    """The layer. ``upload_bytes`` is the limit of an upload; everything else is small."""

    def __init__(self, application: Application, upload_bytes: int) -> None:
        self._application, self._upload_bytes = application, upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        refusal = self._refusal(scope)
        if refusal is not None:
            status, name, message = refusal
            reply = error_reply(status, name, message)
            reply.headers["Connection"] = "close"  # so that nobody waits for the rest of the body
            await reply(scope, receive, send)
            return
        started = False

        async def send_noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._application(scope, _paced(receive), send_noting)
        except TooSlow:
            if not started:
                reply = error_reply(
                    408, "BodyTooSlow", f"the body came slower than {BYTES_PER_SECOND} bytes a second; send it again."
                )
                reply.headers["Connection"] = "close"
                await reply(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str, str] | None:
        headers = dict(scope["headers"])
        if headers.get(b"content-encoding", b"identity") != b"identity":
            return 415, "Encoded", "the body is compressed; send it as it is."
        if b"transfer-encoding" in headers:
            return 411, "NoLength", "the body has no Content-Length; send one."
        length = headers.get(b"content-length", b"0").decode("latin-1")
        limit = self._upload_bytes if scope["path"].startswith(UPLOADS) else MAX_JSON_BYTES
        if not length.isdecimal():
            return 400, "BadLength", f"Content-Length {length!r} is no number of bytes."
        if int(length) > limit:
            return 413, "TooLarge", f"the body has {length} bytes, at most {limit} are accepted here."
        return None


def _paced(receive: Receive) -> Receive:
    """``receive`` with so much patience in all, and more with the bytes that have come.

    Only waiting for the client counts: an upload is not slow because the disk is.
    """
    loop = asyncio.get_running_loop()
    waited, count, complete = 0.0, 0, False

    async def paced() -> Message:
        nonlocal waited, count, complete
        if complete:
            return await receive()  # waits for the client to leave, which may take as long as it likes
        left, asked = BODY_SECONDS + count / BYTES_PER_SECOND - waited, loop.time()
        try:
            message = await asyncio.wait_for(receive(), max(left, 0.0))
        except (TimeoutError, asyncio.TimeoutError):
            raise TooSlow from None
        waited += loop.time() - asked
        count += len(message.get("body", b""))
        complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return paced
