"""The test mode: how good are the images of a run, per client and pooled, beside what else could have been done.

Reference: the images that each site held out. Floor: as many real training images as were generated, compared in the
same way; the extractor did not see them, since its classifier learns from the other half of the training images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Config
from ..core.conditioning import one_label_each, translate_labels
from ..core.errors import DataError, MismatchError, UsageError
from ..core.metadata import MAX_NAMES
from ..core.noise import SIGMA_SLACK
from ..data.dealing import SiteData
from ..data.imageset import ImageSet
from ..data.listening import UNHEARD, Listener
from ..learning.seeds import keyed_seed
from ..nodes.runfolder import RunFolder
from .arms import DEFAULT_METHOD, Arm, SplitRun, arms_of, levels_of, method_of
from .classifier import Classifier
from .comparison import MOST_PAIRED, RESAMPLES, SAME_SHARE, Figure, compare, share
from .energy import check_counters, energy_table
from .features import STEPS, Extractor, choose, classifier_of
from .generated import Generated
from .manifolds import DENSITY_NEIGHBOURS, PRECISION_NEIGHBOURS
from .measured import halves, load_measured
from .mixing import Mix, by_turns, mix_of, strata_of
from .pooling import pooled
from .quality import Features, Strata
from .table_notes import cuts_of, mix_of_labels, other_levels, reading_of
from .tables import FOLDER, Table
from .work import work_tables

FEWEST_HELD_OUT = 10
SAMPLES = 1_000
FLOOR = "real images (floor)"
COLUMNS = {
    "frechet": "Fréchet distance",
    "kernel": "kernel distance x 1000",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "shown": "shows its label",
}
"""The figures, and how a table heads them."""


@dataclass(frozen=True)
class Row:
    """The figures of one arm for one client or pool of clients; ``shown`` is left out where nothing was asked for."""

    of: str
    arm: str
    images: int
    reference_images: int
    figures: dict[str, Figure]


@dataclass(frozen=True)
class Evaluation:
    """What was found, and by which extractor."""

    extractor: str
    rows: tuple[Row, ...]
    tables: tuple[Table, ...]

    def values(self) -> dict[str, Any]:
        """The figures as plain values, for programs."""
        return {"features": self.extractor, "figures": [asdict(row) for row in self.rows]}


@dataclass(frozen=True)
class _Measured:
    """One arm's images of one client as numbers: features [N, F], a number for each image's label [N], and whether each
    image shows what it was asked to [N]: 1 or 0, NaN where it was asked for no label, None where none of them was."""

    features: Features
    strata: Strata
    shown: NDArray[np.float64] | None

    def take(self, rows: NDArray[np.int64]) -> _Measured:
        """The same of these images."""
        return _Measured(self.features[rows], self.strata[rows], None if self.shown is None else self.shown[rows])


def evaluate(
    run: RunFolder,
    against: Sequence[RunFolder] = (),
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    features: str = "auto",
    weights: Path | None = None,
    energy: bool = False,
    device: torch.device,
    listener: Listener = UNHEARD,
) -> Evaluation:
    """Generate by every arm of a run, and of the runs beside it, for every client, and compare with held-out images.

    samples: the most images of an arm and client; where a site has fewer real ones to make the floor of, all arms make
    as many as these. energy: also measure energy, where the machine can. Raises DataError for a site that holds out too
    few images, MismatchError for a run over other images, UsageError for the energy of a baseline, and what loading a
    run raises.
    """
    if samples < FEWEST_HELD_OUT:
        raise UsageError(f"samples={samples}; distances need at least {FEWEST_HELD_OUT} images of an arm.")
    if energy:  # before minutes of work, not after
        if (method := method_of(run)) != DEFAULT_METHOD:
            raise UsageError(
                f"--energy is measured on either side of a run of server and clients, and {run.path} is the baseline "
                f"{method}; leave it out, or set the baseline beside such a run with --against."
            )
        check_counters(device)
    config, beside = run.read_config(), _names(against)
    sites = load_measured(config, listener)
    _check_enough(sites, run.path)
    # In another order, since folders come label by label and an arm may take the first of them.
    order = np.random.default_rng(keyed_seed(seed, "held out"))
    held_out = {name: by_turns(_some(site.held_out, samples, order)) for name, site in sites.items()}
    arms = list(arms_of(run, held_out, device))
    for name, folder in beside.items():
        theirs = _check_same_images(folder, run, sites)
        found = arms_of(folder, _with_text_of(theirs, held_out), device)
        arms += [Arm(f"{name}: {arm.name}", arm.generate, arm.meaning) for arm in found]
    parts = {name: halves(site.train) for name, site in sites.items()}
    known, floors = pooled({n: one for n, (one, _) in parts.items()}), {n: other for n, (_, other) in parts.items()}
    bar = listener.bar("classifier", STEPS)
    classifier = classifier_of(known, run.path / FOLDER, bar.advance)
    extractor = choose(features, weights, known, classifier, device)
    judge = _Judge(extractor, classifier, known.label_names)

    rng = np.random.default_rng(keyed_seed(seed, "evaluate"))
    mixes = {name: mix_of(held_out[name], floor, samples) for name, floor in floors.items()}
    references = {name: judge.measure_real(_some(images, len(images), rng)) for name, images in held_out.items()}
    shuffled = {name: _some(images, len(images), rng) for name, images in floors.items()}
    measured = {FLOOR: {name: judge.measure_real(images, mixes[name]) for name, images in shuffled.items()}}
    untold: dict[str, None] = {}
    bar = listener.bar("images", sum(mix.to_generate for mix in mixes.values()) * len(arms))
    for arm in arms:
        measured[arm.name] = {}
        for number, (name, mix) in enumerate(mixes.items()):
            made = arm.generate(name, mix.to_generate, keyed_seed(seed, "arm", str(number)))
            measured[arm.name][name] = judge.measure(taken := mix.take(made))
            if not mix.is_in(taken):
                untold[name] = None
            bar.advance(mix.to_generate)
    configs = {"": config, **{name: folder.read_config() for name, folder in beside.items()}}
    groups = groups_of(*configs.values())
    bar = listener.bar("figures", len(groups) * len(measured))
    rows = []
    for of, names in groups.items():
        for arm_name, by_client in measured.items():
            rows.append(_row(of, arm_name, [by_client[n] for n in names], [references[n] for n in names], rng))
            bar.advance(1)
    every = pooled({name: site.held_out for name, site in sites.items()})
    of_one = [name for name in mixes if one_label_each(held_out[name].labels)]
    unmixed = [name for name in of_one if not mixes[name].by_label]
    keeping = [n for n in of_one if n not in unmixed and not all(c.client(n).share_labels for c in configs.values())]
    tables = [_table(rows, arms, extractor, classifier, every, groups, configs, unmixed, keeping, list(untold))]
    if method_of(run) == DEFAULT_METHOD:
        split = SplitRun(run, held_out, device)
        tables += [*work_tables(split, run), *([energy_table(split)] if energy else [])]
    return Evaluation(extractor.name, tuple(rows), tuple(tables))


def groups_of(*configs: Config) -> dict[str, tuple[str, ...]]:
    """Each client by itself, then those that have one cut and take over at one level, in each of these runs: mixed cuts
    are never pooled."""
    groups = {name: (name,) for name in configs[0].clients}
    levels: dict[tuple[float, ...], list[str]] = {}
    for name in groups:
        own = tuple(level for config in configs for level in levels_of(config, name))
        like = next((one for one in levels if np.allclose(one, own, rtol=SIGMA_SLACK, atol=0)), own)
        levels.setdefault(like, []).append(name)
    return groups | {" + ".join(names): tuple(names) for names in levels.values() if len(names) > 1}


def _names(against: Sequence[RunFolder]) -> dict[str, RunFolder]:
    """The runs beside by what tables call them: their folder's name, or their whole path where two have one name.

    Raises UsageError for a run that is named twice.
    """
    names = [folder.path.resolve().name for folder in against]
    if len(set(names)) < len(names):
        names = [str(folder.path) for folder in against]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"--against names {twice[0]} more than once; name each run once.")
    return dict(zip(names, against, strict=True))


def _check_enough(sites: Mapping[str, SiteData], path: Path) -> None:
    """Raise DataError for a site whose held-out images, or whose floor, are too few to compare."""
    for name, site in sites.items():
        if len(site.held_out) < FEWEST_HELD_OUT:
            raise DataError(
                f"{path}: {name} holds out {len(site.held_out)} images, at least {FEWEST_HELD_OUT} are needed to "
                "compare with. Give it more images, or change data.held_out, and train again."
            )
        if len(site.train) < 2 * FEWEST_HELD_OUT:
            raise DataError(
                f"{path}: {name} trains on {len(site.train)} images, at least {2 * FEWEST_HELD_OUT} are needed, half "
                "of them for the floor of real images; hold less out, or give it more images."
            )


def _check_same_images(folder: RunFolder, main: RunFolder, sites: Mapping[str, SiteData]) -> dict[str, SiteData]:
    """A run's images beside the main one's. Raises MismatchError unless they are the same of each client."""
    theirs = load_measured(folder.read_config())
    for name, site in sites.items():
        pairs = list(zip(site.parts, theirs[name].parts, strict=True)) if name in theirs else []
        if not pairs or not all(np.array_equal(ours.digests, other.digests) for ours, other in pairs):
            raise MismatchError(
                f"{folder.path} and {main.path} do not stand over the same images of client {name!r}; train both on "
                "one data section and the same clients."
            )
        if not all(np.array_equal(ours.pixels, other.pixels) for ours, other in pairs):
            other, ours = (list(one.train.image_shape) for one in (theirs[name], site))
            raise MismatchError(
                f"{folder.path} makes of the same images of client {name!r} other pixels ({other}) than {main.path} "
                f"({ours}), and distances between these say nothing; train both with one data.image_size, channels and "
                "fit."
            )
    return theirs


def _with_text_of(theirs: Mapping[str, SiteData], held_out: Mapping[str, ImageSet]) -> dict[str, ImageSet]:
    """Held-out images with what another run says of them in words: each is asked for text as it was trained with."""
    told = {}
    for name, images in held_out.items():
        own = theirs[name].held_out
        rows = {digest.tobytes(): row for row, digest in enumerate(own.digests)}
        of_image = np.array([rows[digest.tobytes()] for digest in images.digests])
        told[name] = replace(images, text=None if own.text is None else own.text.take(of_image))
    return told


def _some(images: ImageSet, count: int, rng: np.random.Generator) -> ImageSet:
    """At most so many of the images, in another order."""
    return images.take(rng.permutation(len(images))[:count])


@dataclass(frozen=True)
class _Judge:
    extractor: Extractor
    classifier: Classifier | None
    label_names: tuple[str, ...]

    def measure(self, made: Generated) -> _Measured:
        pixels, labels, shown = made.channels_first, made.labels, None
        if labels is not None:
            labels = translate_labels(labels, made.label_names, self.label_names)
            asked = labels.any(axis=1)
            if self.classifier is not None and asked.any():
                shown = np.where(asked, self.classifier.shows(pixels, labels), np.nan)
        return _Measured(self.extractor.features(pixels), strata_of(labels, len(made)), shown)

    def measure_real(self, images: ImageSet, mix: Mix | None = None) -> _Measured:
        all_of_them = Generated(images.in_memory().transpose(0, 2, 3, 1), images.labels, images.label_names)
        return self.measure(all_of_them if mix is None else mix.take(all_of_them))


def in_shares(parts: Sequence[_Measured], references: Sequence[_Measured]) -> list[_Measured]:
    """Of each client as many images, evenly over its labels, as makes its share in a pool that of its reference."""
    counts, wanted = (np.array([len(one.strata) for one in side], dtype=float) for side in (parts, references))
    if np.allclose(counts / counts.sum(), wanted / wanted.sum(), atol=SAME_SHARE):
        return list(parts)
    kept = np.floor(wanted * (counts / wanted).min() + 1e-9).astype(int)
    rows = [np.argsort(part.strata, kind="stable") for part in parts]
    return [
        part.take(order[np.linspace(0, len(order) - 1, count).round().astype(int)])
        for part, order, count in zip(parts, rows, kept, strict=True)
    ]


def _row(
    of: str, arm: str, parts: Sequence[_Measured], references: Sequence[_Measured], rng: np.random.Generator
) -> Row:
    parts, sides = in_shares(parts, references), []
    for side in (parts, references):
        strata = np.concatenate([part.strata + MAX_NAMES * client for client, part in enumerate(side)])
        order = rng.permutation(len(strata))  # figures over pairs look at the first of them
        sides.append((np.concatenate([part.features for part in side])[order], strata[order]))
    (made, of_made), (real, of_real) = sides
    figures = compare(made, real, (of_made, of_real), rng)
    shown = [part.shown for part in parts if part.shown is not None]
    of_all = np.concatenate(shown) if len(shown) == len(parts) else np.array([])
    if len(asked := of_all[~np.isnan(of_all)]):
        figures["shown"] = share(asked > 0)
    return Row(of, arm, len(made), len(real), figures)


def _table(
    rows: Sequence[Row],
    arms: Sequence[Arm],
    extractor: Extractor,
    classifier: Classifier | None,
    held_out: ImageSet,
    groups: Mapping[str, tuple[str, ...]],
    configs: Mapping[str, Config],
    unmixed: Sequence[str],
    keeping: Sequence[str],
    untold: Sequence[str],
) -> Table:
    pools = [of for of, names in groups.items() if len(names) > 1]
    notes = (
        f"Features: {extractor.name}. {reading_of(classifier, held_out)}",
        "Compared with the images that the sites held out. "
        f"{mix_of_labels(unmixed, keeping, classifier is not None, untold)}",
        f"± is one standard deviation over which images were drawn ({RESAMPLES} half-samples of both sides). Kernel "
        f"distance: cubic kernel, unbiased. Precision and recall reach to {PRECISION_NEIGHBOURS} neighbours, density "
        f"and coverage to {DENSITY_NEIGHBOURS}. Figures over pairs use at most {MOST_PAIRED} images of a side.",
        *(f"{f'Cuts of {name}' if name else 'Cuts'}: {cuts_of(config)}." for name, config in configs.items()),
        *other_levels(configs),
        f"Pooled are clients of one cut only: {'; '.join(pools) or 'here no two clients have the same'}.",
        *(f"{arm.name}: {arm.meaning}." for arm in arms),
    )
    cells = [
        (row.of, row.arm, row.images, *(_cell(row.figures.get(figure), figure) for figure in COLUMNS)) for row in rows
    ]
    return Table(
        "Quality against held-out images", ("of", "images by", "images", *COLUMNS.values()), tuple(cells), notes
    )


def _cell(figure: Figure | None, name: str) -> str | None:
    if figure is None:
        return None
    if name == "kernel":
        return Figure(1000 * figure.value, 1000 * figure.spread).shown()
    return figure.shown()
