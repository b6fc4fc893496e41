"""A full server says so at once: before a body is read, a thread is asked or a lock is taken.

An ASGI layer between the authentication and the rest. The token is known and the engine's books lie in memory, so under
overload a refusal costs little of the core that makes images. A request that passes may still be refused, when it is
known how many images it brings.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import BusyError
from .bodies import Application, Receive, Scope, Send
from .registry import Token
from .replies import reply_for
from .service import Service

PATH = "/v1/intermediates"


@dataclass(frozen=True)
class Route:
    """What the counting of replies looks for where the application has not found the route."""

    path: str


class Gate:
    """The layer, for requests whose token the authentication has found."""

    def __init__(self, application: Application, service: Service) -> None:
        self._application, self._service = application, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine = self._service.engine
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST" and engine is not None:
            token: Token = scope["state"]["token"]
            try:
                if token.allows("sample"):  # who may not ask hears that instead
                    self._service.shares.check_any(token.id)
                    engine.check_room()
            except BusyError as error:
                scope["route"] = Route(PATH)
                await reply_for(error)(scope, receive, send)
                return
        await self._application(scope, receive, send)
