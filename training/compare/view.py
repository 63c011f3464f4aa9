"""What the report shows, as words and numbers ready to be laid out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from config.texts import catalogue, number, text
from training.compare import claims, matrix, show
from training.compare.matrix import Matrix, Part, Score
from training.compare.values import Answer, Comparison, Figure, Key, Method, Mode, Side

METHODS: tuple[Method, Method] = ("lora", "qlora")
MODES: tuple[Mode, Mode] = ("recommended", "same")
MILLION = 10**6


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure, how it spread and where it is from."""

    value: str
    spread: str
    source: str


@dataclass(frozen=True, slots=True)
class Row:
    """A figure of both sides."""

    name: str
    lora: Cell | None
    qlora: Cell | None
    ratio: str


@dataclass(frozen=True, slots=True)
class Section:
    """All figures of one mode, by group, and what is to be said of them."""

    mode: Mode
    title: str
    notes: tuple[str, ...]
    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    settings: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """A claim beside ours."""

    title: str
    why: str
    said: str
    ours: str
    ratio: str
    source: str
    verdict: str
    kind: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A question and what both answered."""

    question: str
    lora: str
    qlora: str
    same: bool


def title_of(method: Method, language: str) -> str:
    """A method's name."""
    return text(f"comparison.method.{method}", language)


def section(comparison: Comparison, mode: Mode, language: str) -> Section:
    """The figures of one mode."""
    sides = {method: matrix.find(comparison, method, mode) for method in METHODS}
    rows: dict[str, list[Row]] = {}
    absent = []
    for key in Key:
        row = _row(key, sides, language)
        name = text(f"comparison.row.{key}", language)
        if row:
            rows.setdefault(key.split(".")[0], []).append(row)
        elif any(sides.values()):
            group = text(f"comparison.group.{key.split('.')[0]}", language)
            absent.append(f"{name} ({group})")
    rows.setdefault("loss", []).extend(_suites(sides, language))
    notes = [*_gone(comparison, mode, language), *_agreement(comparison, mode, language)]
    if absent:
        notes.append(text("comparison.absent", language, names=", ".join(absent)))
    if not any(sides.values()):
        notes.append(text("comparison.nothing", language))
    return Section(
        mode,
        text(f"comparison.mode.{mode}", language),
        tuple(notes),
        tuple(
            (text(f"comparison.group.{group}", language), tuple(found))
            for group, found in rows.items()
            if found
        ),
        tuple(
            (title_of(side.method, language), tuple(_settings(side, language)))
            for side in comparison.sides
            if side.mode == mode
        ),
    )


def _row(key: Key, sides: Mapping[Method, Side | None], language: str) -> Row | None:
    figures = {
        method: side.figures[key] for method, side in sides.items() if side and key in side.figures
    }
    if not figures:
        return None
    form, most = show.FORMS[key], max(figure.median for figure in figures.values())
    cells = {}
    for method, figure in figures.items():
        count = len(figure.values)
        low, high = (show.value(one, form, language, most) for one in figure.spread)
        ends = "–".join(end.split(show.SPACE)[0] for end in (low, high))
        often = f"n{show.SPACE}{count}"
        spread = f"{ends} · {often}" if low != high else often
        cells[method] = Cell(show.value(figure.median, form, language, most), spread, figure.source)
    name = text(f"comparison.row.{key}", language)
    return Row(name, cells.get("lora"), cells.get("qlora"), _ratio(figures, language))


def _ratio(figures: Mapping[Method, Figure], language: str) -> str:
    if len(figures) < len(METHODS) or not figures["lora"].median:
        return ""
    return show.times(figures["qlora"].median / figures["lora"].median, language)


def _suites(sides: Mapping[Method, Side | None], language: str) -> Iterator[Row]:
    """The gate's suites, in the order in which they were asked."""
    names = dict.fromkeys(name for side in sides.values() if side for name in side.suites)
    for name in names:
        cells, shares = {}, {}
        for method, side in sides.items():
            if side and name in side.suites:
                passed, asked = side.suites[name]
                shares[method] = passed / asked if asked else 0.0
                share = number(shares[method], ".0%", language)
                cells[method] = Cell(share, f"{passed}/{asked}", "measured")
        key = f"gate.suite.{name}"
        known = text(key, language) if key in catalogue() else name
        lora, qlora = shares.get("lora"), shares.get("qlora")
        ratio = show.times(qlora / lora, language) if lora and qlora is not None else ""
        label = text("comparison.row.suite", language, suite=known)
        yield Row(label, cells.get("lora"), cells.get("qlora"), ratio)


def _gone(comparison: Comparison, mode: Mode, language: str) -> Iterator[str]:
    """Why a side is not there."""
    if not any(side.mode == mode for side in comparison.sides):
        return
    for method in METHODS:
        if matrix.find(comparison, method, mode):
            continue
        name = title_of(method, language)
        side = next(
            (one for one in comparison.sides if (one.method, one.mode) == (method, mode)), None
        )
        if side and side.left_out:
            reason = text(side.left_out, language, **side.left_out_values)
            yield text("comparison.left_out", language, method=name, reason=reason)
        else:
            yield text("comparison.missing", language, method=name)


def _agreement(comparison: Comparison, mode: Mode, language: str) -> Iterator[str]:
    for one in comparison.agreements:
        if one.mode == mode:
            yield text(
                "comparison.agreement", language, same=one.same, asked=one.asked, chrf=one.chrf
            )


