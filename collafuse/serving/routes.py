"""What the routes of the service have in common: the token that each is given, and what each may answer."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from .registry import Token
from .replies import ErrorReply

SAFETENSORS = "application/octet-stream"
Responses = dict[int | str, dict[str, Any]]
"""What a route may answer besides its model, by status, for the description of the API."""

_bearer = HTTPBearer(auto_error=False, description="A token that `collafuse tokens add` made.")


def errors(*statuses: int) -> Responses:
    """What any route may answer that is no success, and these statuses."""
    return {status: {"model": ErrorReply} for status in (400, 401, 403, 408, 411, 413, 415, 422, 429, *statuses)}


async def _token(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Token:
    """The token that the authentication has found; a dependency. Async, or FastAPI would ask a thread for it."""
    token: Token = request.state.token
    return token


Authenticated = Annotated[Token, Depends(_token)]
