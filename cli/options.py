"""Options that several commands share, so that they are spelled and explained once."""

from pathlib import Path
from typing import Annotated

import typer

from collafuse.core.errors import UsageError
from edge_client.cores import MOST_ASKED

MOST_ROWS = 4096
"""Images in one evaluation of the network, at most."""

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file; see configs/ for examples.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a training.")]
OutRun = Annotated[Path, typer.Option("-o", "--out", metavar="RUN", help="Run folder to write.")]
OutFile = Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="File to write.")]
OutFolder = Annotated[Path, typer.Option("-o", "--out", metavar="DIR", help="Folder to write pictures to.")]
ClientOption = Annotated[str, typer.Option("--client", metavar="NAME", help="Name of the client in the configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a setting, such as server.training.steps=500. Repeatable."),
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint that verifies.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
ProviderOption = Annotated[
    str,
    typer.Option(
        "--provider",
        metavar="P",
        help="auto (the fastest that works), cpu, cuda, tensorrt, openvino, coreml, xnnpack or onnxruntime's own name.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=MOST_ASKED, help="Threads per evaluation; by default the physical cores, at most 4."
    ),
]


def batch_size(given: str | int) -> int | None:
    """A number of images, or None for "auto". Typer gives the default too, which is no text."""
    if given == "auto":
        return None
    if not str(given).isdecimal() or not 1 <= int(given) <= MOST_ROWS:
        raise typer.BadParameter(f"{given!r}; give a number of images from 1 to {MOST_ROWS}, or auto.")
    return int(given)


Compile = Annotated[
    bool,
    typer.Option("--compile", help="Compile the network first: a minute or two, for long jobs on a GPU."),
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="L", help="What all images show; repeat it for several at once."),
]
Attributes = Annotated[
    str | None, typer.Option("--attributes", metavar="A,B", help="The same in one word: several at once.")
]
TextFile = Annotated[
    Path | None,
    typer.Option("--text", metavar="FILE", help="What the images show in turn: prompts that `collafuse text` wrote."),
]
Features = Annotated[
    str,
    typer.Option("--features", metavar="F", help="auto, inception, clip or classifier (trained on the data itself)."),
]
FeatureWeights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="PATH", help="The Inception weights or CLIP folder, if not where usual."),
]
ServerUrl = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="A server that runs `collafuse serve`: https://NAME:PORT.")
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", metavar="FILE", help="The token that the server's operator gave you.")
]
Authority = Annotated[
    Path | None, typer.Option("--ca", metavar="FILE", help="The authority (PEM) whose server alone is trusted.")
]
OwnCertificate = Annotated[
    Path | None,
    typer.Option("--cert", metavar="FILE", help="A certificate of this machine (PEM), where one is asked for."),
]
OwnKey = Annotated[Path | None, typer.Option("--key", metavar="FILE", help="The certificate's key (PEM).")]
Patience = Annotated[
    float | None,
    typer.Option(
        "--patience", min=0, help="How long to try a server again that is busy or away, in seconds; 300 by default."
    ),
]
Trackers = Annotated[
    list[str] | None,
    typer.Option("--track", metavar="NAME", help="Also log to tensorboard or wandb (extra: tracking). Repeatable."),
]


def shown_labels(label: list[str] | None, attributes: str | None) -> tuple[str, ...] | None:
    """What --label and --attributes name together; None without both. Raises UsageError where they name nothing."""
    if label is None and attributes is None:
        return None
    names = [*(label or ()), *(name.strip() for name in (attributes or "").split(","))]
    if not any(names):
        option, expected = ("--label", "a name") if attributes is None else ("--attributes", "names, with commas")
        raise UsageError(f"{option} names nothing; write {expected}, or leave it out.")
    return tuple(dict.fromkeys(name for name in names if name))


def refuse_both(resume: bool, overwrite: bool) -> None:
    """Raise UsageError for --resume and --overwrite at once: one keeps what the other removes."""
    if resume and overwrite:
        raise UsageError("--resume goes on with what lies there and --overwrite replaces it; give one of the two.")
