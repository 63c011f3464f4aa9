"""The decision matrix: rules, ties, sums, and what is advised."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.compare.matrix import (
    BEST,
    CLOSE,
    Advice,
    Criterion,
    Reading,
    find,
    matrix,
    need,
    on_mac,
)
from training.compare.values import Base, Comparison, Figure, Key, Side
from training.recipe import Recipe

ALL = {
    Key.BASE_BYTES: 270e6,
    Key.ADAPTER_BYTES: 20e6,
    Key.TRAIN_LOAD: 2.0,
    Key.TRAIN_WARMUP: 3.0,
    Key.TRAIN_EPOCH: 200.0,
    Key.TRAIN_RATE: 100.0,
    Key.TRAIN_PEAK_MLX: 1.3e9,
    Key.TRAIN_PEAK_PROCESS: 1.6e9,
    Key.SERVE_RATE_1: 24.0,
    Key.SERVE_RATE_8: 75.0,
    Key.SERVE_PEAK_MLX: 0.7e9,
    Key.SERVE_PEAK_PROCESS: 1.0e9,
    Key.LOSS_AFTER: 2.4,
}


def side(method, values=None, **more):
    values = ALL if values is None else values
    given = {
        "method": method,
        "mode": "recommended",
        "settings": "cpu",
        "recipe": Recipe(),
        "base": base(),
        "figures": {
            key: Figure(values=each if isinstance(each, tuple) else (each,))
            for key, each in values.items()
        },
        "suites": {"club": (14, 40)},
    }
    return Side(**(given | more))


def base(**more):
    given = {"name": "m", "parameters": 10**8, "bits": 5.0, "memory": "int4", "made": "given"}
    return Base(**(given | more))


def comparison(*sides):
    return Comparison(
        created_at=datetime(2026, 11, 24, tzinfo=UTC),
        model="m",
        profile="cpu",
        quick=False,
        seed=7,
        repetitions=3,
        machine={},
        rows=100,
        held_out=10,
        dataset="0",
        sides=sides,
    )


def scores(lora, qlora, criterion):
    found = matrix(comparison(lora, qlora))
    one = next(score for score in found.scores if score.criterion is criterion)
    return one.lora, one.qlora


def changed(**values):
    return ALL | {Key[name]: value for name, value in values.items()}


def test_half_as_fast_has_half_the_points():
    slow = changed(TRAIN_RATE=50, SERVE_RATE_1=12, SERVE_RATE_8=37.5)
    assert scores(side("lora"), side("qlora", slow), Criterion.SPEED) == (5.0, 2.5)
    one_slow = changed(TRAIN_RATE=50)
    assert scores(side("lora", one_slow), side("qlora"), Criterion.SPEED) == (4.2, 5.0)


def test_less_memory_and_disk_and_time_is_better():
    small = changed(
        TRAIN_PEAK_PROCESS=0.8e9, TRAIN_PEAK_MLX=0.6e9, BASE_BYTES=85e6, ADAPTER_BYTES=10e6
    )
    assert scores(side("lora"), side("qlora", small), Criterion.MEMORY) == (3.8, 5.0)
    assert scores(side("lora"), side("qlora", small), Criterion.SIZE) == (1.6, 5.0)
    slow = changed(TRAIN_EPOCH=405.0)
    assert scores(side("lora"), side("qlora", slow), Criterion.COST) == (5.0, 2.5)


def test_a_loss_is_compared_as_perplexity_and_answers_by_their_share():
    worse = changed(LOSS_AFTER=2.4 + 0.6931471805599453)  # twice as many words to waver between
    assert scores(side("lora"), side("qlora", worse), Criterion.PRECISION) == (5.0, 3.8)
    few = {"club": (10, 400)}
    many = {"club": (200, 400)}
    one, other = side("lora", suites=many), side("qlora", suites=few)
    assert scores(one, other, Criterion.PRECISION) == (5.0, 2.6)


def test_a_difference_within_the_spread_or_too_small_is_a_tie():
    wide, high = changed(TRAIN_RATE=(60, 100, 140)), changed(TRAIN_RATE=(130, 150, 160))
    assert scores(side("lora", wide), side("qlora", high), Criterion.SPEED) == (5.0, 5.0)
    near = changed(TRAIN_RATE=104)
    assert scores(side("lora"), side("qlora", near), Criterion.SPEED) == (5.0, 5.0)
    one_answer = side("qlora", suites={"club": (13, 40)})
    assert scores(side("lora"), one_answer, Criterion.PRECISION) == (5.0, 5.0)


def test_energy_is_the_cost_where_both_have_it():
    hot = ALL | {Key.TRAIN_ENERGY: 4000.0}
    cool = changed(TRAIN_EPOCH=900.0) | {Key.TRAIN_ENERGY: 2000.0}
    assert scores(side("lora", hot), side("qlora", cool), Criterion.COST) == (2.5, 5.0)
    assert scores(side("lora", hot), side("qlora"), Criterion.COST) == (5.0, 5.0)


@pytest.mark.parametrize("key", [key for key in ALL if "mlx" not in key and "process" not in key])
def test_a_missing_figure_takes_the_score_from_both(key):
    lacking = {name: value for name, value in ALL.items() if name is not key}
    found = matrix(comparison(side("lora"), side("qlora", lacking)))
    without = [score for score in found.scores if score.lora is None]
    assert without
    assert all(score.qlora is None and score.missing for score in without)
    assert found.sums[0] == found.sums[1] == BEST * found.scored
    assert (found.advice is Advice.NONE) is (key is Key.LOSS_AFTER)


def test_memory_is_the_greater_of_both_counters():
    assert need(side("lora"), "train") == Reading.exact(1.6e9)
    assert need(side("lora", changed(SERVE_PEAK_MLX=3e9)), "serve") == Reading.exact(3e9)
    assert need(side("lora", {}), "train") is None


def test_on_a_mac_an_int4_base_stays_as_it_is():
    opened = side("qlora", changed(BASE_BYTES=100e6), base=base(memory="float32"))
    assert on_mac(opened, "train") == Reading.exact(1.6e9 - 4 * 10**8 + 100e6)
    assert on_mac(side("qlora"), "train") == Reading.exact(1.6e9)


def test_ease_counts_what_fits_and_what_has_to_be_fetched():
    sixteen = base(bits=16.0, memory="bfloat16")
    large = changed(TRAIN_PEAK_PROCESS=18e9, SERVE_PEAK_PROCESS=15e9)
    middle = changed(TRAIN_PEAK_PROCESS=6e9, SERVE_PEAK_PROCESS=5e9)
    lora, qlora = side("lora", large, base=sixteen), side("qlora", middle)
    assert scores(lora, qlora, Criterion.EASE) == (0.0, 4.0)
    made_of_it = side("qlora", base=base(made="quantised"))
    made_of_int4 = side("lora", base=base(bits=16.0, made="dequantised"))
    assert scores(made_of_int4, made_of_it, Criterion.EASE) == (5.0, 4.0)


def test_the_advice_follows_the_sums_and_says_when_they_are_too_near():
    slow = changed(TRAIN_RATE=50, SERVE_RATE_1=12, SERVE_RATE_8=37.5)
    assert matrix(comparison(side("lora"), side("qlora", slow))).advice is Advice.LORA
    assert matrix(comparison(side("lora", slow), side("qlora"))).advice is Advice.QLORA
    little = changed(SERVE_RATE_1=20)
    found = matrix(comparison(side("lora"), side("qlora", little)))
    assert 0 < found.sums[0] - found.sums[1] < CLOSE
    assert found.advice is Advice.TIE
    assert [part.name for part in found.speaks_for("lora")] == ["rate_one"]


def test_where_one_side_is_missing_only_the_other_is_advised():
    gone = side("lora", {}, left_out="compare.left_out.room")
    found = matrix(comparison(gone, side("qlora")))
    assert found.advice is Advice.ONLY_QLORA
    assert found.scored == 0
    assert matrix(comparison(side("lora"))).advice is Advice.ONLY_LORA
    assert matrix(comparison()).advice is Advice.NONE


def test_identical_settings_are_weighed_where_nothing_else_was_run():
    both = (side("lora", mode="same"), side("qlora", mode="same"))
    found = matrix(comparison(*both))
    assert (found.mode, found.scored) == ("same", 6)
    assert find(comparison(*both), "lora", "recommended") is None


amounts = st.floats(0, 1e13, allow_nan=False)
measured = st.dictionaries(
    st.sampled_from(Key), st.lists(amounts, min_size=1, max_size=4).map(tuple)
)
suites = st.dictionaries(
    st.sampled_from(["club", "general"]),
    st.integers(0, 50).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))),
)
bases = st.builds(
    base,
    parameters=st.integers(0, 10**11),
    bits=st.floats(2, 32),
    memory=st.sampled_from(["int4", "float32", "bfloat16"]),
    made=st.sampled_from(["given", "dequantised", "quantised"]),
)
full = measured.map(lambda found: dict(ALL) | found)
sides = st.builds(
    lambda values, passed, under: {"values": values, "suites": passed, "base": under},
    st.one_of(measured, full),
    suites,
    bases,
)


@given(sides, sides)
def test_scores_lie_between_none_and_five_and_their_sums_add_up(one, other):
    found = matrix(comparison(side("lora", **one), side("qlora", **other)))
    for score in found.scores:
        assert (score.lora is None) is (score.qlora is None)
        assert score.lora is None or (0 <= score.lora <= BEST and 0 <= score.qlora <= BEST)
    for total, method in zip(found.sums, ("lora", "qlora"), strict=True):
        shown = [
            f"{getattr(score, method):.1f}" for score in found.scores if score.lora is not None
        ]
        tenths = sum(int(one.replace(".", "")) for one in shown)
        assert f"{total:.1f}".replace(".", "").lstrip("0") == str(tenths).lstrip("0")


@given(sides, sides)
def test_neither_the_order_nor_the_name_of_a_side_matters(one, other):
    there = matrix(comparison(side("lora", **one), side("qlora", **other)))
    assert there == matrix(comparison(side("qlora", **other), side("lora", **one)))
    back = matrix(comparison(side("lora", **other), side("qlora", **one)))
    assert there.sums == back.sums[::-1]
    assert [(score.lora, score.qlora) for score in there.scores] == [
        (score.qlora, score.lora) for score in back.scores
    ]


@given(sides)
def test_equal_sides_are_a_tie_in_everything(both):
    found = matrix(comparison(side("lora", **both), side("qlora", **both)))
    assert found.sums[0] == found.sums[1]
    assert not found.speaks_for("lora")
    assert not found.speaks_for("qlora")
    assert found.advice in {Advice.TIE, Advice.NONE}
