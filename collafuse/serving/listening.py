"""Listening: plain HTTP on this machine only, TLS for everyone else, and an end that loses no accepted request."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from ssl import CERT_NONE, CERT_REQUIRED, SSLError
from typing import Any

import uvicorn

from ..core.errors import ConfigError, UsageError
from ..core.loopback import is_loopback
from . import connection

BACKLOG = 512
IDLE_SECONDS = 5
"""How long an idle connection is kept for a further request."""
DRAIN_SPARE_SECONDS = 15
"""After SIGTERM, beyond the deadline of a request: time to send what was finished last."""

SWITCH_SECONDS = 2e-4
"""How long the HTTP thread may keep Python to itself while the engine's thread waits for it."""


@dataclass(frozen=True)
class Address:
    """Where to listen, and with which certificates (files in PEM)."""

    host: str = "127.0.0.1"
    port: int = 8765
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None
    """Clients must show a certificate of this authority."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise UsageError("a certificate and its key belong together; give --tls-cert and --tls-key.")
        if self.client_ca is not None and self.certificate is None:
            raise UsageError("--client-ca needs TLS; give --tls-cert and --tls-key as well.")
        if self.certificate is None and not is_loopback(self.host):
            raise UsageError(
                f"host {self.host!r} can be reached from other machines, and plain HTTP would show every token to "
                "them; give --tls-cert and --tls-key, or listen on 127.0.0.1 behind a proxy that does."
            )


def listen(app: Any, address: Address, deadline_seconds: float, started: Callable[[str], None]) -> None:
    """Serve until SIGTERM or Ctrl-C, then finish what was accepted. ``started`` hears the URL.

    For the main thread of a process that does nothing else.

    Raises UsageError when the port is taken, ConfigError for certificates that cannot be used.
    """
    # Each operator of a step gives Python away and takes it back. With the usual 5 ms it would stand still while a
    # burst of requests is read.
    sys.setswitchinterval(SWITCH_SECONDS)
    server = http_server(app, address, deadline_seconds)

    def end(*_: object) -> None:
        server.should_exit = True

    with bind(address) as bound:
        for number in (signal.SIGTERM, signal.SIGINT):
            # For the moment before uvicorn has its own handlers; and it repeats the signal when it has ended.
            signal.signal(number, end)
        started(url_of(address, bound))
        server.run(sockets=[bound])


def url_of(address: Address, bound: socket.socket) -> str:
    """The URL of a bound address."""
    scheme = "http" if address.certificate is None else "https"
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{scheme}://{host}:{bound.getsockname()[1]}"


class _Server(uvicorn.Server):
    """uvicorn with a deadline for the TLS handshake too, which asyncio gives a minute."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        loop: Any = asyncio.get_running_loop()
        if self.config.is_ssl:
            loop.create_server = partial(loop.create_server, ssl_handshake_timeout=connection.HEAD_SECONDS)
        await super().startup(sockets)


def http_server(app: Any, address: Address, deadline_seconds: float) -> uvicorn.Server:
    """uvicorn with our connections and deadlines. Raises ConfigError for certificates that cannot be used."""
    config = uvicorn.Config(
        app,
        http=connection.CarefulProtocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=int(deadline_seconds) + DRAIN_SPARE_SECONDS,
        h11_max_incomplete_event_size=connection.MAX_HEAD_BYTES,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
        ssl_ca_certs=None if address.client_ca is None else str(address.client_ca),
        ssl_cert_reqs=CERT_NONE if address.client_ca is None else CERT_REQUIRED,
    )
    try:
        config.load()
    except (OSError, SSLError) as error:
        raise ConfigError(
            f"the certificates cannot be used ({error}); check --tls-cert, --tls-key and --client-ca."
        ) from error
    return _Server(config)


def bind(address: Address) -> socket.socket:
    """A listening socket; who comes before the first accept waits in line. Raises UsageError."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # Named as TCP: asyncio turns Nagle's delay off only for those, and a reply of two writes would wait 40 ms for the
    # client's acknowledgement of the first.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((address.host, address.port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise UsageError(
            f"cannot listen on {address.host}:{address.port} ({error.strerror}); choose another --port."
        ) from error
    return bound
