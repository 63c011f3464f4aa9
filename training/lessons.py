"""Which lessons train: those an admin approved, and those that trusted fans agree on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime

from training import personal
from training.facts import Fact, may_contradict
from training.rows import LessonRow, Limits, Reason
from training.similar import normal, same_answer
from training.trust import DAY, Trust

Excluded = dict[str, Reason]


def key(lesson: LessonRow) -> str:
    """What a lesson asks, in the form in which it is compared: history and question."""
    return " | ".join(normal(turn.text) for turn in lesson.asked)


def choose(
    lessons: Iterable[LessonRow],
    facts: Sequence[Fact],
    trust: Trust,
    *,
    now: datetime,
    limits: Limits,
) -> tuple[list[LessonRow], Excluded]:
    """The lessons that may train, the better checked and newer first, and why the others not."""
    groups: dict[str, list[LessonRow]] = defaultdict(list)
    for lesson in lessons:
        groups[key(lesson)].append(lesson)
    excluded: Excluded = {}
    chosen = []
    for group in groups.values():
        for lesson in group:
            reason = _reason(lesson, group, facts, trust, limits)
            if reason:
                excluded[lesson.name] = reason
            else:
                chosen.append(lesson)
    in_time, late = _by_night(chosen, trust, now, limits)
    excluded.update({lesson.name: Reason.WAITS for lesson in late})
    in_time.sort(key=lambda lesson: (lesson.is_checked, lesson.created_at, lesson.id), reverse=True)
    return in_time, excluded


def _reason(
    lesson: LessonRow,
    group: Sequence[LessonRow],
    facts: Sequence[Fact],
    trust: Trust,
    limits: Limits,
) -> Reason | None:
    if not personal.remove(lesson.question) or not personal.remove(lesson.answer):
        return Reason.PERSONAL
    if lesson.is_checked:
        return None
    if trust.is_new(lesson.fan):
        return Reason.NEW
    if lesson.state == "pending" and (reason := _disagreement(lesson, group, trust, limits)):
        return reason
    if any(may_contradict(fact, lesson.question, lesson.answer) for fact in facts):
        return Reason.CONTRADICTS
    return None


def _disagreement(
    lesson: LessonRow, group: Sequence[LessonRow], trust: Trust, limits: Limits
) -> Reason | None:
    trusted = [other for other in group if trust.is_trusted(other.fan)]
    same = [other for other in trusted if same_answer(other.answer, lesson.answer)]
    if lesson not in same or len({other.fan for other in same}) < limits.agree:
        return Reason.PENDING
    return Reason.DISPUTED if len(same) < len(trusted) else None


def _by_night(
    lessons: Iterable[LessonRow], trust: Trust, now: datetime, limits: Limits
) -> tuple[list[LessonRow], list[LessonRow]]:
    """The lessons that entered on a night until now, and those that wait for a later one.

    Nights are the spans of 24 hours that end now. A fan's lessons enter in the order in which they
    were given, `per_night` in each night, so that nothing approved is lost.
    """
    queues: dict[str, list[LessonRow]] = defaultdict(list)
    for lesson in sorted(lessons, key=lambda one: (one.created_at, one.id)):
        queues[lesson.fan].append(lesson)
    in_time: list[LessonRow] = []
    late: list[LessonRow] = []
    for fan, queue in queues.items():
        night, room = None, limits.per_night
        for lesson in queue:
            given = min(0, -((now - lesson.created_at) // DAY))  # 0 is the night now
            if night is None or given > night:
                night, room = given, limits.per_night
            elif not room:
                night, room = night + 1, limits.per_night
            room -= 1
            (in_time if night <= 0 or trust.is_admin(fan) else late).append(lesson)
    return in_time, late
