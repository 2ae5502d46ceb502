"""The report of a run in Markdown: medians, ratios to another contender in the same slice, and goals."""

import json
import math
import statistics
import sys
from pathlib import Path

from suites import MEASURES, SUITES

__all__ = ["FOREIGN_LIMIT", "Samples", "render"]

FOREIGN_LIMIT = 0.04  # share of a core; if other processes used more, a sample is disturbed
DIGITS = {"rate": 0, "memory": 1, "latency": 2}  # digits after the decimal point
SATURATED = 0.9  # share of its core; a server that used less was not the bottleneck


class Samples:
    """The figures of a run."""

    def __init__(self, records):
        self._figures = {}
        for record in records:
            if "figure" in record:
                of_contender = self._figures.setdefault((record["contender"], record["measure"]), {})
                of_contender[record["round"], record["slice"]] = record["figure"]

    def figures(self, contender, measure):
        return list(self._figures.get((contender, measure), {}).values())

    def ratios(self, contender, to, measure):
        """The figures of ``contender`` divided by those of ``to``, for each slice that has both."""
        ours, theirs = (self._figures.get((name, measure), {}) for name in (contender, to))
        return [ours[slice_] / theirs[slice_] for slice_ in ours if slice_ in theirs]


def table(samples, suite, contenders, columns, baseline):
    lines = ["| | " + " | ".join(MEASURES[test].title for test in columns) + " |", "|---|" + "---:|" * len(columns)]
    for name in contenders:
        if any(samples.figures(name, test) for test in columns):
            cells = [cell(samples, name, test, baseline) for test in columns]
            lines.append(f"| {suite.contenders[name].title} | " + " | ".join(cells) + " |")
    return lines


def cell(samples, contender, test, baseline):
    figures = samples.figures(contender, test)
    if not figures:
        return "–"
    text = f"{statistics.median(figures):,.{DIGITS[MEASURES[test].kind]}f}"
    ratios = samples.ratios(contender, baseline, test)
    if ratios and contender != baseline:
        text += f" · **{statistics.median(ratios):.2f}**{margin(ratios)}"
    return text


def error(values):
    """Twice the standard error of the median, estimated from the quartiles, which outliers do not change."""
    if len(values) < 3:
        return 0.0
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    deviation = (upper - lower) / 1.349  # of a normal distribution with these quartiles
    return 2 * 1.253 * deviation / math.sqrt(len(values))


def margin(values, digits=2):
    return f" ± {error(values):.{digits}f}" if len(values) >= 3 else ""


def verdicts(samples, suite, contenders, tests):
    """One line for each goal whose contenders and tests were part of this run."""
    return [
        verdict(samples, goal)
        for test in tests
        for goal in suite.goals
        if goal.test == test and goal.contender in contenders and (not goal.peers or {*goal.peers} & {*contenders})
    ]


def verdict(samples, goal):
    measure = MEASURES[goal.test]
    words = f"{measure.title}: {goal.contender} at {'most' if measure.less_is_better else 'least'} {goal.bound:.2f}"
    if goal.peers:
        best, values = nearest(samples, goal)
        words += f" × {best}"
        if len(goal.peers) > 1:
            words += f", the best of {len(goal.peers)}"
    else:
        values = samples.figures(goal.contender, goal.test)
    if not values:
        return f"- **NOT MEASURED**: {words}"
    value = statistics.median(values)
    slack = error(values) if goal.within_error else 0
    met = value - slack <= goal.bound if measure.less_is_better else value + slack >= goal.bound
    return f"- {'met' if met else '**MISSED**'}: {words} (it is {value:.3f}{margin(values, 3)})"


def nearest(samples, goal):
    """The best peer and the ratios to it; the first peer and no ratios if nothing was measured."""
    ratios = {peer: samples.ratios(goal.contender, peer, goal.test) for peer in goal.peers}
    measured = [peer for peer in goal.peers if ratios[peer]]
    if not measured:
        return goal.peers[0], []
    hardest = max if MEASURES[goal.test].less_is_better else min
    peer = hardest(measured, key=lambda peer: statistics.median(ratios[peer]))
    return peer, ratios[peer]


def notes(records):
    """Errors, disturbed samples and idle servers."""
    lines = [
        f"- {contender}, {what}: failed {count} times; see results/{contender}.log. The last error: {error}"
        for (contender, what), (error, count) in failures(records).items()
    ]
    samples = [record for record in records if record["type"] == "sample"]
    if not samples:
        return lines
    foreign = [record["foreign"] for record in samples]
    disturbed = sum(share > FOREIGN_LIMIT for share in foreign)
    lines.append(
        f"- {disturbed} of {len(samples)} samples were disturbed: other processes used more than {FOREIGN_LIMIT:.0%}"
        f" of a core (median of all samples {statistics.median(foreign):.1%}, maximum {max(foreign):.0%})."
    )
    [run] = [record for record in records if record["type"] == "run"]
    return lines if run.get("together") else lines + idle_servers(samples)


def idle_servers(samples):
    """One line for each contender and test in which the server was not always the bottleneck."""
    busy = {}
    for record in samples:
        is_rate = "server_cpu_s" in record and MEASURES[record["measure"]].kind == "rate"
        if is_rate and record["foreign"] <= FOREIGN_LIMIT:
            share = record["server_cpu_s"] / record["wall_s"]
            busy.setdefault((record["contender"], record["measure"]), []).append(share)
    return [
        f"- {contender}, {test}: the server was idle at times in undisturbed samples (busy: {min(shares):.0%})."
        for (contender, test), shares in busy.items()
        if min(shares) < SATURATED
    ]


def failures(records):
    """``{(contender, test or "start"): (last error in one line, how many)}``."""
    found = {}
    for record in records:
        if "error" in record:
            key = record["contender"], record.get("measure", "start")
            _, count = found.get(key, (None, 0))
            found[key] = record["error"].partition("\n")[0], count + 1
    return found


def render(records):
    """The report of ``records``, the lines that a run wrote."""
    run = next(record for record in records if record["type"] == "run")
    suite = SUITES[run["suite"]]
    samples = Samples(records)
    contenders, tests = run["contenders"], run["tests"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    lines = [
        f"Medians of {run['rounds']} rounds of {run['slices']} slices. Rates are per second of the server's CPU time.",
        "In bold the ratio to another one in the same slice, median ± twice its standard error.",
        "",
        versions,
    ]
    for part in suite.tables:
        if columns := [test for test in part.tests if test in tests]:
            title = f"{part.title or 'Ratios'}, to {part.baseline}:"
            lines += ["", title, "", *table(samples, suite, contenders, columns, part.baseline)]
    sections = (("Goals", verdicts(samples, suite, contenders, tests)), ("Notes", notes(records)))
    for title, more in sections:
        if more:
            lines += ["", f"{title}:", "", *more]
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: report.py RESULTS.jsonl")
    print(render([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
