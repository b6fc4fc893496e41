"""A server over HTTP: ask, wait as it says, try again, and say what is wrong in a sentence.

Only this module knows httpx. A request that may be repeated is: what it asks for is named by a seed or a digest, so
that the second answer is the first one. Replies are bounded before they are read.
"""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import httpx

import collafuse
from collafuse.core.errors import (
    AccessError,
    BusyError,
    CollaFuseError,
    ConfigError,
    FileFormatError,
    MismatchError,
    OutputExistsError,
    RefusedError,
    StorageError,
    UnreachableError,
    UsageError,
    first_line,
)
from collafuse.core.loopback import is_loopback

CONNECT_SECONDS = 10.0
REPLY_SECONDS = 180.0
"""How long an answer may be waited for."""
DEFAULT_PATIENCE_SECONDS = 300.0
"""How long to try again in all."""
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
LONGEST_RETRY_SECONDS = 3600
"""A server that says more is asked again by then."""
MAX_ERROR_BYTES = 64 * 1024
MAX_TOKEN_BYTES = 512

NOT_YET_VALID, EXPIRED, OTHER_NAME, OTHER_ADDRESS = 9, 10, 62, 64
"""OpenSSL's codes (x509_vfy.h) of certificates that are refused for another reason than who signed them."""

KINDS: dict[str, type[CollaFuseError]] = {
    "TooLarge": RefusedError,  # of the server's bounds on bodies, which have no class of their own
    **{
        kind.__name__: kind
        for kind in (
            UsageError,
            ConfigError,
            FileFormatError,
            MismatchError,
            RefusedError,
            OutputExistsError,
            StorageError,
            AccessError,
        )
    },
}
"""What a server's error becomes here; none of these is worth another try."""


@dataclass(frozen=True)
class Trust:
    """How the two sides know each other: the token, the authority that is pinned, and a certificate of our own."""

    token: str
    authority: Path | None = None
    """Only a server with a certificate of this authority is spoken to; the system's authorities otherwise."""
    certificate: Path | None = None
    key: Path | None = None

    def context(self) -> ssl.SSLContext:
        """A TLS context. Raises UsageError for files that are no certificates, or a key without one."""
        if self.key is not None and self.certificate is None:
            raise UsageError(f"the key {self.key} belongs to a certificate; give that too (--cert), or leave both out.")
        try:
            context = ssl.create_default_context(cafile=self.authority)
            if self.certificate is not None:
                context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(str(path) for path in (self.authority, self.certificate, self.key) if path is not None)
            raise UsageError(f"cannot use the certificates {files} ({first_line(error)}); check the files.") from error
        return context


