"""One connection, with the deadlines that uvicorn lacks: for a request's head, for what nobody reads, for a reply.

uvicorn closes an idle connection, but one that sends a byte now and then stays open for ever, and so does one that
takes no reply (0.54, measured). Here each of them is cut off.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from .replies import error_reply

HEAD_SECONDS = 8.0
"""From the first moment of a connection, or the first byte of a further request, to the end of its head."""
REPLY_SECONDS = 30.0
"""How long a client may leave what it was sent unread."""
MAX_CONNECTIONS = 512
"""More at once are closed unheard; well below the usual limit of 1024 open files."""
MAX_HEAD_BYTES = 16 * 1024


class CarefulProtocol(H11Protocol):
    """HTTP/1.1 on one connection, with deadlines."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._head: asyncio.TimerHandle | None = None
        self._reply: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self.scheme == "http":
            # The end of a reply counts as unread too. TLS has a deadline of its own for that when it is closed.
            transport.set_write_buffer_limits(high=0)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._reply):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        if self._head is None and self._unanswered() is None:
            self._await_head()
        super().data_received(data)
        if self.cycle is not before:
            self._head_came()

    def on_response_complete(self) -> None:
        cycle = self.cycle
        super().on_response_complete()  # may begin the next of several requests that came together
        if self.cycle is not cycle:
            self._head_came()

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, in the form of all our errors."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()  # another reply has begun; what comes after it is not one more request
            return
        if (cycle := self._unanswered()) is not None:
            cycle.disconnected = True  # what it would still answer has no place any more
            cycle.message_event.set()
        body = error_reply(400, "BadRequest", f"{msg.rstrip('.')}; this is a server for HTTP/1.1.").body
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=bytes(body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reply = self.loop.call_later(REPLY_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reply is not None:
            self._reply.cancel()
            self._reply = None

    def _unanswered(self) -> RequestResponseCycle | None:
        """The request that is being answered."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first, whatever uvicorn says
        return None if cycle is None or cycle.response_complete else cycle

    def _await_head(self) -> None:
        self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _head_came(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None
