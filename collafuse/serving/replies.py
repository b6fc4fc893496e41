"""What goes over the wire as JSON: requests, descriptions, and our errors with the sentences they have elsewhere."""

from __future__ import annotations

import base64
import binascii
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from ..config import ClientName, ServerSamplerName
from ..core import errors, texts
from ..core.conditioning import ENCODER_NAME, MAX_TEXT_WIDTH, TextSpace
from ..core.texts import EncodedText
from ..nodes.planned import check_asked
from .admission import OverLimitError

MAX_DELIVERY_IMAGES = 10_000
"""The largest delivery; a request asks for some of its images."""
MAX_LABELS = 64
MAX_ROW = 4 * -(-2 * MAX_TEXT_WIDTH // 3)
"""Characters of a text in base64."""
MAX_SEED = 2**63 - 1

STATUS: dict[type[errors.CollaFuseError], int] = {
    errors.UsageError: 422,
    errors.ConfigError: 409,
    errors.FileFormatError: 422,
    errors.MismatchError: 422,
    errors.RefusedError: 403,
    errors.AccessError: 403,
    errors.OutputExistsError: 409,
    errors.StorageError: 507,
    OverLimitError: 429,
    errors.BusyError: 503,
}
"""Our exceptions as HTTP statuses; a token that is not valid at all is a 401 before any of these."""


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TextRequest(_Body):
    """Texts as numbers, which the encoder of the model's training made; `collafuse text` writes them to a file."""

    encoder: Annotated[str, Field(pattern=f"^{ENCODER_NAME}$", description="It must be the model's text_encoder.")]
    rows: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_ROW)]],
        Field(
            min_length=1,
            max_length=texts.MAX_ASKED,
            description="Each the base64 of the model's text_width little-endian float16 numbers, of root mean square "
            "1. The images are dealt out to them in blocks.",
        ),
    ]

    def decoded(self, space: TextSpace | None) -> EncodedText:
        """The texts, checked. Raises MismatchError for another encoder, FileFormatError for what is no text of it."""
        check_asked(TextSpace(self.encoder, 0 if space is None else space.width), space)
        assert space is not None
        try:
            data = [base64.b64decode(row, validate=True) for row in self.rows]
        except binascii.Error as error:
            raise errors.FileFormatError(f"text.rows is no base64 ({error}); see /openapi.json.") from None
        if wrong := [len(one) for one in data if len(one) != 2 * space.width]:
            raise errors.FileFormatError(
                f"text.rows holds a text of {wrong[0]} bytes, expected {space.width} float16 numbers."
            )
        rows = np.frombuffer(b"".join(data), dtype="<f2").astype(np.float16).reshape(len(data), space.width)
        texts.check(rows, "text.rows")
        return EncodedText(space, rows)


class IntermediatesRequest(_Body):
    """What a client asks for: ``count`` images in all, of which this request brings the rows ``start`` to ``stop``.

    Parts of one delivery with one seed make the whole together, so a large one can be fetched in parts and resumed.
    """

    client: Annotated[ClientName, Field(description="The site whose devices finish them; it must be the token's.")]
    count: Annotated[int, Field(ge=1, le=MAX_DELIVERY_IMAGES, strict=True)] = 1
    labels: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=200)]] | None,
        Field(
            max_length=MAX_LABELS,
            description="What every image shows; without it and without text the client's labels are dealt out.",
        ),
    ] = None
    text: Annotated[TextRequest | None, Field(description="What the images show: texts as numbers.")] = None
    seed: Annotated[
        int | None, Field(ge=0, le=MAX_SEED, strict=True, description="Makes the same intermediates again.")
    ] = None
    start: Annotated[int, Field(ge=0, strict=True, description="First row of the delivery that is wanted.")] = 0
    stop: Annotated[int | None, Field(ge=1, strict=True, description="Row before which to stop; the end.")] = None
    sampler: Annotated[ServerSamplerName | None, Field(description="In place of the one that is configured.")] = None
    half: Annotated[bool, Field(strict=True, description="float16, half the bytes.")] = False
    deadline_seconds: Annotated[float | None, Field(ge=0.1, description="Shorter than the server's own.")] = None


class ErrorReply(BaseModel):
    """An error: its name in our tree, a sentence with the value, what was expected and what to do next."""

    error: str
    message: str
    retry_after: int | None = None
    """Seconds after which to ask again, where that may help."""


class SiteReply(BaseModel):
    """What may be delivered to one client."""

    client: str
    sigma_cut: float
    sigma: float
    """Where the server stops: the cut times the handover."""
    labels: list[str]
    dealt_labels: list[str]
    """What is dealt out when neither labels nor text are asked for; empty where the site keeps them."""
    text: bool
    """Whether text may be asked for."""


class ModelReply(BaseModel):
    """The server's model and what it delivers to whom."""

    server_model: str
    image_shape: list[int]
    label_names: list[str]
    text_encoder: str | None
    """What makes numbers of a text; None for a model without text."""
    text_width: int
    """How many numbers; 0 without text."""
    sampler: str
    steps: int
    guidance: float
    autoguidance: float
    batch: int
    """Rows of the shared batch: a file made with this batch size has the same bytes."""
    request_images: int
    """The most images that one request may ask for."""
    deadline_seconds: float
    """How long a request may take; then it is answered with 503."""
    clients: list[SiteReply]


class StateReply(BaseModel):
    """What the server is doing now. Images wait for a row of the shared batch, of which so many are used."""

    server_model: str | None
    rows: int
    rows_used: int
    requests: int
    images_waiting: int
    images_finished: int
    steps: int
    images_per_second: float | None
    releases: int


class ReleaseReply(BaseModel):
    """A release that this server holds durably."""

    client: str
    id: str
    sha256: str
    bytes: int
    images: int
    sigma_cut: float


class ReleasesReply(BaseModel):
    """The releases of one client, in the order in which they came."""

    releases: list[ReleaseReply]
    release_bytes: int
    """The most that one release may have."""


class HealthReply(BaseModel):
    """ok, or the reason why not."""

    status: str


def error_reply(status: int, error: Exception | str, message: str | None = None) -> JSONResponse:
    """The reply for an error: an exception of ours, or a name and a sentence."""
    retry_after = getattr(error, "retry_after", None)
    name = error if isinstance(error, str) else type(error).__name__
    body: dict[str, Any] = {"error": name, "message": message or str(error), "retry_after": retry_after}
    headers = {} if retry_after is None else {"Retry-After": str(math.ceil(retry_after))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status, headers=headers)


def reply_for(error: errors.CollaFuseError, folder: Path | None = None) -> JSONResponse:
    """The reply for one of our exceptions; where the server's folder lies is nobody's business."""
    message = str(error) if folder is None else str(error).replace(str(folder), "the server's folder")
    for kind in type(error).__mro__:
        if kind in STATUS:
            return error_reply(STATUS[kind], error, message)
    return error_reply(500, error, message)