def read_token(path: Path) -> str:
    """The token in a file. Raises UsageError when there is none."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(MAX_TOKEN_BYTES + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read a token from {path} ({first_line(error)}); ask the operator for one.") from error
    if not text or len(text) > MAX_TOKEN_BYTES or not text.isprintable() or " " in text:
        raise UsageError(f"{path} holds no token; it is one line, as `collafuse tokens add` prints it.")
    return text


@dataclass(frozen=True)
class Reply:
    """A reply that was a success."""

    status: int
    content: bytes

    def json(self) -> dict[str, Any]:
        """Its JSON object. Raises FileFormatError."""
        try:
            value = json.loads(self.content)
        except (ValueError, RecursionError) as error:
            raise FileFormatError("the server's reply is no JSON; it is no CollaFuse server, check the URL.") from error
        if not isinstance(value, dict):
            raise FileFormatError("the server's reply is no JSON object; it is no CollaFuse server, check the URL.")
        return value


class _Again(Exception):
    """Worth another try, after at least so many seconds; ``error`` is what to say when there is none."""

    def __init__(self, error: CollaFuseError, seconds: float = 0.0) -> None:
        super().__init__(str(error))
        self.error, self.seconds = error, seconds


class Remote:
    """A server at a URL. ``say`` hears why a request has to wait; ``pause`` and ``jitter`` are the clock and the
    die of the waiting."""

    def __init__(
        self,
        url: str,
        trust: Trust,
        *,
        patience: float = DEFAULT_PATIENCE_SECONDS,
        say: Callable[[str], None] = lambda text: None,
        pause: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.url = _checked_url(url)
        if not patience >= 0:  # NaN would never end
            raise UsageError(f"patience={patience:g}; expected a number of seconds, 0 to try once.")
        self._patience, self._say, self._pause, self._jitter = patience, say, pause, jitter
        self._authority = trust.authority
        self._http = httpx.Client(
            base_url=self.url,
            headers={
                "Authorization": f"Bearer {trust.token}",
                "User-Agent": f"collafuse/{collafuse.__version__}",
                "Accept-Encoding": "identity",  # noise does not compress, and a bound on bytes stays one
            },
            verify=trust.context() if self.url.startswith("https:") else True,
            # What stays on this machine goes through no proxy: it would read the token.
            trust_env=self.url.startswith("https:"),
        )

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        *,
        limit: int,
        body: Any = None,
        content: Callable[[], Iterator[bytes]] | None = None,
        headers: dict[str, str] | None = None,
        seconds: float = REPLY_SECONDS,
    ) -> Reply:
        """Send a request that may be repeated, until there is an answer; ``limit`` bounds it, in bytes.

        seconds: how long one answer may be waited for.

        Raises what the server says (RefusedError, MismatchError ...), AccessError for a token that it does not take,
        BusyError or UnreachableError when patience ends, UnreachableError at once for a certificate that is wrong.
        """
        give_up, pause = time.monotonic() + self._patience, FIRST_PAUSE_SECONDS
        while True:
            try:
                stream = None if content is None else content()
                timeout = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
                request = self._http.build_request(
                    method, path, json=body, content=stream, headers=headers, timeout=timeout
                )
                with self._explained():
                    return self._send(request, limit)
            except _Again as again:
                # Full jitter above what the server asks for, so that clients that failed together come apart.
                until_next = again.seconds + pause * self._jitter()
                if time.monotonic() + until_next > give_up:
                    raise again.error from again
                self._say(f"{str(again).rstrip('.')}; trying again in {until_next:.1f} s.")
                self._pause(until_next)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _send(self, request: httpx.Request, limit: int) -> Reply:
        response = self._http.send(request, stream=True)
        try:
            if response.is_success:
                return Reply(response.status_code, _bounded(response, limit))
            raise _error_of(response, _bounded(response, MAX_ERROR_BYTES), self.url)
        finally:
            response.close()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What goes wrong below HTTP, as a sentence; the passing kind as _Again."""
        try:
            yield
        except httpx.TransportError as error:
            refused = _tls_error(error)
            if isinstance(refused, ssl.SSLCertVerificationError):
                raise UnreachableError(self._about_certificate(refused)) from error
            if refused is not None:
                raise UnreachableError(
                    f"{self.url} does not speak TLS as expected ({first_line(refused)}); check the port, http or "
                    "https, and whether it asks for a certificate of this device."
                ) from error
            reason = first_line(error) or type(error).__name__
            message = f"{self.url} does not answer ({reason}); check the URL, http or https, and the network."
            raise _Again(UnreachableError(message)) from error

    def _about_certificate(self, error: ssl.SSLCertVerificationError) -> str:
        now = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC"
        if error.verify_code == NOT_YET_VALID:
            return f"the certificate of {self.url} is not valid yet; this device's clock says {now}, set it."
        if error.verify_code == EXPIRED:
            return f"the certificate of {self.url} has expired, or this device's clock ({now}) is ahead; check both."
        if error.verify_code in (OTHER_NAME, OTHER_ADDRESS):
            return f"the certificate of {self.url} is for another name ({error.verify_message}); check the URL."
        authority = self._authority or "an authority that this system knows"
        return (
            f"the certificate of {self.url} was not signed by {authority} ({error.verify_message}); pass the "
            "authority's file that the operator gave you, or do not trust this server."
        )


def _checked_url(url: str) -> str:
    try:
        parts = httpx.URL(url) if "://" in url else None
    except httpx.InvalidURL:
        parts = None
    if parts is None or parts.scheme not in ("http", "https") or not parts.host:
        raise UsageError(f"server {url!r} is no URL; expected https://NAME:PORT.")
    if parts.scheme == "http" and not is_loopback(parts.host):
        raise UsageError(
            f"server {url!r} would show the token to the network; use https, http is for this machine only."
        )
    return url.rstrip("/")


def _bounded(response: httpx.Response, limit: int) -> bytes:
    """The body, unless it is longer than it may be."""
    blocks, size = [], 0
    for block in response.iter_raw():
        size += len(block)
        if size > limit:
            raise FileFormatError(f"the server's reply has more than {limit} bytes; it is not what was asked for.")
        blocks.append(block)
    return b"".join(blocks)


def _error_of(response: httpx.Response, content: bytes, url: str) -> Exception:
    """A refusal as one of our errors, with the server's own sentence where it has one."""
    try:
        said = json.loads(content)
        name, message = str(said["error"]), str(said["message"])[:2000]
    except (ValueError, KeyError, TypeError, RecursionError):
        name, message = "", f"{url} answered {response.status_code} {response.reason_phrase}"
    message = "".join(c if c.isprintable() else "?" for c in message)
    status = response.status_code
    if status in (429, 503):
        seconds = _retry_after(response)
        return _Again(BusyError(message, int(seconds) or 1), seconds)
    if status in (408, 500, 502, 504):
        return _Again(UnreachableError(message))
    if status == 413 and not name:
        return RefusedError(
            f"{message}: too large for the server or a proxy before it; ask its operator for more room."
        )
    if status == 401:
        return AccessError(f"{url} does not know this client: {message}")
    if name in KINDS:
        return KINDS[name](message)
    return UnreachableError(f"{message}; is {url} a CollaFuse server of this version?")


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return float(min(int(text), LONGEST_RETRY_SECONDS)) if text.isdecimal() and len(text) < 10 else 0.0


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """The TLS error behind a transport error, or None."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None
