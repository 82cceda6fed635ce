"""A report as one HTML file that needs no other: images inside, no scripts."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from dens_plugin.report.tables import Table

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
img { max-width: 100%; display: block; margin: 0 auto; }
figure { margin: 1.5em 0; } figcaption { color: #555; font-size: 0.92em; margin-top: 0.5em; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.88em; }
th, td { padding: 0.3em 0.7em; text-align: right; border-bottom: 1px solid #ddd; font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid #888; vertical-align: bottom; } th:first-child, td:first-child { text-align: left; }
.verdict { font-size: 1.1em; margin: 0.6em 0; }
.notes { background: #fff8e6; padding: 0.6em 1.5em; }
"""


class Picture(NamedTuple):
    """An image of a report.

    Attributes:
        path: of the PNG file.
        title: heading.
        caption: what it shows, in full sentences.
    """

    path: Path
    title: str
    caption: str


def html_page(
    verdict: Sequence[str], tables: Sequence[Table], pictures: Sequence[Picture], notes: Sequence[str]
) -> str:
    """The page: who won, in words, then tables, notes and pictures."""
    words = [f'<p class="verdict">{escape(sentence)}</p>\n' for sentence in verdict]
    remarks = f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in notes)}</ul>\n' if notes else ""
    body = [*words, *map(_table, tables), remarks, *map(_figure, pictures)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Report</title>'
        f"<style>{_CSS}</style></head>\n<body><h1>Training report</h1>\n{''.join(body)}</body></html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.header)
    rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in table.rows)
    return f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table><tr>{head}</tr>\n{rows}</table></div>\n'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.path.read_bytes()).decode()
    return (
        f"<h2>{escape(picture.title)}</h2>\n"
        f'<figure><img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>\n"
    )
