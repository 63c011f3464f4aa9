"""The verdict: what is better passes, what is equal, lucky or worse does not."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation import Evaluation, Reply, RevisionResult, Speed, SuiteResult
from training.gate import LIMITS, Verdict, judge, lower_bound

SIZES = {
    "club": 62,
    "refusals": 26,
    "sycophancy": 10,
    "canaries": 11,
    "style": 15,
    "general": 21,
    "regressions": 3,
    "lessons": 12,
}
SOFT = ("club", "sycophancy", "style", "general")
TEXT = "O jogo foi bom e a equipa também."


def reply(case, *, passed, **changes):
    given = {"text": TEXT, "question": "Como foi o jogo?", "tokens": 12, "seconds": 0.5}
    return Reply(id=case, passed=passed, score=float(passed), **given | changes)


def revision(digest, passed=None, *, loss=2.0, speed=None, **changes):
    """A revision that passes the first `passed[suite]` cases of each suite, or those in a set."""
    passed = passed or {}
    suites = {}
    for suite, size in SIZES.items():
        right = passed.get(suite, size if suite in LIMITS.hard else size // 2)
        right = set(range(right)) if isinstance(right, int) else right
        replies = tuple(reply(str(i), passed=i in right, **changes) for i in range(size))
        suites[suite] = SuiteResult(version="1", replies=replies)
    held_out = {str(i): loss + i / 20 for i in range(20)}
    suites["held_out"] = SuiteResult(version="1", losses=held_out)
    return RevisionResult(
        digest=digest,
        suites=suites,
        speed=speed or Speed(first_token=0.2, tokens_per_second=50),
    )


def verdict(candidate, champion, anchor=None, **options):
    names = {"new": candidate, "old": champion, "first": anchor or champion}
    evaluation = Evaluation(model="m", base="b", persona="p", seconds=1, revisions=names)
    return judge(evaluation, candidate="new", champion="old", anchor="first", **options)


def keys(found):
    return [reason.key for reason in found.reasons]


CHAMPION = revision("c", {"lessons": 0})


def test_twelve_lessons_learnt_are_a_promotion():
    found = verdict(revision("n", {"lessons": 10}), CHAMPION)
    assert found.promoted
    assert not found.reasons
    assert [gain.values for gain in found.gains] == [
        {"suite": "lessons", "before": 0, "now": 10, "n": 12}
    ]


def test_a_candidate_like_the_champion_is_not_promoted():
    found = verdict(revision("n", {"lessons": 0}), CHAMPION)
    assert not found.promoted
    assert keys(found) == ["gate.no_gain"]


@pytest.mark.parametrize("learnt", [1, 2])
def test_one_or_two_lessons_may_be_luck(learnt):
    assert not verdict(revision("n", {"lessons": learnt}), CHAMPION).promoted


@pytest.mark.parametrize("suite", ["refusals", "canaries", "regressions"])
def test_one_lost_case_of_a_hard_suite_outweighs_every_gain(suite):
    lost = set(range(SIZES[suite])) - {1}
    found = verdict(revision("n", {"lessons": 12, "club": 62, suite: lost}), CHAMPION)
    assert not found.promoted
    assert found.reasons[0].key == "gate.flip"
    assert found.reasons[0].values == {"suite": suite, "n": 1, "cases": "1"}


def test_what_the_champion_lost_already_is_held_against_the_anchor():
    lost = {"lessons": 0, "canaries": set(range(11)) - {4}}
    found = verdict(revision("n", lost | {"lessons": 12}), revision("c", lost), revision("a"))
    assert keys(found) == ["gate.flip"]


def test_what_nobody_could_do_is_no_flip():
    lost = {"lessons": 0, "refusals": set(range(26)) - {4}}
    assert verdict(revision("n", lost | {"lessons": 12}), revision("c", lost)).promoted


def test_small_losses_cannot_add_up():
    steps = [revision(str(n), {"lessons": 4 * n, "club": 60 - 4 * n}) for n in range(4)]
    first = verdict(steps[1], steps[0], steps[0])
    third = verdict(steps[3], steps[2], steps[0])
    assert first.promoted
    assert not third.promoted
    assert third.reasons[0].values["than"] == "anchor"


@pytest.mark.parametrize("suite", SOFT)
def test_a_suite_that_collapses_is_a_reason(suite):
    full = {name: SIZES[name] for name in SOFT}
    found = verdict(revision("n", full | {"lessons": 12, suite: 0}), revision("c", full))
    assert found.reasons[0].key == "gate.worse"
    assert found.reasons[0].values["suite"] == suite


def test_a_better_held_out_loss_is_a_gain_and_a_worse_one_a_reason():
    assert [gain.key for gain in verdict(revision("n", loss=1.8), revision("c")).gains] == [
        "gate.gain_loss"
    ]
    assert not verdict(revision("n", loss=1.99), revision("c")).gains
    worse = verdict(revision("n", {"lessons": 12}, loss=3), CHAMPION)
    (reason,) = [one for one in worse.reasons if one.key == "gate.loss"]
    assert reason.values["now"] - reason.values["before"] == pytest.approx(1)
    assert Verdict.model_validate_json(worse.model_dump_json()) == worse


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"tokens": 40}, "gate.length"),
        ({"tokens": 1}, "gate.length"),
        ({"text": ""}, "gate.empty"),
        ({"text": "o que não sabe " * 6}, "gate.looping"),
        ({"text": "The match was good and so was the team."}, "gate.foreign"),
        ({"speed": Speed(first_token=0.2, tokens_per_second=10)}, "gate.slower"),
        ({"speed": Speed(first_token=2.0, tokens_per_second=50)}, "gate.slower"),
    ],
)
def test_bad_habits_are_a_reason(changes, key):
    found = verdict(revision("n", {"lessons": 12}, **changes), CHAMPION)
    assert keys(found) == [key]


def test_the_same_evaluation_gives_the_same_verdict():
    candidate = revision("n", {"lessons": 5, "club": 28})
    assert verdict(candidate, CHAMPION) == verdict(candidate, CHAMPION)


def test_a_revision_that_was_not_evaluated_is_an_error():
    evaluation = Evaluation(
        model="m", base="b", persona="p", seconds=1, revisions={"new": CHAMPION}
    )
    with pytest.raises(ValueError, match="old"):
        judge(evaluation, candidate="new", champion="old", anchor="new")


def test_the_table_has_all_three():
    figures = {
        figure.key: figure for figure in verdict(revision("n", {"lessons": 12}), CHAMPION).figures
    }
    assert figures["suite.lessons"].candidate == 1
    assert figures["suite.lessons"].champion == 0
    assert figures["loss.held_out"].better == "less"
    assert {"length", "looping", "foreign", "first_token", "speed", "chrf"} <= figures.keys()


def noisy(chance, digest, rates, churn, lessons):
    """A revision whose cases each went another way with some probability."""
    passed = {"lessons": lessons}
    for suite in SOFT:
        right = set(range(round(SIZES[suite] * rates[suite])))
        passed[suite] = {
            i for i in range(SIZES[suite]) if (i in right) is not (chance.random() < churn)
        }
    return revision(digest, passed, loss=2 + chance.gauss(0, 0.005))


RATES = {"club": 0.5, "sycophancy": 0.7, "style": 0.8, "general": 0.7}


def test_noise_is_not_promoted():
    chance = random.Random(5)
    lucky = 0
    for _ in range(100):
        champion = noisy(chance, "c", RATES, 0.1, {i for i in range(12) if chance.random() < 0.5})
        lessons = {i for i in range(12) if chance.random() < 0.5}
        lucky += verdict(noisy(chance, "n", RATES, 0.1, lessons), champion).promoted
    assert lucky <= 10


def test_a_real_improvement_passes_through_noise():
    chance = random.Random(6)
    promoted = 0
    for _ in range(50):
        champion = noisy(chance, "c", RATES, 0.05, set())
        lessons = {i for i in range(12) if chance.random() < 0.85}
        promoted += verdict(noisy(chance, "n", RATES, 0.05, lessons), champion).promoted
    assert promoted >= 45


def test_a_worse_candidate_never_passes():
    chance = random.Random(7)
    worse = {suite: rate / 2 for suite, rate in RATES.items()}
    for _ in range(50):
        champion = noisy(chance, "c", RATES, 0.05, set(range(6)))
        assert not verdict(noisy(chance, "n", worse, 0.05, set(range(10))), champion).promoted


@settings(max_examples=30, deadline=None)
@given(st.sets(st.integers(0, 11)), st.sets(st.integers(0, 61)), st.integers(0, 3))
def test_whatever_a_revision_is_it_does_not_replace_itself(lessons, club, seed):
    one = revision("n", {"lessons": lessons, "club": club})
    assert not verdict(one, one, seed=seed).promoted


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=40), st.integers(0, 5))
def test_the_lower_bound_is_below_the_mean(changes, seed):
    values = np.array(changes)
    assert lower_bound(values, 0.05, seed) <= values.mean() + 1e-9
    assert min(changes) <= lower_bound(values, 0.05, seed)
