"""Figures, and how they are shown: a table, JSON, and the page docs/performance.md."""

from __future__ import annotations

import dataclasses
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

HEAD = """# Performance

Measured by `make bench` on one machine and written by `python -m bench --write`; nothing on this
page is typed by hand. Each figure is the median of its repetitions, with the least and the greatest
beside it. A ratio is taken within one repetition, the contestants in turn on the same machine.
"""
DATA = re.compile(r"```json\n(.*?)\n```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure must reach."""

    sense: Literal["≥", "≤", "<"]
    bound: float

    def holds(self, value: float) -> bool:
        """Whether a value reaches it."""
        if self.sense == "≥":
            return value >= self.bound
        return value <= self.bound if self.sense == "≤" else value < self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report. `value` None: it could not be taken, and `note` says why."""

    group: str
    name: str
    unit: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    count: int = 0
    target: Target | None = None
    note: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the target is reached; None without a target or a value."""
        if self.target is None or self.value is None:
            return None
        return self.target.holds(self.value)


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run found."""

    machine: dict[str, str]
    figures: list[Figure]
    load: dict[str, list[float]]  # load average of the minute before and after each group


def figure(
    group: str,
    name: str,
    unit: str,
    values: Sequence[float],
    *,
    target: Target | None = None,
    note: str = "",
) -> Figure:
    """The median of repeated measurements, with their spread."""
    return Figure(
        *(group, name, unit, statistics.median(values), min(values), max(values), len(values)),
        target=target,
        note=note,
    )


def ratio(
    group: str,
    name: str,
    pairs: Sequence[tuple[float, float]],
    *,
    target: Target | None = None,
    note: str = "",
) -> Figure:
    """The median of quotients, each taken within one repetition."""
    return figure(group, name, "×", [one / other for one, other in pairs], target=target, note=note)


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that so many percent do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def table(report: Report) -> Table:
    """The report for a terminal."""
    shown = Table(caption="\n".join(report.machine.values()), caption_justify="left")
    for title in ("figure", "median", "spread", "n", "target", ""):
        shown.add_column(title, justify="right" if title in {"median", "n"} else "left")
    group = ""
    for one in report.figures:
        if one.group != group:
            group = one.group
            shown.add_section()
            shown.add_row(f"[bold]{group}")
        name = f"  {one.name}" + (f"\n  [dim]{one.note}" if one.note else "")
        colour = {True: "[green]", False: "[red]", None: ""}[one.holds]
        *cells, verdict = _cells(one)
        shown.add_row(name, *cells, colour + verdict)
    return shown


def to_json(report: Report) -> str:
    """The report for other programs."""
    data = dataclasses.asdict(report)
    for line, one in zip(data["figures"], report.figures, strict=True):
        line["holds"] = one.holds
    return json.dumps(data, ensure_ascii=False, indent=1)


def from_json(text: str) -> Report:
    """What `to_json` wrote."""
    data = json.loads(text)
    return Report(data["machine"], [_figure(line) for line in data["figures"]], data["load"])


def page(report: Report) -> str:
    """The report as docs/performance.md."""
    parts = [HEAD, *(f"* {name}: {value}" for name, value in report.machine.items())]
    group = ""
    for one in report.figures:
        if one.group != group:
            group = one.group
            before, after = report.load.get(group, [0.0, 0.0])
            parts += [f"\n## {group}\n", f"Load average: {before:.1f} before, {after:.1f} after.\n"]
            parts += [
                "| figure | median | spread | n | target | |",
                "| --- | --: | --- | --: | --- | --- |",
            ]
        name = f"{one.name}<br>*{one.note}*" if one.note else one.name
        parts.append(f"| {' | '.join([name, *_cells(one)])} |")
    data = json.dumps(json.loads(to_json(report)), ensure_ascii=False)
    parts += ["\n<details><summary>The same as JSON</summary>\n", f"```json\n{data}\n```\n"]
    return "\n".join([*parts, "</details>\n"])


def from_page(text: str) -> Report:
    """The report that a page was made from."""
    found = DATA.search(text)
    if found is None:
        raise ValueError("no JSON on the page")
    return from_json(found[1])


def _figure(line: dict[str, Any]) -> Figure:
    target = Target(**line["target"]) if line["target"] else None
    known = {field.name for field in dataclasses.fields(Figure)}
    return Figure(**{key: line[key] for key in known & line.keys()} | {"target": target})


def _cells(one: Figure) -> list[str]:
    """Median, spread, repetitions, target and verdict."""
    verdict = {True: "holds", False: "does not hold", None: ""}[one.holds]
    target = str(one.target or "")
    if one.value is None or one.low is None or one.high is None:
        return ["–", "", "", target, verdict]
    spread = f"{_number(one.low)} – {_number(one.high)}" if one.count > 1 else ""
    value = _number(one.value) + (f" {one.unit}" if one.unit else "")
    return [value, spread, str(one.count), target, verdict]


def _number(value: float) -> str:
    """Three digits that mean something."""
    if abs(value) >= 100:  # noqa: PLR2004 (three digits)
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"  # noqa: PLR2004 (three digits)
