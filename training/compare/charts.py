"""The comparison in pictures: what the report draws, and one overview as files of their own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from config.texts import text
from training.compare import matrix as rules
from training.compare import show
from training.compare.matrix import Reading
from training.compare.values import Comparison, Key, Method, Side
from training.curve import ACCENT, DPI, GREY, INK, PAPER

Stage = Literal["train", "serve"]  # whose memory is asked for
METHODS: tuple[Method, Method] = ("lora", "qlora")
NAMES = {method: text(f"comparison.method.{method}") for method in METHODS}  # in any language
COLOURS = {"lora": INK, "qlora": ACCENT}
SOFT = "#6d685e"
OVERVIEW = "charts"
SIZE = (10.0, 6.6)  # inches
ROOM = 1.45  # of the longest bar: its number stands behind it
HEIGHT = 0.36  # of a bar, two of which stand in one place
GROUPS: dict[
    str, dict[str, Key | Stage]
] = {  # of each picture: what is drawn, and from which figures
    "size": {"base": Key.BASE_BYTES, "adapter": Key.ADAPTER_BYTES},
    "memory": {"train": "train", "serve": "serve"},
    "speed": {"train": Key.TRAIN_RATE, "one": Key.SERVE_RATE_1, "many": Key.SERVE_RATE_8},
    "loss": {"before": Key.LOSS_BEFORE, "after": Key.LOSS_AFTER},
}
FORMS = {"size": "bytes", "memory": "bytes", "speed": "rate", "loss": "loss"}


@dataclass(frozen=True, slots=True)
class Bar:
    """One side's. `reading` is as a part of the picture's greatest."""

    method: Method
    reading: Reading
    label: str


@dataclass(frozen=True, slots=True)
class Group:
    """Both sides' bars of one thing; those that were measured."""

    label: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture."""

    name: str
    title: str
    note: str
    groups: tuple[Group, ...]

    @property
    def summary(self) -> str:
        """All of it, for who cannot see it."""
        said = (
            f"{group.label}: " + ", ".join(f"{NAMES[bar.method]} {bar.label}" for bar in group.bars)
            for group in self.groups
        )
        return f"{self.title} ({self.note}). " + "; ".join(said)


def panels(comparison: Comparison, language: str) -> tuple[Panel, ...]:
    """The pictures of which something was measured, with the settings that the matrix weighs."""
    mode = rules.matrix(comparison).mode
    sides = {method: rules.find(comparison, method, mode) for method in METHODS}
    drawn = (_panel(name, sides, language) for name in GROUPS)
    return tuple(panel for panel in drawn if panel.groups)


def _panel(name: str, sides: dict[Method, Side | None], language: str) -> Panel:
    found = {
        group: {method: _read(side, of) for method, side in sides.items() if side}
        for group, of in GROUPS[name].items()
    }
    readings = [one for group in found.values() for one in group.values() if one]
    greatest = max((one.high for one in readings), default=0.0) or 1.0
    groups = (
        Group(
            text(f"comparison.chart.{group}", language),
            tuple(_bars(both, FORMS[name], greatest, language)),
        )
        for group, both in found.items()
    )
    return Panel(
        name,
        text(f"comparison.chart.{name}", language),
        text(f"comparison.chart.{name}_note", language),
        tuple(group for group in groups if group.bars),
    )


def _bars(
    both: dict[Method, Reading | None], form: str, greatest: float, language: str
) -> Iterable[Bar]:
    measured = {method: reading for method, reading in both.items() if reading}
    most = max((reading.median for reading in measured.values()), default=0.0)
    for method, reading in measured.items():
        label = show.value(reading.median, form, language, most)
        yield Bar(method, reading.map(lambda value: max(0.0, value / greatest)), label)


def _read(side: Side, of: Key | Stage) -> Reading | None:
    """A figure, or what a stage needs of memory."""
    if isinstance(of, Key):
        return Reading.of(side.figures[of]) if of in side.figures else None
    return rules.need(side, of)


def write_overview(folder: Path, comparison: Comparison, language: str = "pt") -> list[Path]:
    """Draw charts.svg and charts.png, in English charts.en.*. Raises OSError.

    Opaque paper: readable on a dark page as on a light one.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    shown = panels(comparison, language)
    name = OVERVIEW if language == "pt" else f"{OVERVIEW}.{language}"
    svg, png = (folder / f"{name}.{kind}" for kind in ("svg", "png"))
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "farense", "font.size": 11, "text.color": INK}):
        figure = Figure(figsize=SIZE, facecolor=PAPER, layout="constrained")
        engine = figure.get_layout_engine()
        assert engine is not None
        engine.set(h_pad=0.14, w_pad=0.14)  # type: ignore[call-arg] # the constrained one's
        title = f"{text('comparison.title', language)}  {comparison.model}"
        figure.suptitle(title, fontweight="bold", fontsize=15, x=0.01, ha="left", parse_math=False)
        axes = list(figure.subplots(2, 2).flat)
        for axis, panel in zip(axes, shown, strict=False):
            _draw(axis, panel)
        for axis in axes[len(shown) :]:
            axis.set_axis_off()
        _legend(figure)
        figure.savefig(svg, metadata={"Date": None})
        figure.savefig(png, dpi=DPI, metadata={"Software": None})
    return [svg, png]


def _draw(axis: Any, panel: Panel) -> None:
    """Two bars to a thing, LoRA's above, each with its number and the spread as a fine line."""
    for place, group in enumerate(panel.groups):
        for bar in group.bars:
            at = place + (HEIGHT if bar.method == "qlora" else -HEIGHT) / 2
            low, middle, high = bar.reading.low, bar.reading.median, bar.reading.high
            axis.barh(at, middle, HEIGHT * 0.9, color=COLOURS[bar.method])
            if high > low:
                axis.plot((low, high), (at, at), color=GREY, linewidth=2, solid_capstyle="butt")
            axis.annotate(
                bar.label,
                (max(middle, high), at),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontweight="bold",
                fontsize=10,
            )
    axis.set_title(panel.title, loc="left", fontsize=12, fontweight="bold")
    axis.set_xlabel(panel.note, loc="left", fontsize=9, color=SOFT)
    axis.set_yticks(range(len(panel.groups)), [group.label for group in panel.groups])
    axis.set_ylim(len(panel.groups) - 0.45, -0.55)
    axis.set_xlim(0, ROOM)
    axis.set_xticks([])
    axis.tick_params(length=0)
    axis.set_facecolor(PAPER)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.spines["left"].set_color(GREY)


def _legend(figure: Any) -> None:
    from matplotlib.patches import Patch

    keys = [Patch(color=COLOURS[method], label=NAMES[method]) for method in METHODS]
    figure.legend(handles=keys, loc="upper right", ncols=2, frameon=False, fontsize=12)
