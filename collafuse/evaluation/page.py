"""The parts of a self-contained HTML page: no network, no scripts; pictures lie inside as data URIs."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from html import escape

from edge_client.pictures import png_bytes, to_image

from ..core.pictures import Pixels, contact_sheet
from .tables import Cell, Table, shown

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1d2530; margin: 0 auto; max-width: 76rem; padding: 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { max-width: 48rem; margin: .5rem 0; } .warning { border-left: 4px solid #d1495b; padding: .3rem .8rem; }
.wide { overflow-x: auto; } .small, .note { color: #556; font-size: .88rem; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .28rem .6rem; text-align: right; border-bottom: 1px solid #dfe3e8; white-space: nowrap; }
th:first-child, td:first-child, td.text, th.text { text-align: left; } thead th { border-bottom: 2px solid #9aa4b0; }
thead th { white-space: normal; vertical-align: bottom; } tr.group td { border-top: 2px solid #c5ccd4; }
.figure td, .figure th { border: 0; text-align: center; padding: .3rem; vertical-align: middle; }
.figure th { font-weight: 600; white-space: normal; } .figure th.side { text-align: right; max-width: 9rem; }
img { image-rendering: pixelated; max-width: 100%; } svg { width: 460px; max-width: 100%; }
svg text { font: 11px system-ui, sans-serif; fill: #333; } svg .title { font-size: 13px; font-weight: 600; }
svg .grid { stroke: #e3e6ea; } .row { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
pre { background: #f5f6f8; padding: .8rem; overflow-x: auto; font-size: .82rem; }
figure { margin: 0; } figcaption { font-size: .88rem; color: #556; }
"""


def page(title: str, body: Sequence[str]) -> str:
    """A whole page."""
    inner = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{inner}\n</body>\n</html>\n"
    )


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text, with `code` in backticks as in Markdown."""
    inner = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return f'<p class="{kind}">{inner}</p>' if kind else f"<p>{inner}</p>"


def png_image(png: bytes, what: str) -> str:
    """A PNG inside the page; ``what`` it shows, for who cannot see it."""
    data = base64.b64encode(png).decode()
    return f'<img alt="{escape(what, quote=True)}" src="data:image/png;base64,{data}">'


def sheet(pixels: Pixels, columns: int, width: int, what: str) -> str:
    """Images side by side as one picture."""
    return png_image(png_bytes(to_image(contact_sheet(pixels, columns=columns, width=width))), what)


def figure_table(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Pictures in rows and columns, each with its heading."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = [
        f'<tr><th class="side">{escape(name)}</th>{"".join(f"<td>{one}</td>" for one in pictures)}</tr>'
        for name, pictures in rows
    ]
    return f'<div class="wide"><table class="figure"><tr><th></th>{head}</tr>{"".join(lines)}</table></div>'


def results_table(table: Table) -> str:
    """A table of results with its title and notes; a line above each group of equal first cells."""
    words = [any(_is_words(row[i]) for row in table.rows) for i in range(len(table.columns))]
    kinds = [' class="text"' if one else "" for one in words]
    head = "".join(f"<th{kind}>{escape(c)}</th>" for kind, c in zip(kinds, table.columns, strict=True))
    lines, before = [], None
    for row in table.rows:
        opens = ' class="group"' if before is not None and row[0] != before else ""
        cells = "".join(f"<td{kind}>{escape(shown(cell))}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append(f"<tr{opens}>{cells}</tr>")
        before = row[0]
    notes = "".join(paragraph(note, "note") for note in table.notes)
    return (
        f'<h3>{escape(table.title)}</h3><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{notes}"
    )


def _is_words(cell: Cell) -> bool:
    """Whether a cell reads from the left, unlike a figure."""
    return isinstance(cell, str) and not cell[:1].isdigit() and cell[:1] not in "-+<>"
