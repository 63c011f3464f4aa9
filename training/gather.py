"""From the store to a dataset: what fans gave until now, with what the project knows."""

from __future__ import annotations

import asyncio
from datetime import datetime

from bot.learning import Lesson, LessonState, RatedAnswer, Standing
from bot.store import Store
from config.settings import Settings
from training import dataset, suites
from training.facts import load_facts, load_replay
from training.rows import FanRow, LessonRow, Limits, VoteRow


async def gather(store: Store, settings: Settings, now: datetime) -> dataset.Dataset:
    """The dataset of a night that begins now."""
    lessons = [_lesson(one, settings) for one in await store.lessons()]
    votes = [_vote(one) for one in await store.rated_answers()]
    fans = [_fan(one, settings) for one in await store.standings()]
    return await asyncio.to_thread(_build, lessons, votes, fans, settings, now)


def _build(
    lessons: list[LessonRow],
    votes: list[VoteRow],
    fans: list[FanRow],
    settings: Settings,
    now: datetime,
) -> dataset.Dataset:
    return dataset.build(
        lessons,
        votes,
        fans,
        facts=load_facts(),
        replay=load_replay(),
        evaluation=suites.asked(suites.load()),
        now=now,
        settings=Limits(new_days=settings.learning.new_account_days),
    )


def _lesson(lesson: Lesson, settings: Settings) -> LessonRow:
    by_admin = lesson.decided_by is not None and settings.is_admin(lesson.decided_by)
    approved = lesson.state is LessonState.APPROVED
    return LessonRow(
        id=lesson.id,
        kind="taught" if lesson.kind == "taught" else "correction",
        fan=lesson.fan_key,
        question=lesson.question,
        answer=lesson.answer,
        turns=lesson.turns,
        state="approved" if approved else "pending",
        approved_by_admin=approved and by_admin,
        created_at=lesson.created_at,
    )


def _vote(rated: RatedAnswer) -> VoteRow:
    return VoteRow(
        answer_id=rated.answer_id,
        fan=rated.fan_key,
        value=1 if rated.value > 0 else -1,
        turns=rated.turns,
        answer=rated.answer,
        revision=rated.revision,
        created_at=rated.created_at,
    )


def _fan(standing: Standing, settings: Settings) -> FanRow:
    return FanRow(
        fan=standing.fan_key,
        first_seen=standing.first_seen,
        approved=standing.approved,
        rejected=standing.rejected,
        admin=settings.is_admin(standing.fan_key),
        released=standing.released,
    )
