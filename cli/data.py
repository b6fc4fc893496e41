"""collafuse data"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import emit, print_table, reporting, say

if TYPE_CHECKING:
    from collafuse.data.survey import Survey


def data(
    config: options.ConfigFile,
    client: Annotated[
        str | None,
        typer.Option("--client", metavar="NAME", help="Look at one client; other clients' own folders are not read."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Write a contact sheet per site, NAME.png.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch a published data set first, if it is not there.")
    ] = False,
    overwrite: options.Overwrite = False,
    overrides: options.Overrides = None,
    as_json: options.Json = False,
) -> None:
    """A dry look at the data before training: counts, what cannot be read, what stands at two sites, and what each
    release will contain and what not.

    Nothing is trained and nothing is released.
    """
    from collafuse.config import load
    from collafuse.core.atomic import check_output
    from collafuse.data.datasets import fetch_missing
    from collafuse.data.survey import survey
    from edge_client.pictures import to_image, write_png

    settings = load(config, overrides or ())
    names = list(settings.clients) if client is None else [client]
    sheets = {name: out / f"{name}.png" for name in names} if out is not None else {}
    for path in sheets.values():
        check_output(path, overwrite)
    if download:
        fetch_missing(settings, client)
    with reporting() as reporter:
        found = survey(settings, client, reporter)
    for name, path in sheets.items():
        write_png(path, to_image(found.sheets[name]), overwrite=overwrite)
    if as_json:
        emit(_plain(found) | {"sheets": {name: str(path) for name, path in sheets.items()}})
        return
    _show(found)
    for path in sheets.values():
        say(f"Look at {path}")


def _show(found: Survey) -> None:
    from collafuse.core.metadata import shown

    channels, side, _ = found.image_shape
    print(f"Images of {side}x{side}, {'RGB' if channels == 3 else 'grey'}.\n")
    print_table(
        ("site", "to train on", "held out", "no label", "groups", "left out", "cut"),
        [
            (
                name,
                str(site.train),
                str(site.held_out),
                str(site.without_label),
                "-" if site.groups is None else str(site.groups),
                str(len(site.problems)),
                f"sigma {site.release.sigma_cut:.3g}",
            )
            for name, site in found.sites.items()
        ],
    )
    labels = list(dict.fromkeys(label for site in found.sites.values() for label in site.labels))
    if labels:
        print()
        rows = [(label, *(str(site.labels.get(label, "-")) for site in found.sites.values())) for label in labels]
        print_table(("label", *found.sites), rows)
    for name, site in found.sites.items():
        if site.captions is not None:
            count, example = site.captions
            such = f", such as {shown(example)}" if count else ""
            print(f"\n{name}: {count} of {site.train} images to train on have a caption{such}.")
    print()
    for name, site in found.sites.items():
        plan = site.release
        shared = "without labels" if plan.labels is None else f"with {len(plan.labels)} labels"
        shared += "" if plan.text is None else f" and text of {plan.text}"
        copies = f" ({plan.copies_left_out} equal copies are not sent again)" if plan.copies_left_out else ""
        print(
            f"{name}'s release: {plan.images} images noised to sigma {plan.sigma_cut:.3g}{copies}, {shared}, "
            f"{plan.size_bytes / 2**20:.1f} MiB."
        )
    print("No release holds a held-out image, a file name, a group, EXIF, the noise or its seed.")


def _plain(found: Survey) -> dict[str, Any]:
    return {
        "image_shape": list(found.image_shape),
        "sites": {name: asdict(site) for name, site in found.sites.items()},
        "overlaps": [asdict(one) for one in found.overlaps],
    }
