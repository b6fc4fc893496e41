"""A run on one page: pictures, curves, tables, configuration and versions, in one HTML file that needs no network.

What `evaluate`, `audit` and `plan` found is shown as their files in ``RUN/evaluation/`` hold it: what ``NAME.json``
says in words, its tables, and the pictures of ``NAME/*.png``.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch

import collafuse

from ..config import Config
from ..config.settings import SPLIT
from ..core.errors import CollaFuseError, FileFormatError
from ..core.noise import Cut
from ..core.pictures import Pixels, side_by_side, to_uint8
from ..data.dealing import SiteData, load_sites
from ..data.imageset import ImageSet
from ..data.listening import UNHEARD, Listener
from ..nodes.runfolder import CONFIG, NodeFolder, RunFolder
from .arms import DEFAULT_METHOD, SplitRun, arms_of, levels_of, method_of, takes_over_above
from .curves import line_chart, read_losses
from .page import figure_table, page, paragraph, png_image, results_table, sheet
from .quality import nearest
from .standing import standing_of
from .tables import FOLDER, read_results

RESULTS = {"evaluation": "Quality and work", "audit": "What the server can learn", "plan": "Which cut fits"}
"""Files of results by name, and the heading of each."""
COMMANDS = {"evaluation": "evaluate"}
OF_THE_METHOD = ("audit", "plan")
"""Commands that refuse a baseline."""
SAID = {"alarms": "ALARM: ", "verdict": "", "conclusions": ""}
"""Entries of a file of results that are sentences, and how each begins."""
WARN = "warning"
SHOWN = 24
"""Images of a client in the figure."""
NEIGHBOURS = 8
COMPARED = 200
"""Images of a client whose nearest training image is looked for."""
PACKAGES = ("torch", "numpy", "onnxruntime")


def write_page(run: RunFolder, *, seed: int = 0, device: torch.device, listener: Listener = UNHEARD) -> str:
    """The page of a run of ``train`` or ``demo``, as HTML.

    Raises FileFormatError where the run is not trained or a file of results is damaged, and what reading its data
    raises.
    """
    config = run.read_config()
    sites = load_sites(config, listener)
    names = sorted(config.clients, key=lambda name: levels_of(config, name))
    bar = listener.bar("pictures", len(names))
    made: dict[str, dict[str, Pixels]] = {}
    for name in names:
        made[name] = _pictures(run, name, sites, seed, device)
        bar.advance(1)
    body = [
        f"<h1>{escape(config.name)}</h1>",
        paragraph(f"A run of CollaFuse {collafuse.__version__}, method {method_of(run)}."),
        paragraph(
            "This page holds images of the sites, under Nearest training images and among the held-out ones. It may go "
            "only where those images may go.",
            WARN,
        ),
        *_figure(config, names, made, sites),
        *_neighbours(names, made, sites),
        *_results(run, config.method),
        *_curves(run),
        "<h2>Configuration</h2>",
        f"<pre>{escape((run.path / CONFIG).read_text(encoding='utf-8'))}</pre>",
        "<h2>Versions</h2>",
        paragraph(_versions()),
    ]
    return page(f"{config.name}: a run of CollaFuse", body)


def _pictures(
    run: RunFolder, client: str, sites: Mapping[str, SiteData], seed: int, device: torch.device
) -> dict[str, Pixels]:
    """A client's pictures by what made them; the last are those that the run is for."""
    held_out = {name: site.held_out for name, site in sites.items()}
    if method_of(run) != DEFAULT_METHOD:
        return {arm.name: arm.generate(client, COMPARED, seed).pixels for arm in arms_of(run, held_out, device)}
    split = SplitRun(run, {client: held_out[client]}, device)
    delivered = split.from_server(client, COMPARED, seed)
    return {
        "client alone, from noise": split.client_alone(client, SHOWN, seed).pixels,
        "server, as delivered": to_uint8(delivered.x),
        "server, then client": split.finished(client, delivered).pixels,
    }


def _spread(count: int, shown: int) -> np.ndarray:
    """Rows that are spread over all, since labels come in blocks."""
    return np.linspace(0, count - 1, min(shown, count)).astype(int)


def _figure(
    config: Config, names: Sequence[str], made: Mapping[str, Mapping[str, Pixels]], sites: Mapping[str, SiteData]
) -> list[str]:
    rows = []
    for what in made[names[0]]:
        cells = [made[name][what][_spread(len(made[name][what]), SHOWN)] for name in names]
        rows.append((what, [sheet(one, 6, 300, f"{name}: {what}") for name, one in zip(names, cells, strict=True)]))
    if all(len(sites[name].held_out) for name in names):
        shown = [_channels_last(sites[name].held_out, SHOWN) for name in names]
        rows.append(
            ("held-out images", [sheet(o, 6, 300, f"{n}: held out") for n, o in zip(names, shown, strict=True)])
        )
    return [
        f"<h2>Pictures, by {'cut' if config.method in SPLIT else 'client'}</h2>",
        paragraph(_order_said(config)),
        figure_table([_heading(config, name) for name in names], rows),
    ]


def _heading(config: Config, client: str) -> str:
    if config.method not in SPLIT:
        return client
    (cut, _), later = levels_of(config, client), takes_over_above(config, client)
    return f"{client}: {Cut(cut).describe()}" + (f", takes over at sigma {later:.3g}" if later is not None else "")


