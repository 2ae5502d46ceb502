"""From samples to a Markdown table and the bars: medians, and ratios to the bare app in the same round."""

import json
import math
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

__all__ = ["FOREIGN_LIMIT", "MEASURES", "Measure", "render"]

FOREIGN_LIMIT = 0.04  # of a core: a sample during which other processes took more is disturbed
SATURATED = 0.9  # of its core: a server that used less was not the limit


class Measure(NamedTuple):
    """
    One row of the table.

    Attributes:
        mode: Of the load generator.
        options: For the load generator.
        bar: The least share of the bare app's figure that is good enough for microws, if there is one.
        less_is_better: Memory, not a rate.
        in_default: Measured when nothing else is asked for.
    """

    title: str
    mode: str
    options: list
    bar: float | None = None
    less_is_better: bool = False
    in_default: bool = True


IDLE_CONNECTIONS = 2000
FAN = ["-u", "/sub", "-U", "/pub", "-c", 1000]

# Memory first: what later samples leave behind in the heap would be taken for the connections' own.
MEASURES = {
    "idle": Measure(
        "memory per idle connection, KiB", "idle", ["-u", "/echo", "-c", IDLE_CONNECTIONS], less_is_better=True
    ),
    "echo": Measure("echo over 100 connections, /s", "echo", ["-u", "/echo", "-c", 100], bar=0.90),
    "connect": Measure("connects, 32 at a time, /s", "connect", ["-u", "/echo", "-c", 32]),
    "http": Measure("GET of small JSON, 64 connections, /s", "http", ["-u", "/json", "-c", 64], bar=0.90),
    "fan1": Measure("deliveries to 1,000, 1 in flight, /s", "fan", [*FAN, "-d", 1], in_default=False),
    "fan8": Measure("deliveries to 1,000, 8 in flight, /s", "fan", [*FAN, "-d", 8], in_default=False),
}


class Samples:
    """The figures of a run."""

    def __init__(self, records):
        self._figures = {}
        for record in records:
            if "figure" in record:
                of_app = self._figures.setdefault((record["app"], record["measure"]), {})
                of_app[record["round"], record["slice"]] = record["figure"]

    def figures(self, app, measure):
        return list(self._figures.get((app, measure), {}).values())

    def ratios(self, app, to_app, measure):
        """``app`` divided by ``to_app``, for each slice that has both."""
        ours, theirs = (self._figures.get((name, measure), {}) for name in (app, to_app))
        return [ours[slice_] / theirs[slice_] for slice_ in ours if slice_ in theirs]


def table(samples, apps, measures):
    lines = ["| | " + " | ".join(apps) + " |", "|---|" + "---:|" * len(apps)]
    for key in measures:
        cells = [cell(samples, app, key) for app in apps]
        lines.append(f"| {MEASURES[key].title} | " + " | ".join(cells) + " |")
    return lines


def cell(samples, app, key):
    figures = samples.figures(app, key)
    if not figures:
        return "–"
    median = statistics.median(figures)
    text = f"{median:,.1f}" if MEASURES[key].less_is_better else f"{median:,.0f}"
    ratios = samples.ratios(app, "bare", key)
    if ratios and app != "bare":
        text += f" · **{statistics.median(ratios):.2f}**{margin(ratios)}"
    return text


def margin(ratios):
    """How far their median may be off: twice its standard error, from the quartiles, which strays do not move."""
    if len(ratios) < 3:
        return ""
    lower, _, upper = statistics.quantiles(ratios, n=4, method="inclusive")
    deviation = (upper - lower) / 1.349  # of a normal distribution with these quartiles
    return f" ± {2 * 1.253 * deviation / math.sqrt(len(ratios)):.2f}"


def bars(samples, apps, measures):
    """One line for each demand on microws that this run can judge."""
    lines = []
    for key in measures:
        measure = MEASURES[key]
        demands = [("bare", f"at least {measure.bar:.2f} of bare", measure.bar)] if measure.bar else []
        demands += [(peer, f"ahead of {peer}", None) for peer in apps if peer not in ("bare", "microws")]
        for peer, words, bar in demands:
            ratios = samples.ratios("microws", peer, key)
            if not ratios:
                continue
            ratio = statistics.median(ratios)
            ahead = ratio < 1 if measure.less_is_better else ratio > 1
            met = ratio >= bar if bar else ahead
            verdict = "met" if met else "**MISSED**"
            lines.append(f"- {verdict}: {measure.title}: {words} (ratio {ratio:.3f}{margin(ratios)})")
    return lines


def notes(records):
    """What a reader must know about the samples before he trusts them."""
    samples = [record for record in records if record["type"] == "sample"]
    lines = [
        f"- {app}, {measure}: failed {count} times; see results/{app}.log. The last error: {error}"
        for (app, measure), (error, count) in failures_by_test(samples).items()
    ]
    foreign = [record["foreign"] for record in samples]
    disturbed = sum(share > FOREIGN_LIMIT for share in foreign)
    lines.append(
        f"- {disturbed} of {len(samples)} samples were disturbed: others took more than {FOREIGN_LIMIT:.0%} of a core"
        f" (median of all samples {statistics.median(foreign):.1%}, most {max(foreign):.0%})."
    )
    busy = [r["server_cpu_s"] / r["wall_s"] for r in samples if "server_cpu_s" in r and r["foreign"] <= FOREIGN_LIMIT]
    if idling := [share for share in busy if share < SATURATED]:
        lines.append(f"- In {len(idling)} undisturbed samples the server was idle at times (busy: {min(idling):.0%}).")
    return lines


def failures_by_test(samples):
    """``{(app, measure): (last error, how many)}``."""
    failures = {}
    for record in samples:
        if "error" in record:
            key = record["app"], record["measure"]
            _, count = failures.get(key, (None, 0))
            failures[key] = record["error"], count + 1
    return failures


def render(records):
    """The whole report as Markdown; ``records`` is what a run wrote, line by line."""
    run = next(record for record in records if record["type"] == "run")
    samples = Samples(records)
    apps, measures = run["apps"], run["tests"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [
        f"Medians of {run['rounds']} rounds of {run['slices']} slices. Rates are per second of the server's CPU time.",
        "In bold the ratio to the bare app in the same slice, median ± twice its standard error.",
        "",
        versions,
        "",
        *table(samples, apps, measures),
    ]
    for title, more in (("Bars", bars(samples, apps, measures)), ("Notes", notes(records))):
        if more:
            lines += ["", f"{title}:", "", *more]
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: report.py RESULTS.jsonl")
    print(render([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
