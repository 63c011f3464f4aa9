"""The gate's verdict for people: a report in the revision's folder, and a few lines for a chat."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from config.texts import number, text
from training.evaluation import Evaluation, Reply
from training.gate import Figure, Reason, Verdict
from training.suites import LESSONS

# In one piece the name would look like the key of a text.
FILE = Path("report").with_suffix(".md")
GIB = 2**30
EXAMPLES = 5
LONGEST = 240  # characters of an answer that is shown
CHAT_LIMIT = 1500
CHAT_REASONS = 4
CHAT_FIGURES = ("suite.lessons", "suite.club", "suite.general", "loss.held_out")
SAME = 0.005  # relative: smaller changes get no arrow
FORMS = {  # of figures: how the number looks, and its unit
    "share": (".0%", ""),
    "loss": (".2f", ""),
    "tokens": (".0f", ""),
    "seconds": (".2f", " s"),
    "speed": (".0f", "/s"),
}
TRANSLATED = ("suite", "than")  # values of reasons that are names of texts


def write_report(
    folder: Path,
    verdict: Verdict,
    evaluation: Evaluation,
    training_result: Mapping[str, Any],
    language: str = "pt",
    *,
    counts: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report as Markdown.

    `training_result` is the trainer's result.json, `counts` those of the dataset's manifest.
    """
    parts = [
        f"# {text('report.title', language)}",
        _decision(verdict, language),
        *_learnt(counts or {}, language),
        _table(verdict, language),
        *_examples(verdict, evaluation, language),
        *_run(folder, evaluation, training_result, language),
    ]
    path = folder / FILE
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return path


def chat_summary(
    verdict: Verdict,
    language: str = "pt",
    revision: str = "",
    training_result: Mapping[str, Any] | None = None,
) -> str:
    """The verdict in a few lines of Markdown."""
    lines = [_sentence(verdict, language)]
    if revision:
        lines.append(text("report.revision", language, revision=revision))
    because = verdict.gains if verdict.promoted else verdict.reasons
    lines += ["", *(f"- {explain(reason, language)}" for reason in because[:CHAT_REASONS])]
    if more := len(because) - CHAT_REASONS:
        lines += [f"- {text('report.more', language, n=more)}"] if more > 0 else []
    figures = [figure for figure in verdict.figures if figure.key in CHAT_FIGURES]
    lines += ["", *(f"- {_in_one_line(figure, language)}" for figure in figures)]
    lines += [f"- {line}" for line in _memory(training_result or {}, language)]
    return _cut("\n".join(lines), CHAT_LIMIT)


def explain(reason: Reason, language: str = "pt") -> str:
    """A reason as a sentence."""
    values = {
        name: text(f"gate.{name}.{value}", language) if name in TRANSLATED else value
        for name, value in reason.values.items()
    }
    return text(reason.key, language, **values)


def _sentence(verdict: Verdict, language: str) -> str:
    key = "report.promoted" if verdict.promoted else "report.rejected"
    return f"**{text(key, language)}**"


def _decision(verdict: Verdict, language: str) -> str:
    lines = [_sentence(verdict, language)]
    for key, reasons in (("report.against", verdict.reasons), ("report.gains", verdict.gains)):
        if reasons:
            listed = [f"- {explain(reason, language)}" for reason in reasons]
            lines += ["", text(key, language), "", *listed]
    return "\n".join(lines)


def _learnt(counts: Mapping[str, Any], language: str) -> Iterator[str]:
    """How much was trained on, by where it comes from."""
    kinds = dict(counts.get("kinds", {}))
    votes = {name: counts.get(name, 0) for name in ("liked", "disliked")}
    lines = [
        f"- {text(f'report.kind.{kind}', language, n=n)}"
        for kind, n in (kinds | votes).items()
        if n
    ]
    if lines:
        yield "\n".join([f"## {text('report.learnt', language)}", "", *lines])
    left_out = [
        f"- {n}: {text(f'dataset.reason.{reason}', language)}"
        for reason, n in counts.get("excluded", {}).items()
    ]
    if left_out:
        yield "\n".join([f"## {text('report.left_out', language)}", "", *left_out])


def _table(verdict: Verdict, language: str) -> str:
    columns = [
        text(f"report.column.{name}", language) for name in ("candidate", "champion", "anchor")
    ]
    rows = [_row(figure, language) for figure in verdict.figures]
    return "\n".join(
        [
            f"## {text('report.figures', language)}",
            "",
            f"| | {' | '.join(columns)} |",
            "| --- | --: | --: | --: |",
            *rows,
            "",
            text("report.arrows", language),
        ]
    )


