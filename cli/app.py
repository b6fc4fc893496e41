"""The Typer app: registers the commands and turns our exceptions into sentences and exit codes."""

from __future__ import annotations

import sys

import typer

import collafuse
from collafuse.core.errors import CollaFuseError, RuntimeMissingError, UsageError
from collafuse.core.launched import processes_launched

from . import (
    audit,
    bench,
    data,
    deliver,
    demo,
    doctor,
    evaluate,
    export_client,
    finish,
    inspect,
    keys,
    plan,
    release,
    report,
    serve,
    text,
    tokens,
    train,
    train_client,
    train_server,
)
from .console import say

app = typer.Typer(
    name="collafuse",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Collaborative diffusion models: sites keep their images, a server does the high-noise steps, "
    "devices finish the pictures.",
)

COMMANDS = {
    "demo": demo.demo,
    "data": data.data,
    "train": train.train,
    "release": release.release,
    "train-server": train_server.train_server,
    "train-client": train_client.train_client,
    "text": text.text,
    "deliver": deliver.deliver,
    "serve": serve.serve,
    "tokens": tokens.app,
    "export-client": export_client.export_client,
    "finish": finish.finish,
    "evaluate": evaluate.evaluate,
    "audit": audit.audit,
    "report": report.report,
    "plan": plan.plan,
    "inspect": inspect.inspect,
    "keys": keys.app,
    "bench": bench.bench,
    "doctor": doctor.doctor,
}
"""In the order in which a user meets them."""

SEVERAL = ("train-server",)
"""Commands that torchrun may start several times."""

WANTED = {
    **dict.fromkeys(
        ("torch", "torchvision", "onnx", "onnxscript", "yaml", "sklearn", "matplotlib"), "collafuse[train]"
    ),
    **dict.fromkeys(("fastapi", "uvicorn", "starlette", "prometheus_client"), "collafuse[serve]"),
    "cryptography": "collafuse[sign]",
    **dict.fromkeys(("transformers", "tokenizers"), "collafuse[text]"),
    "httpx": "httpx",  # finishing from files does without
}
"""Packages that a device may not have, and what to install for each."""

for _name, _command in COMMANDS.items():
    if isinstance(_command, typer.Typer):
        app.add_typer(_command, name=_name)
    else:
        app.command(_name)(_command)  # type: ignore[type-var]


def _show_version(value: bool) -> None:
    if value:
        print(collafuse.__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
) -> None:
    started = processes_launched()
    if started > 1 and context.invoked_subcommand not in SEVERAL:
        raise UsageError(
            f"torchrun started {started} processes of {context.invoked_subcommand}, and all would write the same; "
            f"of the commands only {', '.join(SEVERAL)} can be shared."
        )


def main() -> None:
    """Run the command line. Ends the process with the exit code that ``docs/exit-codes.md`` lists."""
    try:
        app()
    except CollaFuseError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in WANTED:
            raise
        missing = RuntimeMissingError(
            f"this command needs {package}, which is not installed here; pip install '{WANTED[package]}'."
        )
        say(f"error: {missing}")
        sys.exit(missing.exit_code)
    except BrokenPipeError:
        # Whoever read our output has gone, as in `collafuse inspect FILE | head`.
        sys.stderr.close()
        sys.exit(141)
    except KeyboardInterrupt:
        say("interrupted.")
        sys.exit(130)
