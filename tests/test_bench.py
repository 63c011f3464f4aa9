"""The bench's report: what it concludes, and that the page shown is one that it wrote."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench import peer, report
from bench.report import Figure, Report, Target
from bench.speed import Round, compare
from bench.whole import Board
from bot.domain import AnswerId, Buttons, Chat, Destination, Platform, Post

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"


def a_report() -> Report:
    figures = [
        report.figure("Speed", "ours", "tokens/s", [60, 75, 70]),
        report.ratio("Speed", "ours / theirs", [(60, 5), (75, 5)], target=Target("≥", 12)),
        report.ratio("Waiting", "warm / cold", [(1, 4)], target=Target("≤", 0.2), note="known: 9"),
        Figure("Waiting", "llama.cpp", note="not here"),
    ]
    return Report({"date": "today", "machine": "a small one"}, figures, {"Speed": [0.1, 1.9]})


def test_a_figure_is_the_median_with_its_spread():
    figure = a_report().figures[0]
    assert (figure.value, figure.low, figure.high, figure.count) == (70, 60, 75, 3)


def test_a_ratio_is_taken_within_each_repetition():
    mixed = report.ratio("", "", [(2, 1), (30, 10), (400, 100)])
    assert (mixed.value, mixed.low, mixed.high) == (3, 2, 4)


@pytest.mark.parametrize(
    ("sense", "value", "holds"),
    [("≥", 12, True), ("≥", 11.9, False), ("≤", 12, True), ("≤", 12.1, False), ("<", 12, False)],
)
def test_a_target_says_whether_it_holds(sense, value, holds):
    assert Target(sense, 12).holds(value) is holds


def test_without_a_target_or_a_value_nothing_is_claimed():
    assert [one.holds for one in a_report().figures] == [None, True, False, None]
    assert Figure("", "", target=Target("≥", 1)).holds is None


def test_p95_is_a_value_that_was_measured():
    assert report.percentile(list(range(1, 101)), 95) == 95
    assert report.percentile([1, 2, 3, 4, 5, 6, 7, 8], 95) == 8
    assert report.percentile([7], 50) == 7


def test_json_brings_everything_back_and_says_what_holds():
    written = report.to_json(a_report())
    assert report.from_json(written) == a_report()
    assert [line["holds"] for line in json.loads(written)["figures"]] == [None, True, False, None]


def test_the_table_shows_value_spread_target_and_verdict():
    console = Console(width=200)
    with console.capture() as shown:
        console.print(report.table(a_report()))
    text = shown.get()
    for piece in ("70.0 tokens/s", "60.0 – 75.0", "≥ 12", "does not hold", "not here", "today"):
        assert piece in text


def test_the_page_shows_every_figure_and_is_made_again_from_itself():
    page = report.page(a_report())
    assert "| ours / theirs | 13.5 × | 12.0 – 15.0 | 2 | ≥ 12 | holds |" in page
    assert "Load average: 0.1 before, 1.9 after." in page
    assert report.page(report.from_page(page)) == page


def test_the_published_page_was_written_by_the_bench_with_all_its_groups():
    page = PAGE.read_text(encoding="utf-8")
    published = report.from_page(page)
    assert report.page(published) == page
    chat = {"≥ 12", "≤ 0.1", "≥ 1.15", "≥ 1", "≤ 0.2", "≤ 4", "< 5", "< 300"}
    training = {"≥ 20", "≥ 1.3", "≤ 15"}
    swap, beside = {"≤ 50", "≥ 16"}, {"≤ 2"}
    assert chat | training | swap | beside <= {str(one.target) for one in published.figures}


def test_ours_is_divided_by_the_other_of_the_same_round():
    def taken(rate: float, first: float) -> Round:
        return Round(rate, [first, 2 * first], cached=0, tokens=10)

    results = {"ours": [taken(60, 1), taken(90, 1)], "other": [taken(5, 10), taken(10, 20)]}
    figures = compare("", results, "other", 2, rate=Target("≥", 12), first=Target("≤", 0.1))
    quotients = {one.name: one.value for one in figures if one.unit == "×"}
    assert quotients == {
        "2 clients: tokens/s, ours / theirs": 10.5,
        "2 clients: first token p50, ours / theirs": pytest.approx(0.075),
        "2 clients: first token p95, ours / theirs": pytest.approx(0.075),
    }


def test_llama_bench_is_read_from_its_json():
    assert peer.read_llama_bench('[{"n_gen": 64, "avg_ts": 109.5, "stddev_ts": 0.2}]') == 109.5


async def test_the_board_tells_the_final_text_and_not_a_preview():
    board, to = Board(), Destination(Chat(Platform.WEB, "1"))
    final = board.finals[to.chat.key] = asyncio.get_running_loop().create_future()
    sent = await board.send(to, Post("Olá ▌", Buttons(AnswerId(1), running=True)))
    assert not final.done()
    await board.edit(to, sent, Post("Olá!", Buttons(AnswerId(1))))
    assert await final == "Olá!"
