"""What a server learned that images show, where dropout left nothing out: what its sites told it, and no part of it."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.errors import RefusedError
from .sites import Site


def refuse_untaught(client: str, sites: Sequence[Site], labels: Sequence[str] | None, text: bool) -> None:
    """Raise RefusedError unless a server that was trained without dropout saw images with these labels, None for none,
    and with text or without, of which a client asks.

    sites: those of which it has learned at the client's cut.
    """
    alike = [site for site in sites if (site.label_names is None) == (labels is None) and site.text == text]
    if alike and {name for site in alike for name in site.label_names or ()}.issuperset(labels or ()):
        return
    learned = dict.fromkeys(_described(site.label_names, site.text) for site in sites)
    raise RefusedError(
        f"images of {client!r} with {_described(labels, text)} are asked for, which a server trained with "
        f"server.training.label_dropout=0 never saw; it learned {', '.join(learned)}. Ask for that (--label, --text), "
        "or train it again with label_dropout above 0, such as 0.1."
    )


def _described(labels: Sequence[str] | None, text: bool) -> str:
    if labels is None:
        return "text without labels" if text else "neither labels nor text"
    named = f"labels {', '.join(labels)}" if labels else "none of the labels"
    return f"{named} {'with' if text else 'without'} text"