def _row(figure: Figure, language: str) -> str:
    now, before, first = (
        _value(figure, one, language) for one in (figure.candidate, figure.champion, figure.anchor)
    )
    return f"| {_name(figure, language)} | {now} {_arrow(figure)} | {before} | {first} |"


def _name(figure: Figure, language: str) -> str:
    kind, _, suite = figure.key.partition(".")
    if not suite:
        return text(f"report.figure.{kind}", language)
    return text(f"report.figure.{kind}", language, suite=text(f"gate.suite.{suite}", language))


def _value(figure: Figure, value: float, language: str) -> str:
    form, unit = FORMS[figure.form]
    return number(value, form, language) + unit


def _arrow(figure: Figure) -> str:
    """Which way the candidate moved from the champion, as better or worse."""
    change = figure.candidate - figure.champion
    if not figure.better or abs(change) <= SAME * max(abs(figure.champion), SAME):
        return "="
    return "▲" if (change > 0) is (figure.better == "more") else "▼"


def _in_one_line(figure: Figure, language: str) -> str:
    before, now = (_value(figure, one, language) for one in (figure.champion, figure.candidate))
    return f"{_name(figure, language)}: {before} → {now} {_arrow(figure)}"


def _examples(verdict: Verdict, evaluation: Evaluation, language: str) -> Iterator[str]:
    """Some answers before and after: first what was learnt, and one that got worse."""
    pairs = list(_pairs(verdict, evaluation))
    learnt = [pair for pair in pairs if pair[1].passed and not pair[0].passed]
    lost = [pair for pair in pairs if pair[0].passed and not pair[1].passed]
    shown = [*learnt[: EXAMPLES - len(lost[:1])], *lost[:1]]
    if not shown:
        return
    lines = [f"## {text('report.examples', language)}"]
    for before, now in shown:
        mark = "▲" if now.passed else "▼"
        answers = {"report.before": before.text, "report.now": now.text}
        listed = [f"- {text(key, language)}: {_plain(said)}" for key, said in answers.items()]
        lines += [f"{mark} **{_plain(now.question)}**", "\n".join(listed)]
    yield "\n\n".join(lines)


def _pairs(verdict: Verdict, evaluation: Evaluation) -> Iterator[tuple[Reply, Reply]]:
    """The champion's and the candidate's answers to the same, the lessons first."""
    old, new = (evaluation.revisions[name].suites for name in (verdict.champion, verdict.candidate))
    for suite in sorted(new, key=lambda name: name != LESSONS):
        if suite in old:
            before = {reply.id: reply for reply in old[suite].replies}
            yield from (
                (before[reply.id], reply) for reply in new[suite].replies if reply.id in before
            )


def _run(
    folder: Path, evaluation: Evaluation, result: Mapping[str, Any], language: str
) -> Iterator[str]:
    """Losses, time and memory of the training."""
    lines = [
        text(
            f"report.stage.{name}",
            language,
            steps=stage["steps"],
            first=stage["loss"]["first"],
            last=stage["loss"]["last"],
        )
        for name, stage in result.get("stages", {}).items()
    ]
    if "seconds" in result:
        speed = round(result["tokens_per_second"])
        took = _minutes(result["seconds"])
        lines.append(text("report.time", language, took=took, speed=speed))
    lines += _memory(result, language)
    lines.append(text("report.evaluated", language, took=_minutes(evaluation.seconds)))
    yield "\n".join([f"## {text('report.run', language)}", "", *(f"- {line}" for line in lines)])
    if (folder / "loss.png").is_file():
        yield f"![{text('report.curve.title', language)}](loss.png)"


def _memory(result: Mapping[str, Any], language: str) -> Iterator[str]:
    """What the training was foretold to take, and what it took."""
    if "peak_memory" in result:
        estimate, peak = result["estimate"]["total"] / GIB, result["peak_memory"]["mlx"] / GIB
        yield text("report.memory", language, estimate=estimate, peak=peak)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _plain(answer: str) -> str:
    """An answer in one line, nothing in it read as markup."""
    line = _cut(" ".join(answer.split()), LONGEST) or "…"
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", line)


def _cut(whole: str, most: int) -> str:
    return whole if len(whole) <= most else whole[: most - 1].rstrip() + "…"
