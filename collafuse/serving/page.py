"""The page at / and what it shows: the state of the server, and the images that left it last.

It loads nothing from elsewhere. The page itself is for everyone; what it shows needs a token with scope admin.
"""

from __future__ import annotations

import io
import secrets
from importlib import resources

import numpy as np
from fastapi.responses import HTMLResponse
from numpy.typing import NDArray
from PIL import Image

from ..core.pictures import contact_sheet, to_uint8

COLUMNS = 12


def page() -> HTMLResponse:
    """The page, which may run its own script and nothing else."""
    nonce = secrets.token_urlsafe(16)
    text = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    return HTMLResponse(text.replace("NONCE", nonce), headers=headers)


def gallery(images: list[NDArray[np.float32]]) -> bytes:
    """A PNG file of images [C, H, W], side by side; of two or four channels the first is shown."""
    x = np.stack(images)
    if x.shape[1] not in (1, 3):
        x = x[:, :1]
    file = io.BytesIO()
    Image.fromarray(contact_sheet(to_uint8(x), columns=min(COLUMNS, len(x)))[0]).save(file, "PNG")
    return file.getvalue()
