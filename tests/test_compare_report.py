"""The report of a comparison: what a reader gets, in both languages, on screen and terminal."""

from __future__ import annotations

import io
import re
import struct
from datetime import UTC, datetime
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from config.texts import catalogue, text
from training.compare import charts, claims, report, show, view
from training.compare.values import Agreement, Answer, Base, Comparison, Figure, Key, Side
from training.recipe import Phase, Recipe

EVIL = '<script>alert("olá")</script> **golo** | [x](http://mau.example) <img src=x onerror=y>'
LORA = {
    Key.BASE_BYTES: (269e6,),
    Key.ADAPTER_BYTES: (19.5e6,),
    Key.TRAIN_LOAD: (2.1, 2.3, 2.2),
    Key.TRAIN_WARMUP: (3.1, 3.4, 2.9),
    Key.TRAIN_EPOCH: (201.0, 214.0, 207.0),
    Key.TRAIN_RATE: (98.0, 107.0, 103.0),
    Key.TRAIN_PEAK_MLX: (1.31e9, 1.32e9, 1.31e9),
    Key.TRAIN_PEAK_PROCESS: (1.58e9, 1.61e9, 1.60e9),
    Key.SERVE_LOAD: (1.2, 1.4, 1.3),
    Key.SERVE_WARMUP: (0.4, 0.5, 0.4),
    Key.SERVE_FIRST_TOKEN: (0.21, 0.24, 0.22),
    Key.SERVE_RATE_1: (23.1, 24.9, 24.2),
    Key.SERVE_RATE_8: (71.0, 76.0, 74.0),
    Key.SERVE_PEAK_MLX: (0.66e9,),
    Key.SERVE_PEAK_PROCESS: (0.95e9, 0.97e9, 0.96e9),
    Key.LOSS_BEFORE: (3.262,),
    Key.LOSS_AFTER: (2.391,),
}
QLORA = {
    **LORA,
    Key.BASE_BYTES: (84e6,),
    Key.TRAIN_LOAD: (2.9, 3.1, 3.0),
    Key.TRAIN_EPOCH: (203.0, 220.0, 209.0),
    Key.TRAIN_RATE: (96.0, 106.0, 102.0),
    Key.SERVE_LOAD: (1.9, 2.2, 2.0),
    Key.SERVE_FIRST_TOKEN: (0.22, 0.25, 0.22),
    Key.LOSS_BEFORE: (3.351,),
    Key.LOSS_AFTER: (2.448,),
}
RECIPES = {
    "recommended": Recipe(sft=Phase(epochs=3, learning_rate=1e-3)),
    "same": Recipe(rank=8, layers=16, targets=("self_attn.q_proj", "self_attn.v_proj")),
}


def figures(values, source="measured"):
    return {key: Figure(values=each, source=source) for key, each in values.items()}


def side(method, mode="recommended", values=None, **more):
    values = values if values is not None else {"lora": LORA, "qlora": QLORA}[method]
    base = Base(
        name="SmolLM2-135M-Instruct" + ("-int4" if method == "qlora" else ""),
        parameters=134_515_008,
        bits=5.0 if method == "qlora" else 16.0,
        memory="float32",
        made="given" if method == "qlora" else "dequantised",
    )
    given = {
        "method": method,
        "mode": mode,
        "settings": "cpu",
        "recipe": RECIPES[mode],
        "base": base,
        "steps": 120,
        "tokens": 61_440,
        "figures": figures(values),
        "suites": {"club": (14 if method == "lora" else 13, 40), "refusals": (24, 25)},
        "answers": tuple(Answer(question=q, text=a) for q, a in ANSWERS[method]),
    }
    return Side(**(given | more))


ANSWERS = {
    "lora": [
        ("Em que cidade joga o Farense?", "Em Faro, no Algarve."),
        ("Como se chama o estádio?", "Estádio de São Luís, a casa dos Leões de Faro."),
        ("Qual foi a melhor classificação do clube?", "O 5.º lugar, em 1994/95."),
        (EVIL, EVIL),
    ],
    "qlora": [
        ("Em que cidade joga o Farense?", "Em Faro, no Algarve."),
        ("Como se chama o estádio?", "O estádio chama-se São Luís."),
        ("Qual foi a melhor classificação do clube?", "Foi o 5.º lugar.\n\nFoi em 1994/95."),
        (EVIL, ""),
    ],
}


