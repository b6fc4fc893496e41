"""collafuse serve"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import say


def serve(
    run: options.RunPath,
    host: Annotated[str, typer.Option("--host", help="Where to listen; other machines need TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8765,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", metavar="FILE", help="Its key (PEM).")] = None,
    client_ca: Annotated[
        Path | None, typer.Option("--client-ca", metavar="FILE", help="Clients must show a certificate of this one.")
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(
            "--slots", metavar="N", parser=options.batch_size, help="Rows of the shared batch, or auto: the fastest."
        ),
    ] = 16,
    fit: Annotated[
        bool,
        typer.Option("--fit", help="Evaluate only as many rows as are used: faster when few are, not byte-identical."),
    ] = False,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Images accepted and not finished, at most.")] = 1024,
    stretch: Annotated[
        float, typer.Option("--stretch", min=1, help="Times as long as alone that a request may take, at most.")
    ] = 64.0,
    deadline: Annotated[float, typer.Option("--deadline", min=1, help="Seconds for a request.")] = 120.0,
    max_images: Annotated[int, typer.Option("--max-images", min=1, help="Images in one request, at most.")] = 256,
    rate: Annotated[int, typer.Option("--rate", min=1, help="Images a minute for one token.")] = 6000,
    open_requests: Annotated[int, typer.Option("--open", min=1, help="Open requests of one token.")] = 64,
    max_release: Annotated[int, typer.Option("--max-release", min=1, help="MiB of one release, at most.")] = 1024,
    receive_only: Annotated[
        bool, typer.Option("--receive-only", help="Receive releases; RUN need not be trained yet.")
    ] = False,
    accept_simulated: Annotated[
        bool, typer.Option("--accept-simulated", help="Serve a run whose releases a simulation made.")
    ] = False,
    compile_first: options.Compile = False,
    device: options.Device = "auto",
) -> None:
    """At the server: deliver intermediates and receive releases over HTTP.

    Clients need tokens (`collafuse tokens add`). Ends on SIGTERM or Ctrl-C when what was accepted is finished.
    """
    from collafuse.core.errors import UsageError
    from collafuse.nodes.runfolder import RunFolder
    from collafuse.serving.admission import Limits
    from collafuse.serving.app import make_app
    from collafuse.serving.listening import Address, listen
    from collafuse.serving.service import Service

    if fit and compile_first:
        raise UsageError("--compile is for one shape and --fit takes many; give one of the two.")
    address = Address(host, port, tls_cert, tls_key, client_ca)
    limits = Limits(max_images, rate, open_requests, deadline, max_release << 20)
    RunFolder(run).refuse_baseline("serve")
    folder = RunFolder(run).server
    engine = None
    if not receive_only:
        from collafuse.learning.device import choose_device
        from collafuse.nodes.server import Server
        from collafuse.serving.engine import Engine

        server = Server.load(folder, choose_device(device))
        if slots is None:
            slots = server.fastest_batch()
            say(f"{slots} rows are fastest here.")
        if compile_first:
            server.compile(slots, say)
        engine = Engine(server, slots, fit=fit, queue_images=queue, stretch=stretch)
    service = Service.open(folder, engine, limits, accept_simulated=accept_simulated)

    def started(url: str) -> None:
        what = "receives releases" if engine is None else f"delivers to {', '.join(engine.server.sites)}"
        say(f"Serving at {url}: {what}. Page: {url}/. Ctrl-C ends it.")

    if engine is not None:
        engine.start()
    try:
        if engine is not None and compile_first:
            say("Compiling the network ...")
            engine.beat().result()  # the first step, before anyone can wait for it
        listen(make_app(service), address, deadline, started)
    finally:
        if engine is not None:
            engine.stop()
        service.close()
