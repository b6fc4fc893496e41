"""The finished cells: read from ``results.jsonl``, and printed as Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from collafuse.evaluation.tables import Table

from .cells import WHOLE, Cell, Study

RESULTS = Path(__file__).with_name("results.jsonl")
FIGURES = {"frechet": "Fréchet", "kernel": "kernel distance", "precision": "precision", "recall": "recall",
           "read_as_asked": "read as asked"}  # fmt: skip

Lines = Mapping[Cell, Mapping[str, Any]]


def finished(path: Path = RESULTS) -> dict[Cell, dict[str, Any]]:
    """The lines of results by their cells."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    values = [json.loads(line) for line in lines if line.strip()]
    return {Cell(**{field.name: line[field.name] for field in fields(Cell)}): line for line in values}


def to_markdown(lines: Lines, study: Study) -> str:
    """A table of the pooled figures for each data, and one of each site where there are several.

    Seeds of one cell share a row: the mean of its figures, and as its spread their standard deviation; with a single
    seed the spread is that of half-samples of the images. A ratio is to the whole model of the same seed and levels.
    """
    if not lines:
        return "No cell is finished."
    firsts = dict.fromkeys(replace(cell, seed=0) for cell in study.cells)
    tables = []
    for data in dict.fromkeys(cell.data for cell in firsts):
        rows = [(cell, _seeds(lines, cell)) for cell in firsts if cell.data == data]
        rows = [(cell, seeds) for cell, seeds in rows if seeds]
        if rows:
            tables.append(_table(data, rows, {cell: _ratios(lines, study, cell) for cell, _ in rows}))
            tables.extend(_per_site(data, rows))
    return "\n\n".join(table.to_markdown() for table in tables)


def _seeds(lines: Lines, cell: Cell) -> dict[int, Mapping[str, Any]]:
    """The lines of a cell by seed."""
    return {one.seed: line for one, line in lines.items() if replace(one, seed=cell.seed) == cell}


def _ratios(lines: Lines, study: Study, cell: Cell) -> list[float]:
    """A cell's Fréchet distance over that of the whole model beside it, for each seed that has both from one judge."""
    pairs = [(line, lines.get(study.beside(replace(cell, seed=seed)))) for seed, line in _seeds(lines, cell).items()]
    return [
        line["figures"]["frechet"][0] / base["figures"]["frechet"][0]
        for line, base in pairs
        if base is not None and line["judge"] == base["judge"]
    ]


def _table(data: str, rows: list[tuple[Cell, dict[int, Any]]], ratios: Mapping[Cell, Sequence[float]]) -> Table:
    columns = ("method", "cut", "seeds", *FIGURES.values(), f"Fréchet / {WHOLE}")
    cells = []
    for cell, seeds in rows:
        figures = [_figure([line["figures"] for line in seeds.values()], name) for name in FIGURES]
        cells.append((*name_of(cell), len(seeds), *figures, _ratio(ratios[cell])))
    every = [line for _, seeds in rows for line in seeds.values()]
    some = next((line for line in every if line["steps"]), every[0])  # real images have no training
    trained = ", ".join(f"{site} {count}" for site, count in some["training_images"].items())
    steps = ", ".join(map(str, sorted(set(some["steps"].values()))))
    return Table(
        data,
        columns,
        tuple(cells),
        (
            f"{some['samples']} samples against {some['reference_images']} held-out images; training images: "
            f"{trained}; steps of each model: {steps}. Features of {_judges(every)}. Spread: over seeds where there "
            "are several, else over half-samples of the images. A ratio is to a whole model along the same levels.",
        ),
    )


def _judges(lines: Sequence[Mapping[str, Any]]) -> str:
    """Whose features the figures are of: one classifier for each kind of machine, which rounds sums its own way."""
    seeds: dict[tuple[str, float], set[int]] = {}
    for line in lines:
        seeds.setdefault((line["judge"], line["judge_accuracy"]), set()).add(line["seed"])
    each = [
        f"one that reads {accuracy:.1%} of held-out ones right ({judge}; seed {', '.join(map(str, sorted(of)))})"
        for (judge, accuracy), of in seeds.items()
    ]
    return f"a classifier trained on other images: {' and '.join(each)}"


def _per_site(data: str, rows: list[tuple[Cell, dict[int, Any]]]) -> list[Table]:
    sites = list(
        dict.fromkeys(site for _, seeds in rows for line in seeds.values() for site in line["figures_per_site"])
    )
    if not sites:
        return []
    cells = []
    for cell, seeds in rows:
        by_site = [[line["figures_per_site"][site] for line in seeds.values()] for site in sites]
        cells.append((*name_of(cell), len(seeds), *(_figure(figures, "frechet") for figures in by_site)))
    return [Table(f"{data}, Fréchet distance at each site", ("method", "cut", "seeds", *sites), tuple(cells))]


def name_of(cell: Cell) -> tuple[str, str]:
    """What a row calls a cell, and its cut."""
    name = cell.method if cell.variant is None else f"{cell.method}, {cell.variant}"
    return name, "-" if cell.cut is None else f"{cell.cut:g}"


def _figure(lines: Sequence[Mapping[str, Any]], name: str) -> str:
    """A figure and its spread."""
    if not all(name in line for line in lines):
        return "-"
    values = [line[name][0] for line in lines]
    spread = np.std(values, ddof=1) if len(values) > 1 else lines[0][name][1]
    return f"{np.mean(values):.3g} ± {spread:.2g}"


def _ratio(ratios: Sequence[float]) -> str:
    if not ratios:
        return "-"
    spread = f" ± {np.std(ratios, ddof=1):.2g}" if len(ratios) > 1 else ""
    return f"{np.mean(ratios):.3f}{spread}"