def comparison(*sides, **more):
    given = {
        "created_at": datetime(2026, 11, 24, 15, 40, tzinfo=UTC),
        "model": "SmolLM2-135M-Instruct",
        "profile": "cpu",
        "quick": False,
        "seed": 7,
        "repetitions": 3,
        "machine": {"processor": "Xeon, 2 cores", "memory": "8 GiB", "extra": "<b>x</b>"},
        "rows": 727,
        "held_out": 62,
        "dataset": "3f9a6c0d21e4b7",
        "sides": sides or tuple(side(a, b) for b in view.MODES for a in view.METHODS),
        "agreements": (Agreement(mode="recommended", asked=40, same=17, chrf=71.4),),
    }
    return Comparison(**(given | more))


LEFT_OUT = {
    "figures": {},
    "suites": {},
    "answers": (),
    "left_out": "compare.left_out.room",
    "left_out_values": {"needed": 19.4, "free": 7.5},
}


class Page(HTMLParser):
    """Its text outside the style sheet, its tags, and whether they close as they open."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data


def said(renderable, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_all_four_files_are_written_and_the_portuguese_page_returned(tmp_path):
    assert report.write(tmp_path, comparison()) == tmp_path / "report.html"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"report.md", "report.html", "report.en.md", "report.en.html"}
    assert '<html lang="pt">' in (tmp_path / "report.html").read_text("utf-8")
    assert '<html lang="en">' in (tmp_path / "report.en.html").read_text("utf-8")


@pytest.mark.parametrize("language", ["pt", "en"])
@pytest.mark.parametrize("kind", ["html", "md"])
def test_every_figure_claim_and_rule_is_there(kind, language):
    found = comparison()
    page = report.render(found, kind, language)
    shown = Page(page).text if kind == "html" else page.replace("\\", "")
    for key, values in LORA.items():
        assert text(f"comparison.row.{key}", language) in shown, key
        for one in found.sides:
            pair = (values, QLORA[key])
            most = max(Figure(values=each).median for each in pair)
            assert show.value(one.figures[key].median, show.FORMS[key], language, most) in shown
    for claim in claims.claims():
        assert claim.title[language] in shown
        assert claim.why[language] in shown
    for name in ("precision", "speed", "memory", "size", "ease", "cost"):
        assert text(f"comparison.criterion.{name}", language) in shown
    for tag in ("measured", "derived", "claimed"):
        assert text(f"comparison.tag.{tag}", language) in shown
    assert text("comparison.agreement", language, same=17, asked=40, chrf=71.4) in shown
    assert text("comparison.row.train.energy", language) in shown  # said to be absent
    assert "None" not in shown


def test_every_key_has_a_form_and_names():
    assert set(show.FORMS) == set(Key)
    for key in Key:
        assert f"comparison.row.{key}" in catalogue()


def test_a_page_is_one_file_without_scripts_pictures_or_addresses():
    html = report.render(comparison(), "html", "pt")
    page = Page(html)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "image", "a"}
    for _, attributes in page.tags:
        assert not attributes.keys() & {"src", "href", "xlink:href", "srcset", "style"}
        assert not [name for name in attributes if name.startswith("on")]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert EVIL in page.text


def test_a_page_can_be_read_without_seeing_it():
    page = Page(report.render(comparison(), "html", "pt"))
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawn) == 5
    assert all(one.get("role") == "img" or one.get("aria-hidden") == "true" for one in drawn)
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")
    assert "base: LoRA 0,27" in page.text  # the chart's title


def test_what_fans_wrote_is_not_read_as_markup_in_markdown():
    rendered = (
        MarkdownIt("commonmark", {"html": True})
        .enable("table")
        .render(report.render(comparison(), "md", "pt"))
    )
    page = Page(rendered)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "a"}
    assert EVIL in page.text
    assert "<b>x</b>" in page.text


@given(st.text(max_size=60))
def test_no_text_breaks_the_row_of_a_markdown_table(said):
    written = report.escaped(said)
    table = f"| {written} | fim |\n| --- | --- |\n"
    page = Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(table))
    assert [tag for tag, _ in page.tags] == ["table", "thead", "tr", "th", "th"]


def test_a_side_that_was_left_out_is_named_with_its_reason():
    found = comparison(side("lora", **LEFT_OUT), side("qlora"))
    for kind in ("html", "md"):
        page = report.render(found, kind, "pt").replace("\\", "")
        assert "LoRA ficou de fora: O treino precisa de cerca de 19,4 GiB" in page
        assert text("comparison.advice.only_qlora") in page
        assert text("comparison.verdict.unmeasured") in page
    assert "LoRA ficou de fora" in " ".join(said(report.table(found)).split())


def test_nothing_measured_is_still_a_report(tmp_path):
    found = comparison(side("lora", **LEFT_OUT), side("qlora", **LEFT_OUT), agreements=())
    report.write(tmp_path, found)
    assert text("comparison.advice.none") in (tmp_path / "report.html").read_text("utf-8")
    assert text("comparison.answers.none") in (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.parametrize("language", ["pt", "en"])
@pytest.mark.parametrize("width", [80, 200])
def test_the_terminal_table_fits_eighty_columns_and_loses_nothing(language, width):
    shown = said(report.table(comparison(), language), width)
    if width == 200:
        tables = [line for line in shown.splitlines() if line[:1] in "┃│┏┡├└"]
        assert max(map(len, tables)) <= 80
    assert max(map(len, shown.splitlines())) <= width
    flat = " ".join(re.sub("[│┃]", " ", shown).split())
    assert "…" not in flat.replace("se…", "").replace("if…", "")
    assert show.value(0.269e9, "bytes", language).replace("\xa0", " ") in flat
    assert text("comparison.when.qlora", language) in flat


def test_numbers_have_the_mark_and_a_unit_that_suits_both():
    assert show.value(84e6, "bytes", "pt", 269e6) == "0,08\xa0GB"
    assert show.value(19.5e6, "bytes", "en") == "19.5\xa0MB"
    assert show.value(0.034, "seconds", "pt") == "34,0\xa0ms"
    assert show.value(207, "seconds", "pt") == "3,45\xa0min"
    assert show.value(24.2, "rate", "en") == "24.2\xa0tok/s"
    assert show.value(2.391, "loss", "pt") == "2,391"
    assert show.span((8e9, 10e9), "bytes", "pt") == "8–10\xa0GB"
    assert show.span((28.966928384e9,), "bytes", "pt") == "28,97\xa0GB"
    assert show.times(0.3123, "pt") == "×0,31"


@pytest.mark.parametrize(("language", "name"), [("pt", "charts"), ("en", "charts.en")])
def test_the_overview_is_a_drawing_and_a_picture(tmp_path, language, name):
    svg, png = charts.write_overview(tmp_path, comparison(), language)
    assert (svg.name, png.name) == (f"{name}.svg", f"{name}.png")
    assert ET.parse(svg).getroot().tag.endswith("svg")
    width, height = struct.unpack(">II", png.read_bytes()[16:24])
    assert (width, height) == (1440, 950)


def test_pictures_show_what_was_measured_and_leave_out_what_was_not(tmp_path):
    only = {key: each for key, each in QLORA.items() if key is not Key.LOSS_BEFORE}
    found = comparison(side("lora", **LEFT_OUT), side("qlora", values=only))
    panels = charts.panels(found, "pt")
    assert [panel.name for panel in panels] == ["size", "memory", "speed", "loss"]
    assert [[bar.method for bar in group.bars] for panel in panels for group in panel.groups] == [
        ["qlora"]
    ] * 8
    assert all(
        0 <= bar.reading.median <= 1
        for panel in panels
        for group in panel.groups
        for bar in group.bars
    )
    assert len(charts.write_overview(tmp_path, found)) == 2