def _order_said(config: Config) -> str:
    """What the order of the columns means."""
    if config.method not in SPLIT:
        return "Columns are clients. One model makes an image from noise to the end, and there is no cut."
    columns = "Columns are clients, from the lowest cut to the highest"
    if config.server.kind == "statistics":
        return f"{columns}. The server saw statistics, and no image in any form."
    return f"{columns}: the further right, the less the server sees."


def _neighbours(
    names: Sequence[str], made: Mapping[str, Mapping[str, Pixels]], sites: Mapping[str, SiteData]
) -> list[str]:
    """Generated images beside the nearest training image of their site: a copy would show here."""
    rows, sentences = [], []
    for name in names:
        pixels = list(made[name].values())[-1]
        train = sites[name].train
        which, apart = nearest(pixels.transpose(0, 3, 1, 2), train.pixels)
        closest = np.argsort(apart)[:NEIGHBOURS]
        pairs = side_by_side(pixels[closest], train.pixels[which[closest]].transpose(0, 2, 3, 1))
        rows.append((name, [sheet(pairs, NEIGHBOURS, 700, f"{name}: generated beside nearest training image")]))
        sentence = f"{name}: {apart.mean():.0f} grey levels from a generated image to its nearest on average"
        if len(sites[name].held_out):
            held_out = sites[name].held_out.pixels
            usual = nearest(held_out[_spread(len(held_out), COMPARED)], train.pixels)[1].mean()
            sentence += f", {usual:.0f} from a held-out one; ratio {apart.mean() / usual:.2f}"
        sentences.append(f"{sentence}.")
    return [
        "<h2>Nearest training images</h2>",
        paragraph(
            f"Of {COMPARED} generated images of each client the {NEIGHBOURS} that come nearest to a training image of "
            "its site, left, with that image, right. A ratio well below 1 would say that training images are repeated."
        ),
        figure_table([""], rows),
        *(paragraph(sentence, "note") for sentence in sentences),
    ]


def _results(run: RunFolder, method: str) -> list[str]:
    parts, folder, now = [], run.path / FOLDER, standing_of(run)
    for name, title in RESULTS.items():
        parts.append(f"<h2>{escape(title)}</h2>")
        path = folder / f"{name}.json"
        if not path.exists():
            missing = f"Not measured yet: `collafuse {COMMANDS.get(name, name)} RUN` does."
            if name in OF_THE_METHOD and method != DEFAULT_METHOD:
                missing = f"Not measured: `collafuse {name}` is of the method's own runs, and this one is a baseline."
            parts.append(paragraph(missing, "note"))
            continue
        tables, values = read_results(path)
        if values.get("standing", now) != now:  # a file of before this was recorded does not say
            again = f"`collafuse {COMMANDS.get(name, name)} RUN` measures it anew."
            parts.append(
                paragraph(f"Of the run as it was: its models, or how they sample, are others now. {again}", WARN)
            )
        parts += [paragraph(sentence, WARN) for sentence in _changed_beside(values.get("standing_beside"))]
        for entry, opening in SAID.items():
            said = _sentences(values.get(entry, []), path, entry)
            parts += [paragraph(f"{opening}{one}", WARN if opening else "") for one in said]
        parts += [results_table(table) for table in tables]
        parts += [
            f"<figure>{png_image(one.read_bytes(), one.stem)}<figcaption>{escape(one.stem)}</figcaption></figure>"
            for one in sorted((folder / name).glob("[!.]*.png"))  # a hidden file is one that was never finished
        ]
    return parts


def _changed_beside(standings: object) -> list[str]:
    """What to say of runs that were evaluated beside this one and are others now; one that lies there no more, or on
    another machine, is not asked."""
    found = standings if isinstance(standings, dict) else {}
    said = [_said_beside(Path(path), before) for path, before in found.items()]
    return [sentence for sentence in said if sentence]


def _said_beside(path: Path, before: str) -> str:
    try:
        now = standing_of(RunFolder(path))
    except CollaFuseError as error:  # this run's report is to be had all the same
        return f"Beside {path.name} as it was; as it is now it cannot be read: {error}"
    if now in ("", before):
        return ""
    return f"Beside {path.name} as it was: its models, or how they sample, are others now. Evaluate against it anew."


def _sentences(values: object, path: Path, entry: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise FileFormatError(f"{path}: {entry} is no list of sentences; write the results again.")
    return values


def _curves(run: RunFolder) -> list[str]:
    """A chart for each node that left metrics, the server first."""
    paths = sorted(run.path.rglob("metrics.jsonl"), key=lambda path: (path.parent != run.server.path, path))
    drawn = [line_chart(f"{_node(path.parent)}: loss by noise level", read_losses(path), "step") for path in paths]
    charts = [f"<div>{chart}</div>" for chart in drawn if chart]
    return ["<h2>Training</h2>", f'<div class="row">{"".join(charts)}</div>'] if charts else []


def _node(folder: Path) -> str:
    """Whose a node's folder is; a client's distilled one lies inside its own."""
    return f"{folder.parent.name}, {folder.name}" if folder == NodeFolder(folder.parent).distilled.path else folder.name


def _channels_last(images: ImageSet, count: int) -> Pixels:
    """So many of the images, [N, H, W, C]."""
    return images.pixels[_spread(len(images), count)].transpose(0, 2, 3, 1)


def _versions() -> str:
    found = [f"collafuse {collafuse.__version__}", f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{', '.join(found)}; {platform.system()} {platform.machine()}."
