"""collafuse keys"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import emit, print_table, say

app = typer.Typer(no_args_is_help=True, help="Keys that sign bundles at a site, and those that a device trusts.")


@app.command()
def new(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="KEY", help="File for the private key.")],
    as_json: options.Json = False,
) -> None:
    """At a site: make a key to sign bundles with. The public half goes into KEY.pub, for the site's devices."""
    from collafuse.core.signing import SigningKey, public_of

    made = SigningKey.new(out)
    say(f"Wrote {out}, readable by you alone: keep it at the site. Whoever has it can sign for the site.")
    say(f"Wrote {public_of(out)}: give it to the devices. Next:")
    say(f"  collafuse export-client RUN --client NAME --sign {out} -o client.onnx")
    say(f"  collafuse keys pin {public_of(out)}      # on each device")
    if as_json:
        emit({"private": str(out), "public": str(public_of(out)), "key": made.public})


@app.command()
def pin(
    file: Annotated[Path, typer.Argument(metavar="KEYS", help="Public keys, such as the .pub file of keys new.")],
    as_json: options.Json = False,
) -> None:
    """On a device: trust these keys. From then on finish refuses bundles that none of them has signed."""
    from edge_client.trust import pin as pin_keys
    from edge_client.trust import pinned_file

    keys = pin_keys(file)
    say(f"{len(keys)} {'key is' if len(keys) == 1 else 'keys are'} trusted here, in {pinned_file()}.")
    if as_json:
        emit({"file": str(pinned_file()), "keys": keys})


@app.command("list")
def list_(as_json: options.Json = False) -> None:
    """On a device: show the keys that are trusted here. To trust one no longer, remove its line from the file."""
    from collafuse.core.signing import read_public_keys
    from edge_client.trust import pinned_file

    file = pinned_file()
    keys = read_public_keys(file) if file.exists() else {}
    say(f"{len(keys)} trusted here, in {file}." if keys else f"No key is pinned in {file}, so any bundle is loaded.")
    if as_json:
        emit({"file": str(file), "keys": keys})
    elif keys:
        print_table(("name", "key"), [(name, key) for key, name in keys.items()])
