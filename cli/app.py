"""The Typer app: registers the commands and turns our exceptions into sentences and exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from importlib import import_module

import typer

import collafuse
from collafuse.core.errors import CollaFuseError, RuntimeMissingError, UsageError
from collafuse.core.launched import processes_launched

from .console import say

COMMANDS = tuple(
    "demo data train release train-server train-client text deliver serve tokens export-client "
    "finish evaluate audit report plan inspect keys bench doctor".split()
)
"""In the order in which a user meets them; each is in a module of its name."""

SEVERAL = ("train-server",)
"""Commands that torchrun may start several times."""

ON_DEVICES = ("finish", "inspect", "keys", "bench", "doctor")
"""Commands that need NumPy for arrays alone, and mostly a short time."""

WANTED = {
    **dict.fromkeys(
        ("torch", "torchvision", "onnx", "onnxscript", "yaml", "sklearn", "joblib", "matplotlib"), "collafuse[train]"
    ),
    **dict.fromkeys(("fastapi", "uvicorn", "starlette", "prometheus_client"), "collafuse[serve]"),
    "cryptography": "collafuse[sign]",
    **dict.fromkeys(("transformers", "tokenizers"), "collafuse[text]"),
    "httpx": "httpx",  # finishing from files does without
}
"""Packages that a device may not have, and what to install for each."""


def _show_version(value: bool) -> None:
    if value:
        print(collafuse.__version__)
        raise typer.Exit


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


def build(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The app with these commands, whose modules are loaded."""
    app = typer.Typer(
        name="collafuse",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        add_completion=False,
        help="Collaborative diffusion models: sites keep their images, a server does the high-noise steps, "
        "devices finish the pictures.",
    )
    app.callback()(_options)
    for name in names:
        word = name.replace("-", "_")
        module = import_module(f".{word}", __package__)
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, word))
    return app


def main() -> None:
    """Run the command line. Ends the process with the exit code that ``docs/exit-codes.md`` lists."""
    # A device has no use for nineteen other commands, which take a sixth of the time to its first picture.
    named = [word for word in sys.argv[1:2] if word in COMMANDS]
    if set(named) & set(ON_DEVICES) and "numpy" not in sys.modules:
        # Loading NumPy starts a thread a core for matrix products otherwise: a seventh of a first picture's processor
        # time, and of its time where other work needs the cores.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # torch's threads wait for each other awake, which beside another busy process holds up all of them: `evaluate` took
    # 2.3 times as long. This is how long libgomp itself lets them where there are more of them than processors.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        build(named or COMMANDS)()
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
