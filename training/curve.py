"""The loss curve as a picture: the club's black and white, and one colour for what was held out."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from config.texts import number, text

PAPER, INK, GREY, ACCENT = "#fdfcf9", "#111111", "#b9b6ae", "#d2691e"
STAGES, WIDTHS = ("sft", "kto"), (2, 1)
SIZE = (9.0, 4.2)  # inches
DPI = 144
SMOOTHED = 12  # points of a mean, at most

Points = Sequence[Mapping[str, float]]


def curve(folder: Path, history: Mapping[str, Points], language: str = "pt") -> None:
    """Draw loss.png and loss.svg of the trainer's history, a panel a stage.

    Opaque paper: readable on a dark page as on a light one.
    """
    with _figure(history, language) as figure:
        figure.savefig(folder / "loss.png", dpi=DPI, metadata={"Software": None})
        figure.savefig(folder / "loss.svg", metadata={"Date": None})


def drawing(history: Mapping[str, Points], language: str = "pt") -> str:
    """The same as SVG, for where it is shown while it grows."""
    image = io.StringIO()
    with _figure(history, language) as figure:
        figure.savefig(image, format="svg", metadata={"Date": None})
    return image.getvalue()


@contextmanager
def _figure(history: Mapping[str, Points], language: str) -> Iterator[Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    stages = [stage for stage in STAGES if history.get(stage)]
    with mpl.rc_context({"svg.hashsalt": "farense", "font.size": 11, "text.color": INK}):
        figure = Figure(figsize=SIZE, facecolor=PAPER, layout="constrained")
        figure.suptitle(text("report.curve.title", language), fontweight="bold")
        count = max(1, len(stages))
        axes = figure.subplots(1, count, squeeze=False, width_ratios=WIDTHS[:count])
        for axis, stage in zip(axes[0], stages, strict=False):
            _draw(axis, history[stage], stage, language)
        yield figure


def _draw(axis: Any, points: Points, stage: str, language: str) -> None:
    """One stage: every step in grey, their running mean in black, the held-out set in colour."""
    trained = [(point["step"], point["loss"]) for point in points if "loss" in point]
    held_out = [(point["step"], point["held_out"]) for point in points if "held_out" in point]
    if trained:
        steps, losses = zip(*trained, strict=True)
        axis.plot(steps, losses, color=GREY, linewidth=1)
        label = text("report.curve.train", language)
        axis.plot(steps, _smooth(losses), color=INK, linewidth=2.2, label=label)
    if held_out:
        label = text("report.curve.held_out", language)
        axis.plot(*zip(*held_out, strict=True), color=ACCENT, linewidth=2, marker="o", label=label)
        best = min(held_out, key=lambda point: point[1])
        axis.annotate(
            number(best[1], ".2f", language),
            best,
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            color=ACCENT,
            fontweight="bold",
        )
    axis.set_title(text(f"report.curve.{stage}", language), loc="left", fontsize=11)
    axis.set_xlabel(text("report.curve.step", language))
    axis.set_ylabel(text("report.curve.loss", language))
    axis.set_facecolor(PAPER)
    axis.set_ylim(bottom=0)
    axis.yaxis.set_major_formatter(lambda value, _at: number(value, "g", language))
    axis.grid(axis="y", color=GREY, alpha=0.4, linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    if trained or held_out:
        axis.legend(frameon=False)


def _smooth(values: Sequence[float]) -> list[float]:
    """The mean of each value and those before it, over a tenth of the run."""
    width = max(1, min(SMOOTHED, len(values) // 10))
    windows = (values[max(0, at - width + 1) : at + 1] for at in range(len(values)))
    return [sum(window) / len(window) for window in windows]