def _settings(side: Side, language: str) -> Iterator[str]:
    """With what a side was trained, and on what."""
    base, recipe = side.base, side.recipe
    yield text(
        "comparison.how.base",
        language,
        name=base.name,
        parameters=show.plain(base.parameters / MILLION, language),
        bits=number(base.bits, ".3g", language),
        memory=base.memory,
        made=text(f"comparison.made.{base.made}", language),
    )
    layers = "all_layers" if recipe.layers < 0 else "last_layers"
    yield text(
        "comparison.how.recipe",
        language,
        settings=side.settings,
        rank=recipe.rank,
        scale=number(recipe.scale, "g", language),
        targets=", ".join(name.rsplit(".", 1)[-1] for name in recipe.targets),
        layers=text(f"comparison.how.{layers}", language, n=recipe.layers),
        epochs=recipe.sft.epochs,
        batch=recipe.sft.batch,
        accumulation=recipe.sft.accumulation,
        length=recipe.max_length,
        rate=number(recipe.sft.learning_rate, "g", language),
        warmup=recipe.sft.warmup,
    )
    if side.steps:
        yield text("comparison.how.work", language, steps=side.steps, tokens=side.tokens)


def machine(comparison: Comparison, language: str) -> dict[str, str]:
    """On what it was measured."""
    return {
        text(key, language) if key in catalogue() else name: said
        for name, said in comparison.machine.items()
        for key in [f"comparison.machine.{name}"]
    }


def notices(comparison: Comparison, found: Matrix, language: str) -> list[str]:
    """What a reader has to know before the figures."""
    said = list(_gone(comparison, found.mode, language))
    measured = [side for side in comparison.sides if side.figures and not side.left_out]
    if comparison.quick:
        said.append(text("comparison.quick", language))
    if comparison.repetitions == 1 and measured:
        said.append(text("comparison.once", language))
    if {side.method for side in measured if side.base.memory == "float32"} == set(METHODS):
        said.append(text("comparison.float32", language))
    return said


def unscored(found: Matrix, language: str) -> str:
    """Names the criteria without a score."""
    names = [
        text(f"comparison.criterion.{score.criterion}", language)
        for score in found.scores
        if score.lora is None
    ]
    return text("comparison.unscored", language, names=", ".join(names)) if names else ""


def conditions(found: Matrix, method: Method, language: str) -> list[str]:
    """When to use a method: what it was better at."""
    return [_because(part, method, language) for part in found.speaks_for(method)] or [
        text("comparison.when.none", language)
    ]


def _because(part: Part, method: Method, language: str) -> str:
    better, worse = (part.lora, part.qlora) if method == "lora" else (part.qlora, part.lora)
    most = max(better.median, worse.median)
    return text(
        f"comparison.because.{part.name}",
        language,
        better=show.value(better.median, part.form, language, most),
        worse=show.value(worse.median, part.form, language, most),
    )


def part_row(part: Part, language: str) -> Row:
    """One thing that a criterion compares, as a row."""
    most = max(part.lora.median, part.qlora.median)
    lora, qlora = (
        Cell(show.value(one.median, part.form, language, most), "", part.source)
        for one in (part.lora, part.qlora)
    )
    tie = text("comparison.tie", language) if part.tied else ""
    return Row(text(f"comparison.part.{part.name}", language), lora, qlora, tie)


def points(score: Score, language: str) -> tuple[str, str]:
    """A criterion's scores as they are written."""
    if score.lora is None or score.qlora is None:
        return "—", "—"
    return number(score.lora, ".1f", language), number(score.qlora, ".1f", language)


def claim_rows(comparison: Comparison, language: str) -> list[ClaimRow]:
    """Every claim of the original document, judged."""
    return [_claim(one, language) for one in claims.judge(comparison)]


def _claim(one: claims.Judged, language: str) -> ClaimRow:
    claim, form = one.claim, one.claim.form or "points"
    ours, ratio = show.span(one.ours, form, language), one.ratio
    said = show.span(claim.claimed, form, language)
    if claim.rule == "ratio" and claim.ratio is not None:
        said = show.times(claim.ratio, language)
        ours = ""
        if one.lora is not None and one.qlora is not None and ratio is not None:
            most = max(one.lora, one.qlora)
            pair = (show.value(value, form, language, most) for value in (one.qlora, one.lora))
            ours, ratio = f"{show.times(ratio, language)} ({' / '.join(pair)})", ratio / claim.ratio
    return ClaimRow(
        title=claim.title[language],
        why=claim.why[language],
        said=said or "—",
        ours=ours or "—",
        ratio="—" if ratio is None else show.times(ratio, language),
        source=one.source,
        verdict=text(f"comparison.verdict.{one.verdict}", language),
        kind=one.verdict,
    )


def pairs(comparison: Comparison, mode: Mode) -> list[Pair]:
    """Both sides' answers to the same questions, where both were asked."""
    lora, qlora = (matrix.find(comparison, method, mode) for method in METHODS)
    if not (lora and qlora):
        return []
    other = {answer.question: answer for answer in qlora.answers}
    return [_pair(one, other[one.question]) for one in lora.answers if one.question in other]


def _pair(one: Answer, other: Answer) -> Pair:
    return Pair(one.question, one.text, other.text, one.text.strip() == other.text.strip())
