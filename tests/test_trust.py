"""Whose word weighs what, and who is quarantined."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.domain import Role, Turn
from training.dataset import FanRow, LessonRow, Limits, Reason, VoteRow
from training.trust import Trust, floods, latest, verdicts

NOW = datetime(2026, 3, 1, 3, 30, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=100)
LIMITS = Limits()


def vote(answer, fan, value, *, hours=30.0):
    asked = (Turn(Role.USER, f"Pergunta {answer}"),)
    when = NOW - timedelta(hours=hours)
    return VoteRow(answer, fan, value, asked, f"Resposta {answer}", "base", when)


def lesson(number, fan, *, hours=30.0):
    when = NOW - timedelta(hours=hours)
    return LessonRow(number, "taught", fan, f"P{number}", "R", (), "pending", False, when)


def fans(*rows):
    return {row.fan: row for row in rows}


def trust_in(*rows, votes=()):
    return Trust(fans(*rows), votes, NOW, LIMITS)


def test_a_new_or_unknown_account_weighs_nothing_and_an_admin_weighs_most():
    trust = trust_in(
        FanRow("new", NOW - timedelta(days=6), approved=50),
        FanRow("old", NOW - timedelta(days=7)),
        FanRow("boss", NOW, admin=True),
    )
    assert [trust.weight(fan) for fan in ("new", "nobody", "old", "boss")] == [0, 0, 0.5, 1]


def test_trust_comes_from_the_decisions_of_admins():
    trust = trust_in(
        FanRow("good", LONG_AGO, approved=2),
        FanRow("once", LONG_AGO, approved=1),
        FanRow("bad", LONG_AGO, approved=2, rejected=5),
    )
    assert trust.weight("bad") < 0.5 < trust.weight("once") < trust.weight("good")
    assert [trust.is_trusted(fan) for fan in ("good", "once", "bad")] == [True, False, False]


@given(st.integers(3, 200))
def test_voting_with_the_majority_helps_a_little_but_makes_nobody_a_teacher(answers):
    votes = [vote(n, fan, 1) for n in range(answers) for fan in ("a", "b", "c")]
    votes += [vote(n, "odd", -1) for n in range(answers)]
    trust = trust_in(*(FanRow(fan, LONG_AGO) for fan in ("a", "b", "c", "odd")), votes=votes)
    assert trust.weight("odd") < 0.5 < trust.weight("a") < LIMITS.trusted


def test_only_the_last_vote_of_a_fan_on_an_answer_counts():
    votes = [vote(1, "a", 1, hours=3), vote(1, "a", -1, hours=2), vote(1, "b", 1)]
    assert [(one.fan, one.value) for one in latest(votes)] == [("a", -1), ("b", 1)]


@pytest.mark.parametrize(
    ("votes", "liked", "reason"),
    [
        ([("good", 1), ("old", -1)], True, None),
        ([("good", 1), ("old", -1), ("older", -1)], False, None),
        ([("old", 1), ("older", -1)], None, Reason.TIE),
        ([("new", 1), ("nobody", 1)], None, Reason.WEIGHTLESS),
        ([("old", -1), ("new", 1), ("nobody", 1)], False, None),
    ],
)
def test_votes_on_an_answer_are_counted_by_trust(votes, liked, reason):
    trust = trust_in(
        FanRow("good", LONG_AGO, approved=5),
        FanRow("old", LONG_AGO),
        FanRow("older", LONG_AGO),
        FanRow("new", NOW),
    )
    found, without = verdicts([vote(1, fan, value) for fan, value in votes], trust)
    assert [one.liked for one in found] == ([] if liked is None else [liked])
    assert without == ({"answer:1": reason} if reason else {})


def test_a_flood_is_found_by_its_speed_and_not_by_its_sum():
    known = fans(FanRow("fast", LONG_AGO), FanRow("slow", LONG_AGO))
    lessons = [lesson(n, "fast", hours=n) for n in range(21)]
    lessons += [lesson(100 + n, "slow", hours=6 * n) for n in range(60)]
    votes = [vote(1, "fast", 1), vote(1, "slow", 1)]
    (found,) = floods(lessons, votes, known, LIMITS)
    assert (found.fan, found.lessons, found.votes) == ("fast", tuple(range(21)), 1)


def test_a_flood_of_votes_is_one_too():
    votes = [vote(n, "a", 1) for n in range(51)] + [vote(n, "b", 1) for n in range(50)]
    assert [found.fan for found in floods([], votes, fans(), LIMITS)] == ["a"]


def test_an_admin_floods_nothing_and_releases_what_was_looked_at():
    lessons = [lesson(n, "boss") for n in range(40)] + [lesson(50 + n, "ok") for n in range(40)]
    seen = FanRow("ok", LONG_AGO, released=NOW - timedelta(hours=30))
    assert not floods(lessons, [], fans(FanRow("boss", LONG_AGO, admin=True), seen), LIMITS)
    again = [lesson(100 + n, "ok", hours=1) for n in range(21)]
    assert [one.fan for one in floods(lessons[40:] + again, [], fans(seen), LIMITS)] == ["ok"]
