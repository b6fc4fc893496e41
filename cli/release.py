"""collafuse release"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import emit, reporting, say
from .remote import open_remote

if TYPE_CHECKING:
    from collafuse.core.statistics import Statistics
    from edge_client.remote import Remote


def release(
    config: options.ConfigFile,
    client: options.ClientOption,
    out: options.OutFile,
    new_only: Annotated[
        bool,
        typer.Option(
            "--new-only", help="Leave out images that the ledger knows: a later release, to NAME.2.safetensors."
        ),
    ] = False,
    spend_again: Annotated[
        bool,
        typer.Option("--spend-again", help="Release images again that the ledger knows. Lowers their privacy."),
    ] = False,
    new_ledger: Annotated[
        bool, typer.Option("--new-ledger", help="Begin a ledger: this site has never released an image before.")
    ] = False,
    server: options.ServerUrl = None,
    token_file: options.TokenFile = None,
    ca: options.Authority = None,
    cert: options.OwnCertificate = None,
    key: options.OwnKey = None,
    patience: options.Patience = None,
    overwrite: options.Overwrite = False,
    overrides: options.Overrides = None,
    as_json: options.Json = False,
) -> None:
    """At a site: noise each image once, up to the cut, into a release file for the server; or, where the server's kind
    is statistics, write counts, means and covariances in place of the images.

    The noise comes from the operating system and cannot be seeded. The site's ledger (clients.NAME.ledger in the
    configuration) refuses a second release of an image; sending the same file again is no second release: with
    --server, a FILE that is there already is sent as it is.
    """
    from collafuse.config import load
    from collafuse.core.errors import ConfigError
    from collafuse.core.noise import Cut
    from collafuse.data.dealing import load_site
    from collafuse.nodes.ledger import Ledger
    from collafuse.nodes.releasing import Releaser

    # First, so that a token that is missing is noticed before anything is released.
    remote = None if server is None else open_remote(server, token_file, ca, cert, key, patience, say)
    if remote is not None and out.exists() and not overwrite:
        say(f"{out} is there already; it is sent as it is.")
        sent = _send(remote, out)
        if as_json:
            emit({"release": str(out), "sent": sent})
        return
    settings = load(config, overrides or ())
    settings.refuse_baseline("release")
    ledger = settings.client(client).ledger
    if ledger is None:
        raise ConfigError(
            f"client {client!r} has no ledger; set clients.{client}.ledger to a file that this site keeps, "
            "where released images are recorded."
        )
    with reporting() as reporter:
        site = Releaser(settings, client, load_site(settings, client, reporter))
    record = Ledger(ledger)
    if not new_ledger:
        record.require()
    statistics = settings.server.kind == "statistics"
    values: dict[str, Any] = {"release": str(out), "ledger": str(ledger)}
    with reporting() as reporter:
        how = {"simulated": False, "new_only": new_only, "spend_again": spend_again, "overwrite": overwrite}
        advance = reporter.bar("counting" if statistics else "noising", len(site.site.train)).advance
        if statistics:
            counted = site.release_statistics(out, record, advance=advance, **how)
            say(_said(client, counted))
            values["epsilon"] = None if counted.about.budget is None else counted.about.budget.epsilon
        else:
            made = site.release(out, record, advance=advance, **how)
            say(f"Released {len(made.z)} images of {client} at {Cut(made.sigma_cut).describe()}.")
            values |= {"images": len(made.z), "sigma_cut": made.sigma_cut}
    say(f"The ledger is {ledger}; keep it.")
    if remote is None:
        say(f"Send {out} to the server, as {client}.safetensors (a later one as {client}.2.safetensors).")
    else:
        values["sent"] = _send(remote, out)
    if as_json:
        emit(values)


def _said(client: str, counted: Statistics) -> str:
    """What a release of statistics holds, and what it promises."""
    names = "all images together" if counted.label_names is None else ", ".join(counted.label_names)
    budget = counted.about.budget
    promise = "without noise: nothing is promised" if budget is None else f"for {budget.describe()} an image"
    return f"Released statistics of {client} ({names}), no image, {promise}."


def _send(remote: Remote, path: Path) -> dict[str, Any]:
    """Send a release file; what the server holds then."""
    from edge_client.fetching import send_release

    with remote:
        sent = send_release(remote, path)
    say(f"The server holds it as {sent['id']} of {sent['client']}: {sent['images']} images.")
    return sent
