"""Training curves as SVG, from the metrics that each node left. A line chart is small enough to be written out here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 110, 26, 34
COLOURS = tuple(
    "#222222 #d1495b #edae49 #1b6ca8 #7b4ea8 #66a182 #8d6a4f #c06c84 #00a6a6 #999999 #4b6b00 #e07a00".split()
)  # one for each level, one for all, one for the noise alone, one for what was kept back
SMOOTHED = 25
"""Points of a curve: more are averaged in groups, since single steps are noise."""

Curve = Sequence[tuple[float, float]]


def read_losses(path: Path) -> dict[str, list[tuple[float, float]]]:
    """(step, loss) by noise level, as ``metrics.jsonl`` holds them; "all" is the loss itself, "noise alone" the least
    that releases allow, "kept back" that of images that are not learned from. A line that was cut short when a machine
    stopped is left out."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
            values = {"all": record["loss"], **record.get("loss_per_sigma", {})}
            if "least_loss" in record:
                values["noise alone"] = record["least_loss"]
            if "validation_loss" in record:
                values["kept back"] = record["validation_loss"]
            step = float(record["step"])
        except (ValueError, KeyError, TypeError):
            continue
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault(name, []).append((step, float(value)))
    return curves


def smoothed(curve: Curve, points: int = SMOOTHED) -> list[tuple[float, float]]:
    """At most so many points: means of neighbours."""
    size = math.ceil(len(curve) / points)
    groups = [curve[i : i + size] for i in range(0, len(curve), max(1, size))]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def line_chart(title: str, curves: Mapping[str, Curve], x_label: str) -> str:
    """An SVG of these curves over one pair of axes, y from 0; an empty text for nothing to draw."""
    drawn = {name: smoothed(curve) for name, curve in curves.items() if len(curve) > 1}
    if not drawn:
        return ""
    x_max = max(x for curve in drawn.values() for x, _ in curve)
    y_max = max(y for curve in drawn.values() for _, y in curve) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        across, down = x / (x_max or 1.0), 1 - y / y_max
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + down * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="16" class="title">{escape(title)}</text>']
    for value in _ticks(y_max):
        _, y = place(0, value)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in _ticks(x_max):
        x, y = place(value, 0)
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 3}" text-anchor="end">{escape(x_label)}</text>')
    for number, (name, curve) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in curve))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        at = TOP + 8 + 15 * number
        parts.append(f'<rect x="{WIDTH - RIGHT + 12}" y="{at - 8}" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 27}" y="{at + 1}">{escape(name)}</text>')
    body = "\n".join(parts)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">{body}</svg>'


def _ticks(top: float) -> list[float]:
    """Round numbers from 0 up to ``top``, three to six of them."""
    unit = 10.0 ** math.floor(math.log10(top)) if top > 0 else 1.0
    step = next(s * unit for s in (0.2, 0.5, 1, 2, 5) if top / (s * unit) < 6)
    return [round(i * step, 10) for i in range(int(top / step + 1e-9) + 1)]
