"""How much a fan's word weighs: agreement with admins and with other fans, age, and floods."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from training.rows import FanRow, Fans, LessonRow, Limits, Quarantine, Reason, VoteRow

DAY = timedelta(days=1)
_MAJORITY = 3  # voters that an answer needs for a majority to mean something
_VOTES = 10  # votes that count as much as one decision of an admin, which is all they ever do


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the fans made of one answer; `fans` are those who said so."""

    vote: VoteRow
    liked: bool
    fans: tuple[str, ...]


def latest(votes: Iterable[VoteRow]) -> list[VoteRow]:
    """One vote a fan and answer, the last one; sorted by answer and fan."""
    last: dict[tuple[int, str], VoteRow] = {}
    for vote in sorted(
        votes, key=lambda v: (v.created_at, v.value, v.revision, v.answer, repr(v.turns))
    ):
        last[vote.answer_id, vote.fan] = vote
    return [last[key] for key in sorted(last)]


def floods(
    lessons: Iterable[LessonRow], votes: Iterable[VoteRow], fans: Fans, limits: Limits
) -> list[Quarantine]:
    """The fans with more rows in 24 hours than anybody writes by hand."""
    taught: dict[str, list[LessonRow]] = defaultdict(list)
    voted: dict[str, list[VoteRow]] = defaultdict(list)
    for lesson in lessons:
        taught[lesson.fan].append(lesson)
    for vote in votes:
        voted[vote.fan].append(vote)
    found = []
    for fan in sorted(taught.keys() | voted.keys()):
        known = fans.get(fan)
        if known and known.admin:
            continue
        since = known.released if known else None
        if _is_flood([row.created_at for row in taught[fan]], limits.flood_lessons, since) or (
            _is_flood([row.created_at for row in voted[fan]], limits.flood_votes, since)
        ):
            ids = tuple(sorted(row.id for row in taught[fan]))
            last = max((row.created_at for row in voted[fan]), default=None)
            found.append(Quarantine(fan, ids, len(voted[fan]), last))
    return found


def _is_flood(times: Sequence[datetime], most: int, since: datetime | None) -> bool:
    late = sorted(time for time in times if since is None or time > since)
    return any(last - first < DAY for first, last in zip(late, late[most:], strict=False))


class Trust:
    """What each fan's word weighs now, from 0 to 1."""

    def __init__(self, fans: Fans, votes: Sequence[VoteRow], now: datetime, limits: Limits) -> None:
        self._fans = fans
        self._now = now
        self._limits = limits
        self._agreements = _agreements(votes)

    def is_new(self, fan: str) -> bool:
        """Whether an account is too young, or unknown."""
        known = self._fans.get(fan)
        if known is None:
            return True
        age = self._now - known.first_seen
        return not known.admin and age < timedelta(days=self._limits.new_days)

    def is_trusted(self, fan: str) -> bool:
        """Whether this fan counts among those whose agreement replaces an admin."""
        return self.weight(fan) >= self._limits.trusted

    def is_admin(self, fan: str) -> bool:
        """Whether no limit holds for this fan."""
        known = self._fans.get(fan)
        return known is not None and known.admin

    def weight(self, fan: str) -> float:
        """0 for new accounts, 1 for admins, else the posterior mean of "is right", from 1/2 on.

        Each decision of an admin counts as one observation. All votes together count as one at
        most: voting with the majority is cheap and makes nobody a teacher.
        """
        if self.is_new(fan):
            return 0.0
        known = self._fans[fan]
        return 1.0 if known.admin else self._posterior(known)

    def _posterior(self, known: FanRow) -> float:
        agreed, disagreed = self._agreements.get(known.fan, (0, 0))
        scale = max(_VOTES, agreed + disagreed)
        right = 1 + known.approved + agreed / scale
        wrong = 1 + known.rejected + disagreed / scale
        return right / (right + wrong)


def _agreements(votes: Sequence[VoteRow]) -> dict[str, tuple[int, int]]:
    """How often each fan voted like most of the others, and how often not."""
    by_answer: dict[int, list[VoteRow]] = defaultdict(list)
    for vote in votes:
        by_answer[vote.answer_id].append(vote)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for those in by_answer.values():
        if len(those) < _MAJORITY:
            continue
        total = sum(vote.value for vote in those)
        for vote in those:
            others = total - vote.value
            if others:
                counts[vote.fan][0 if others * vote.value > 0 else 1] += 1
    return {fan: (agreed, disagreed) for fan, (agreed, disagreed) in counts.items()}


def verdicts(votes: Sequence[VoteRow], trust: Trust) -> tuple[list[Verdict], dict[str, Reason]]:
    """The majority on each answer, by trust; and the answers without one, with the reason."""
    by_answer: dict[int, list[VoteRow]] = defaultdict(list)
    for vote in votes:
        by_answer[vote.answer_id].append(vote)
    found: list[Verdict] = []
    without: dict[str, Reason] = {}
    for answer in sorted(by_answer):
        those = [vote for vote in by_answer[answer] if trust.weight(vote.fan) > 0]
        total = math.fsum(trust.weight(vote.fan) * vote.value for vote in those)
        if total:
            side = [vote for vote in those if vote.value * total > 0]
            found.append(Verdict(side[0], total > 0, tuple(vote.fan for vote in side)))
        else:
            name = by_answer[answer][0].name
            without[name] = Reason.TIE if those else Reason.WEIGHTLESS
    return found, without
