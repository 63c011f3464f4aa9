"""The original document's claims: each is judged, and what is derived is right."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from config.texts import LANGUAGES
from training.compare.claims import Verdict, claims, judge
from training.compare.values import Base, Comparison, Figure, Key, Side
from training.recipe import Recipe

PARAMETERS = 7_241_732_096
BRAZILIAN = ("você", "equipe", "time ", "celular", "arquivo", "baixar", "usuário")


def side(method, mode, **values):
    return Side(
        method=method,
        mode=mode,
        settings="cpu",
        recipe=Recipe(),
        base=Base(name="m", parameters=1, bits=16, memory="bfloat16", made="given"),
        figures={Key[name]: Figure(values=(value,)) for name, value in values.items()},
    )


def comparison(*sides):
    return Comparison(
        created_at=datetime(2026, 11, 24, tzinfo=UTC),
        model="m",
        profile="cpu",
        quick=True,
        seed=7,
        repetitions=1,
        machine={},
        rows=1,
        held_out=1,
        dataset="0",
        sides=sides,
    )


def judged(lora, qlora, mode="same"):
    found = comparison(side("lora", mode, **lora), side("qlora", mode, **qlora))
    return {one.claim.id: one for one in judge(found)}


def derived(name):
    return next(claim for claim in claims() if claim.id == name).worked_out


def test_every_claim_is_judged_and_told_in_both_languages():
    found = judge(comparison())
    assert len(found) == len(claims()) == 14
    assert len({claim.id for claim in claims()}) == 14
    for claim in claims():
        assert set(claim.title) == set(claim.why) == set(LANGUAGES)
        assert not [word for word in BRAZILIAN if word in f"{claim.title} {claim.why}".lower()]
    measured = [one for one in found if one.claim.rule == "ratio"]
    assert len(measured) == 5
    assert all(one.verdict is Verdict.UNMEASURED and one.ratio is None for one in measured)
    assert all(one.verdict is not Verdict.UNMEASURED for one in found if one not in measured)


def test_a_claim_has_what_its_rule_needs():
    for claim in claims():
        if claim.rule == "ratio":
            assert claim.ratio
            assert claim.keys
            assert claim.mode
        elif claim.rule != "said":
            assert claim.judged
            assert claim.claimed
            assert claim.worked_out


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("full_size", PARAMETERS * 32 / 8),
        ("int4_size", PARAMETERS * (4 + 2 * 16 / 64) / 8),
        ("lora_adapter", 4 * 32 * 8 * ((4096 + 4096) + (4096 + 1024))),
        ("qlora_adapter", 4 * 32 * 8 * ((4096 + 4096) + 2 * (4096 + 1024))),
        ("m1_speed", 200e9 / (PARAMETERS * 4.5 / 8)),
    ],
)
def test_what_is_derived_is_right(name, value):
    assert derived(name) == (pytest.approx(value, rel=1e-9),)


def test_the_sentences_say_what_is_derived():
    why = {claim.id: claim.why["en"] for claim in claims()}
    assert f"{PARAMETERS:,}" in why["full_size"]
    assert f"{derived('full_size')[0] / 1e9:.2f} GB" in why["full_size"]
    assert f"{PARAMETERS * 2 / 1e9:.2f} GB" in why["full_size"]
    assert f"{derived('int4_size')[0] / 1e9:.2f} GB" in why["int4_size"]
    assert f"{derived('lora_adapter')[0] / 1e6:.1f} MB" in why["lora_adapter"]
    assert f"{derived('lora_adapter')[0] / 4e6:.2f} million" in why["lora_adapter"]
    assert f"{derived('qlora_adapter')[0] / 1e6:.1f} MB" in why["qlora_adapter"]
    assert f"{derived('qlora_adapter')[0] / 4e6:.2f} million" in why["qlora_adapter"]
    assert f"ceiling is {derived('m1_speed')[0]:.0f};" in why["m1_speed"]
    assert f"{375 * derived('int4_size')[0] / 1e12:.1f} TB" in why["m1_speed"]
    assert f"gives {1 - 4.5 / 16:.0%} " in why["size_ratio"]
    assert f"{1 - 5 / 16:.0%}." in why["size_ratio"]


def test_what_arithmetic_refutes_does_not_hold_whatever_was_measured():
    found = {one.claim.id: one for one in judge(comparison())}
    fails = {"full_size", "int4_size", "lora_memory", "lora_adapter", "qlora_adapter"}
    fails |= {"m1_speed", "score_sum", "best_finish"}
    assert {name for name, one in found.items() if one.verdict is Verdict.FAILS} == fails
    assert found["qlora_memory"].verdict is Verdict.HOLDS
    assert found["full_size"].ratio == pytest.approx(PARAMETERS * 4 / 14e9)
    assert found["full_size"].source == "derived"


@pytest.mark.parametrize(
    ("name", "key", "lora", "holds", "fails"),
    [
        ("size_ratio", "BASE_BYTES", 270.0, 75.6, 84.4),
        ("memory_ratio", "TRAIN_PEAK_PROCESS", 10.0, 6.4, 6.6),
        ("train_speed", "TRAIN_RATE", 100.0, 126.0, 124.0),
        ("quality", "LOSS_AFTER", 2.0, 2.019, 2.021),
        ("adapter_ratio", "ADAPTER_BYTES", 20.0, 19.0, 20.0),
    ],
)
def test_a_ratio_is_judged_by_what_was_measured(name, key, lora, holds, fails):
    good, bad = (judged({key: lora}, {key: ours})[name] for ours in (holds, fails))
    assert (good.verdict, bad.verdict) == (Verdict.HOLDS, Verdict.FAILS)
    assert good.ratio == pytest.approx(holds / lora)
    assert (good.lora, good.qlora, good.source) == (lora, holds, "measured")


def test_the_greater_counter_of_memory_counts():
    found = judged(
        {"TRAIN_PEAK_MLX": 8.0, "TRAIN_PEAK_PROCESS": 10.0},
        {"TRAIN_PEAK_MLX": 9.0, "TRAIN_PEAK_PROCESS": 3.0},
    )["memory_ratio"]
    assert found.ratio == pytest.approx(0.9)


def test_a_claim_is_judged_by_its_settings_and_else_by_the_others():
    lora, qlora = {"LOSS_AFTER": 2.0}, {"LOSS_AFTER": 2.5}
    assert judged(lora, qlora, "recommended")["quality"].mode == "recommended"
    both = [
        *(side("lora", mode, LOSS_AFTER=2.0) for mode in ("recommended", "same")),
        side("qlora", "recommended", LOSS_AFTER=4.0),
        side("qlora", "same", LOSS_AFTER=2.0),
    ]
    found = {one.claim.id: one for one in judge(comparison(*both))}["quality"]
    assert (found.mode, found.verdict) == ("same", Verdict.HOLDS)


def test_what_is_not_measured_on_both_sides_cannot_be_judged():
    found = judged({"TRAIN_RATE": 100.0}, {})
    assert found["train_speed"].verdict is Verdict.UNMEASURED
    assert not any(math.isnan(one.ratio or 0) for one in found.values())
