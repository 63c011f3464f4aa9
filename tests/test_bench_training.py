"""The training figures: what a peer's output means, and which of them must hold."""

from __future__ import annotations

import pytest

from bench.training import Trained, pace, report

LINES = [
    (1.0, "Trainable parameters: 3.631% (4.884M/134.515M)\n"),
    (2.0, "  iter   train_loss     tok/s     tokens\n"),
    (11.0, "     1    3.587 ▼        9      0.1k\n"),
    (13.0, "     2    3.877 ▲       17      0.2k\n"),
    (15.0, "    10    0.501 ▼       20      0.3k\n"),
]


def test_the_first_of_many_steps_is_left_out_and_one_alone_counts():
    assert pace(LINES, 100) == 2 * 100 / 4
    assert pace(LINES[:3], 100) == 100 / 10


def test_the_figures_are_held_against_the_targets():
    facts = {"peak_memory": {"mlx": 100 * 2**20}, "estimate": {"total": 110 * 2**20}}
    ours = [Trained(500.0, facts), Trained(400.0, facts)]
    figures = {
        one.name: one
        for one in report(
            {"ours": ours, "stock": [Trained(4.0, {})], "tuned": [Trained(200, {})] * 2}
        )
    }
    assert figures["ours / as it comes"].value == pytest.approx(112.5)
    assert figures["ours / with our BLAS"].value == pytest.approx(2.25)
    assert figures["estimate off by"].value == pytest.approx(10)
    assert [one.holds for one in figures.values() if one.target] == [True, True, True]


def test_without_a_fast_blas_there_is_no_tuned_peer():
    facts = {"peak_memory": {"mlx": 1}, "estimate": {"total": 1}}
    runs = {"ours": [Trained(5.0, facts)], "stock": [Trained(4.0, {})], "tuned": []}
    assert not [one for one in report(runs) if "BLAS" in one.name]
