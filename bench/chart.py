#!/usr/bin/env python
"""Draws the fan-out of a run of the suite `peers` as two SVGs, for light and for dark pages."""

import argparse
import json
import statistics
from html import escape
from pathlib import Path
from typing import NamedTuple

from report import Samples
from run import RESULTS
from suites import FLOORS, SUITES

PANELS = (("fan1", "1 message in flight"), ("fan8", "8 messages in flight"))
OURS = "microws"

LABELS, PANEL, GAP, VALUE = 240, 300, 20, 70  # widths; the longest bar leaves room for its figure
TOP, ROW, BAR, BOTTOM = 96, 24, 14, 34
FONT = "-apple-system, BlinkMacSystemFont, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"


class Theme(NamedTuple):
    """Colors for one of GitHub's backgrounds."""

    text: str
    faint: str
    line: str
    ours: str
    peer: str
    floor: str


THEMES = {
    "light": Theme("#1f2328", "#59636e", "#d1d9e0", "#0969da", "#a3adb8", "#dfe4ea"),
    "dark": Theme("#f0f6fc", "#9198a1", "#3d444d", "#4493f8", "#656c76", "#2f3742"),
}


class Row(NamedTuple):
    """One contender, with its median in each panel."""

    name: str
    title: str
    figures: tuple


def rows(records):
    """The contenders that have a figure in every panel; the fastest in the first panel first."""
    samples = Samples(records)
    contenders = SUITES["peers"].contenders
    found = []
    for name in records[0]["contenders"]:
        figures = [samples.figures(name, test) for test, _ in PANELS]
        if all(figures):
            medians = tuple(statistics.median(of_test) for of_test in figures)
            found.append(Row(name, contenders[name].title.replace("`", ""), medians))
    return sorted(found, key=lambda row: row.figures[0], reverse=True)


def draw(run, found, theme):
    width = LABELS + len(PANELS) * (PANEL + GAP)
    height = TOP + len(found) * ROW + BOTTOM
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="{FONT}" font-size="12" role="img">',
        "<title>Deliveries a second to 1,000 WebSockets</title>",
        text(0, 22, "Deliveries a second to 1,000 WebSockets", theme.text, size=17, weight=600),
        text(0, 44, "64 bytes of text, per second of CPU time of a server on one core. More is better.", theme.faint),
    ]
    for index, (_, title) in enumerate(PANELS):
        lines += panel(LABELS + index * (PANEL + GAP), index, title, found, theme)
    for place, row in enumerate(found):
        middle = TOP + place * ROW + ROW / 2
        is_ours = row.name == OURS
        color = theme.faint if row.name in FLOORS else theme.text
        lines.append(
            text(LABELS - 12, middle + 4, row.title, color, anchor="end", weight=600 if is_ours else 400),
        )
    python = run["versions"]["CPython"]
    foot = f"Medians of {run['rounds']} rounds, CPython {python}. A floor only passes frames on."
    lines += [text(0, height - 8, foot, theme.faint, size=11), "</svg>", ""]
    return "\n".join(lines)


def panel(left, index, title, found, theme):
    most = max(row.figures[index] for row in found)
    bottom = TOP + len(found) * ROW
    yield text(left, TOP - 12, title, theme.text, weight=600)
    yield f'<path d="M{left} {TOP - 4}V{bottom}" stroke="{theme.line}"/>'
    for place, row in enumerate(found):
        figure = row.figures[index]
        top = TOP + place * ROW + (ROW - BAR) / 2
        length = max(1, (PANEL - VALUE) * figure / most)
        color = theme.ours if row.name == OURS else theme.floor if row.name in FLOORS else theme.peer
        # Only the end is rounded: the bar begins at the line.
        yield (
            f'<path d="M{left} {top}h{length - 2:.1f}q2 0 2 2v{BAR - 4}q0 2 -2 2h{2 - length:.1f}z" fill="{color}"/>'
        )
        weight = 600 if row.name == OURS else 400
        shade = theme.faint if row.name in FLOORS else theme.text
        yield text(left + length + 6, top + BAR - 3, f"{float(f'{figure:.3g}'):,.0f}", shade, weight=weight)


def text(x, y, content, color, *, size=12, weight=400, anchor="start"):
    look = f'fill="{color}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(content)}</text>'


def newest():
    """The newest run of the suite `peers` in ``results/``, or ``None``."""
    for path in sorted(RESULTS.glob("2*.jsonl"), reverse=True):
        with path.open() as lines:
            if json.loads(lines.readline()).get("suite") == "peers":
                return path
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, help="of bench/run.py --suite peers (the newest)")
    parser.add_argument("--to", type=Path, default=RESULTS, help="the directory (%(default)s)")
    arguments = parser.parse_args()
    path = arguments.results or newest()
    if path is None:
        parser.error(
            "expected a run of the suite peers in bench/results, got none; run bench/run.py --suite peers first"
        )
    records = [json.loads(line) for line in path.read_text().splitlines()]
    found = rows(records)
    if not found:
        parser.error(f"expected figures of {' and '.join(test for test, _ in PANELS)} in {path}, got none")
    for name, theme in THEMES.items():
        to = arguments.to / f"fan-out-{name}.svg"
        to.write_text(draw(records[0], found, theme))
        print(to)


if __name__ == "__main__":
    main()
