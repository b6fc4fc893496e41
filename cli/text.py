"""collafuse text"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import emit, reporting, say


def text(
    encoder: Annotated[
        str,
        typer.Option(
            "--encoder", metavar="PATH", help="The T5 encoder of the training (data.text.encoder), on this disk."
        ),
    ],
    out: options.OutFile,
    prompts: Annotated[list[str] | None, typer.Argument(metavar="[PROMPT]...", help="What the images show.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="Prompts from a text file, one a line.")
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=2, max=512, help="Longer prompts are cut there (data.text.max_tokens).")
    ] = 20,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Make numbers of prompts, for deliver --text and finish --text: a device has no text encoder (extra: text).

    The file holds the prompts themselves too, for whoever wants to know what it asks for.
    """
    from collafuse.core import texts
    from collafuse.core.atomic import check_output, write_bytes
    from collafuse.data.text import encode_prompts, read_prompts

    check_output(out, overwrite)
    given = [*(prompts or ()), *(read_prompts(file) if file is not None else ())]
    with reporting() as reporter:
        made = encode_prompts(given, encoder, max_tokens, reporter)
    write_bytes(out, texts.to_bytes(made), overwrite=overwrite)
    say(f"Wrote {len(made)} prompts as numbers of {made.text.space.encoder} to {out}.")
    if as_json:
        space = made.text.space
        emit({"file": str(out), **texts.text_fields(space), "prompts": list(made.prompts)})
