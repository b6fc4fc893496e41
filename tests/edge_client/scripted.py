"""A server that answers from a list, for the failures that a real one cannot be made to have on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Scripted:
    """Its URL, and what it was asked: (method, path, body)."""

    url: str
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)


@contextmanager
def scripted(*answers: bytes | Sequence[bytes]) -> Iterator[Scripted]:
    """Serve these raw replies, one for each request, then hang up on every further one; an empty one hangs up too."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            self.close_connection = True
            if not self.parse_request():
                return
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            here.asked.append((self.command, self.path, body))
            self.wfile.write(left.pop(0) if left else b"")

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        here = Scripted(f"http://127.0.0.1:{server.server_address[1]}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield here
        finally:
            server.shutdown()
            thread.join()


def answer(status: int, body: bytes = b"{}", *headers: str) -> bytes:
    """A raw HTTP/1.1 reply."""
    head = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body
