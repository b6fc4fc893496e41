"""A client for load: HTTP/1.1 on kept connections and little else, so that it takes little of the machine.

httpx costs about 3 ms of a core for each request, as much as a small server's whole answer.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

SECONDS = 300
KEPT_SECONDS = 2.0
"""How long a connection may have been idle to be used again. The server closes it after five; where a request is on its
way just then, neither is at fault, and it would count as lost."""


@dataclass(frozen=True)
class Answer:
    """What came back. A status of 0: the connection ended without an answer."""

    status: int
    seconds: float
    retry_after: bool = False
    body: bytes = b""


class Asker:
    """Asks one server for intermediates with one token, on as many connections as are needed at once."""

    def __init__(self, url: str, token: str, client: str) -> None:
        self._host, _, port = url.partition("://")[2].partition(":")
        self._port, self._token, self._client = int(port), token, client
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, float]] = []

    async def __aenter__(self) -> Asker:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._idle:
            self._idle.pop()[1].close()

    async def images(self, count: int = 1, **more: Any) -> Answer:
        """Ask for intermediates; never raises for what the server answers, or when it does not."""
        body = json.dumps({"client": self._client, "count": count} | more).encode()
        return await self.ask("POST", "/v1/intermediates", body)

    async def ask(self, verb: str, path: str, body: bytes, **headers: str) -> Answer:
        """One request. Its seconds count from now to the last byte of the answer."""
        started = time.perf_counter()
        try:
            status, kept, reply = await asyncio.wait_for(self._exchange(verb, path, body, headers), SECONDS)
        except (OSError, EOFError, asyncio.TimeoutError):
            return Answer(0, time.perf_counter() - started)
        return Answer(status, time.perf_counter() - started, b"retry-after" in kept, reply)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A kept connection that the server has not closed since, or a new one."""
        while self._idle:
            reader, writer, since = self._idle.pop()
            if not reader.at_eof() and time.monotonic() - since < KEPT_SECONDS:
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port)

    async def _exchange(
        self, verb: str, path: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        reader, writer = await self._connection()
        fields = {"Host": self._host, "Authorization": f"Bearer {self._token}", "Content-Length": str(len(body))}
        fields |= {"Content-Type": "application/json"} | headers
        head = f"{verb} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        finished = False
        try:
            writer.write(head.encode() + b"\r\n" + body)
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            pairs = (line.partition(b":") for line in lines if line)
            answered = {name: value.strip() for name, _, value in pairs}
            reply = await reader.readexactly(int(answered.get(b"content-length", b"0")))
            finished = answered.get(b"connection") != b"close"
            return int(first.split()[1]), answered, reply
        finally:
            if finished:
                self._idle.append((reader, writer, time.monotonic()))
            else:
                writer.close()
