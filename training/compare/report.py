"""The report of a comparison: Markdown and HTML in both languages, and a table for the terminal."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from config.texts import LANGUAGES, number, text
from engine.models import METAL_SHARE
from training import files as atomic
from training.compare import charts, matrix, view
from training.compare.values import Comparison

STEM = "report"
WIDTH = 80
INDENT = (0, 0, 0, 2)
LONGEST = 400  # characters of an answer in Markdown
_HOUSE = re.compile(r"<style>\n(.*?)</style>", re.DOTALL)


def write(folder: Path, comparison: Comparison) -> Path:
    """Write report.md and report.html, in English report.en.*; the first HTML. Raises OSError."""
    for language in LANGUAGES:
        suffix = "" if language == LANGUAGES[0] else f".{language}"
        for kind in ("md", "html"):
            page = render(comparison, kind, language)
            atomic.write(folder / f"{STEM}{suffix}.{kind}", page.encode())
    return folder / f"{STEM}.html"


def render(comparison: Comparison, kind: str, language: str) -> str:
    """The whole report as `html` or `md`."""
    environment = Environment(
        undefined=StrictUndefined,
        autoescape=kind == "html",  # noqa: S701 (Markdown has the filter `md`)
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["md"] = escaped
    template = environment.from_string(_source(f"compare.{kind}.j2"))
    page = template.render(_context(comparison, language), house=_house() if kind == "html" else "")
    return page if kind == "html" else re.sub(r"\n{3,}", "\n\n", page).strip() + "\n"


def _context(comparison: Comparison, language: str) -> dict[str, Any]:
    """Everything that the templates lay out."""
    found = matrix.matrix(comparison)
    claimed = view.claim_rows(comparison, language)
    counts = {
        kind: sum(row.kind == kind for row in claimed) for kind in ("holds", "fails", "unmeasured")
    }

    def say(key: str, **values: object) -> str:
        return text(f"comparison.{key}", language, **values)

    return {
        "t": say,
        "language": language,
        "methods": view.METHODS,
        "comparison": comparison,
        "date": f"{comparison.created_at:%Y-%m-%d %H:%M}",
        "notices": view.notices(comparison, found, language),
        "matrix": found,
        "most": round(matrix.BEST * found.scored),
        "unscored": view.unscored(found, language),
        "conditions": {one: view.conditions(found, one, language) for one in view.METHODS},
        "points": {score.criterion: view.points(score, language) for score in found.scores},
        "sums": _sums(found, language),
        "parts": {
            score.criterion: [view.part_row(part, language) for part in score.parts]
            for score in found.scores
        },
        "rules": {
            "best": matrix.BEST,
            "same": matrix.SAME,
            "same_loss": matrix.SAME_LOSS,
            "close": matrix.CLOSE,
            "share": METAL_SHARE,
        },
        "panels": charts.panels(comparison, language),
        "claims": claimed,
        "counted": say("claims", **counts),
        "sections": [
            view.section(comparison, mode, language)
            for mode in view.MODES
            if any(side.mode == mode for side in comparison.sides)
        ],
        "machine": view.machine(comparison, language),
        "pairs": view.pairs(comparison, found.mode),
    }


def table(comparison: Comparison, language: str = "pt") -> RenderableType:
    """Figures, scores and the recommendation for a terminal of 80 columns."""
    found = matrix.matrix(comparison)
    parts: list[RenderableType] = []
    for mode in view.MODES:
        if any(side.mode == mode for side in comparison.sides):
            parts += _figures(view.section(comparison, mode, language), language)
    parts.append(_line(text("comparison.tags", language)))
    parts += [Text(""), _scores(found, language), *_advice(comparison, found, language)]
    return Group(*parts)


def _figures(section: view.Section, language: str) -> list[RenderableType]:
    drawn = _columns(section.title, "what", language)
    for group, rows in section.groups:
        drawn.add_row(Text(group, style="bold"))
        for row in rows:
            cells = [cell.value if cell else "—" for cell in (row.lora, row.qlora)]
            kind = next(cell.source for cell in (row.lora, row.qlora) if cell)
            said = text(f"comparison.tag.{kind}", language)
            drawn.add_row(Padding(Text(row.name), INDENT), *cells, row.ratio, said)
        drawn.add_section()
    return [drawn, *(_line(note) for note in section.notes), Text("")]


def _scores(found: matrix.Matrix, language: str) -> Table:
    drawn = _columns(
        text("comparison.section.matrix", language), "criterion", language, ratio=False
    )
    for score in found.scores:
        name = text(f"comparison.criterion.{score.criterion}", language)
        if any(part.source == "derived" for part in score.parts):
            name += f" ({text('comparison.tag.derived', language)})"
        tie = text("comparison.tie", language) if score.tied else ""
        drawn.add_row(name, *view.points(score, language), tie)
    drawn.add_section()
    total = _sums(found, language)
    drawn.add_row(text("comparison.criterion.sum", language), *total, "", style="bold")
    return drawn


def _advice(comparison: Comparison, found: matrix.Matrix, language: str) -> list[RenderableType]:
    lines: list[RenderableType] = [
        Text(""),
        _line(text(f"comparison.advice.{found.advice}", language), "bold"),
    ]
    lines += [_line(said) for said in view.notices(comparison, found, language)]
    if said := view.unscored(found, language):
        lines.append(_line(said))
    for method in view.METHODS:
        lines.append(_line(text(f"comparison.when.{method}", language), "bold"))
        lines += [_line(f"· {said}") for said in view.conditions(found, method, language)]
    return lines


def _columns(title: str, first: str, language: str, *, ratio: bool = True) -> Table:
    drawn = Table(title=Text(title, style="bold"), title_justify="left", width=WIDTH - 2)
    drawn.add_column(text(f"comparison.column.{first}", language), ratio=1)
    for method in view.METHODS:
        drawn.add_column(view.title_of(method, language), justify="right", no_wrap=True)
    drawn.add_column(text("comparison.column.ratio", language) if ratio else "", justify="right")
    if ratio:
        drawn.add_column("")
    return drawn


def _line(said: str, style: str = "") -> Padding:
    return Padding(Text(said, style=style), (0, 1), expand=False)


def _sums(found: matrix.Matrix, language: str) -> list[str]:
    return [number(one, ".1f", language) if found.scored else "—" for one in found.sums]


def _source(name: str) -> str:
    return (files("training") / "data" / name).read_text("utf-8")


def _house() -> str:
    """The house's colours and type, which the night's report has too."""
    found = _HOUSE.search(_source("page.html.j2"))
    assert found, "the page has a style"
    return found[1]


def escaped(said: str) -> str:
    """A text in one line, nothing in it read as markup or HTML."""
    line = " ".join(said.split())
    line = line if len(line) <= LONGEST else line[: LONGEST - 1].rstrip() + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~$])", r"\\\1", line)
