"""What fans teach: their consent, their lessons, and an admin's word on each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from bot.domain import (
    FORM,
    AnswerId,
    Asked,
    Choice,
    Fan,
    Message,
    Outcome,
    Post,
    Press,
    Source,
    Tap,
    Wanted,
)
from bot.errors import Refusal
from bot.learning import Flood, Lesson, LessonKind, LessonState
from bot.rules import RULES, Grant, Need, teachable
from bot.store import Store
from bot.text import clean
from config.settings import Settings
from config.texts import text

YES_CONSENT, YES_AND_TELL, NO_CONSENT = "cy", "ct", "cn"
YES_LESSON, NO_LESSON = "ly", "ln"
APPROVE, REJECT, EDIT = "ra", "rr", f"{FORM}re"
RELEASE, REJECT_ALL = "fl", "fr"
SHOWN, SHOWN_CHARS = 3, 200  # of a flood: questions on its card, and how much of each

Ask = Callable[[Tap, Post], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Draft:
    """What a fan teaches, before it is kept, and with what it came."""

    kind: LessonKind
    origin: Message | Press
    question: str
    answer: str
    answer_id: AnswerId | None = None


class Teaching:
    """Writes lessons and consents into the store, and makes the cards that ask for them."""

    def __init__(
        self, store: Store, settings: Settings, now: Callable[[], datetime], ask: Ask
    ) -> None:
        self._store = store
        self._settings = settings
        self._now = now
        self._ask = ask
        learning = settings.learning
        self.grant = Grant(learning.discord_votes, learning.discord_permission)

    # Votes and consent

    async def after_vote(self, press: Press) -> Post | None:
        """Let a vote train if its fan agreed; the first time, the card that asks."""
        fan = press.fan
        consent = await self._store.consent(fan.key)
        if consent is not None and consent.holds:
            await self._store.mark_vote(press.answer_id, fan.key, self.grant)
            return None
        if consent is not None or RULES[press.source].texts is Need.NEVER:
            return None
        await self._consent(fan, None, press.source)
        return _consent_card(fan.language)

    async def learn(self, message: Message) -> Post:
        """`/aprender`: say yes or no, choose whether to be told, or see how things stand."""
        fan, word = message.fan, message.text.casefold().strip()
        if word in {"sim", "yes"}:
            await self._consent(fan, given=True, source=message.source)
            return Post(text("learn.yes", fan.language), private=True)
        if word in {"não", "nao", "no"}:
            await self._consent(fan, given=False, source=message.source)
            return Post(text("learn.no", fan.language), private=True)
        if word in {"avisos", "notify"}:
            tell = not await self._store.tells(fan.key)
            await self._store.set_tell(fan.key, tell=tell)
            return Post(text("learn.tell" if tell else "learn.quiet", fan.language), private=True)
        consent = await self._store.consent(fan.key)
        state = "on" if consent is not None and consent.holds else "off"
        card = _consent_card(fan.language)
        return Post(
            text(f"learn.is_{state}", fan.language) + "\n\n" + card.text,
            choices=card.choices,
            private=True,
        )

    async def _consent(self, fan: Fan, given: bool | None, source: Source) -> None:
        await self._store.set_consent(
            fan, given=given, source=source, grant=self.grant, now=self._now()
        )

    # Lessons

    async def teach(self, message: Message) -> Post:
        """`/ensinar`: keep a question with its answer; without them, say how."""
        fan = message.fan
        if not teachable(message.source):
            raise Refusal("refusal.teach_elsewhere")
        question, answer = split_lesson(message.text)
        if not question or not answer:
            return Post(text("teach.how", fan.language), private=True, ask=Asked(Wanted.LESSON))
        return await self._keep(Draft(LessonKind.TAUGHT, message, question, answer))

    async def after_correction(self, press: Press, correction: str) -> Post | None:
        """Make a lesson of a correction, where the rules let both texts be learnt from."""
        answer = await self._store.answer(press.answer_id)
        if answer is None:
            return None
        question = await self._store.question(answer.question_id)
        own = question.fan_key == press.fan.key and not question.quoted
        if not own or not teachable(press.source, question.source):
            return None
        return await self._keep(
            Draft(LessonKind.CORRECTION, press, question.text, clean(correction), answer.id)
        )

    async def _keep(self, draft: Draft) -> Post:
        """Keep a lesson, and thank for it or ask for the fan's own yes."""
        fan, source = draft.origin.fan, draft.origin.source
        self._check(draft.question, draft.answer)
        consent = await self._store.consent(fan.key)
        asks = RULES[source].texts is Need.CONFIRMED or consent is None or not consent.holds
        lesson = await self._store.add_lesson(
            draft.kind,
            fan,
            draft.origin.chat,
            source=source,
            question=draft.question,
            answer=draft.answer,
            answer_id=draft.answer_id,
            state=LessonState.WAITING if asks else LessonState.PENDING,
            now=self._now(),
        )
        if lesson.state is not LessonState.WAITING:
            return Post(await self._kept(lesson, fan), private=True)
        choices = (
            Choice(text("choice.yes", fan.language), f"{YES_LESSON}:{lesson.id}"),
            Choice(text("choice.no", fan.language), f"{NO_LESSON}:{lesson.id}"),
        )
        words = {"question": draft.question, "answer": draft.answer}
        card = text("lesson.confirm", fan.language, **words)
        return Post(card, choices=choices, private=True)

    def _check(self, *texts: str) -> None:
        most = self._settings.conversation.max_chars
        if any(len(one) > most for one in texts):
            raise Refusal("refusal.too_many_chars", most=most)

    async def _kept(self, lesson: Lesson, fan: Fan) -> str:
        """Thank for a lesson; an admin's own needs no second look."""
        if self._settings.is_admin(fan.key):
            await self._decide(lesson.id, LessonState.APPROVED, fan)
            return text("lesson.approved", fan.language)
        return text("lesson.kept", fan.language)

    # Taps

    async def tap(self, tap: Tap) -> Outcome:
        """Act on a choice of one of our cards."""
        action, _, number = tap.data.partition(":")
        language = tap.fan.language
        if action in {YES_CONSENT, YES_AND_TELL, NO_CONSENT}:
            return await self._tap_consent(tap, action)
        lesson = await self._store.lesson(int(number)) if number.isdecimal() else None
        if lesson is None:
            raise Refusal("refusal.choice_gone")
        if action in {YES_LESSON, NO_LESSON}:
            return await self._tap_lesson(tap, lesson, wanted=action == YES_LESSON)
        self._admins_only(tap.fan)
        if action == EDIT:
            asked = Asked(Wanted.CHOICE, tap.data)
            await self._ask(tap, Post(text("review.edit", language), private=True, ask=asked))
            return Outcome(text("review.edit_toast", language))
        if action in {RELEASE, REJECT_ALL}:
            return await self._tap_flood(tap, lesson, release=action == RELEASE)
        if action not in {APPROVE, REJECT}:
            raise Refusal("refusal.choice_gone")
        state = LessonState.APPROVED if action == APPROVE else LessonState.REJECTED
        done = await self._decide(lesson.id, state, tap.fan)
        said = f"review.{state}" if done else "review.was_decided"
        return Outcome(text(said, language), await self.review(tap.fan))

    async def fill(self, tap: Tap, typed: str) -> Outcome:
        """Take what was typed into the form of a choice."""
        action, _, number = tap.data.partition(":")
        self._admins_only(tap.fan)
        answer = clean(typed)
        if action != EDIT or not number.isdecimal():
            raise Refusal("refusal.choice_gone")
        if not answer:
            raise Refusal("refusal.empty_correction")
        self._check(answer)
        done = await self._decide(int(number), LessonState.APPROVED, tap.fan, answer)
        said = "review.approved" if done else "review.was_decided"
        return Outcome(text(said, tap.fan.language), await self.review(tap.fan))

    async def _tap_consent(self, tap: Tap, action: str) -> Outcome:
        language = tap.fan.language
        given = action != NO_CONSENT
        await self._consent(tap.fan, given=given, source=tap.source)
        if given:
            await self._store.set_tell(tap.fan.key, tell=action == YES_AND_TELL)
        said = text("learn.yes" if given else "learn.no", language)
        return Outcome(text("learn.noted", language), Post(said, private=True))

    async def _tap_lesson(self, tap: Tap, lesson: Lesson, *, wanted: bool) -> Outcome:
        language = tap.fan.language
        if lesson.fan_key != tap.fan.key:
            raise Refusal("refusal.not_yours")
        if wanted:
            consent = await self._store.consent(tap.fan.key)
            if consent is None or not consent.holds:
                await self._consent(tap.fan, given=True, source=tap.source)
        changed = await self._store.confirm_lesson(lesson.id, wanted=wanted)
        if not wanted:
            return Outcome(text("lesson.dropped", language), Post(text("lesson.dropped", language)))
        said = await self._kept(lesson, tap.fan) if changed else text("lesson.kept", language)
        return Outcome(text("lesson.thanks", language), Post(said, private=True))

    async def _tap_flood(self, tap: Tap, lesson: Lesson, *, release: bool) -> Outcome:
        if release:
            done, said = await self._store.release(lesson.id, self._now()), "review.released"
        else:
            done = await self._store.reject_flood(lesson.id, tap.fan.key, self._now())
            said = "review.rejected_all"
        toast = text(said if done else "review.was_decided", tap.fan.language, n=done)
        return Outcome(toast, await self.review(tap.fan))

    # Review

    async def review(self, admin: Fan) -> Post:
        """The card of a fan in quarantine, else of the oldest lesson that waits for an admin."""
        flood = await self._store.next_flood(SHOWN)
        if flood is not None:
            return _flood_card(flood, admin.language)
        lesson, waiting = await self._store.next_lesson()
        language = admin.language
        if lesson is None:
            return Post(text("review.none", language), private=True)
        before = await self._store.answer(lesson.answer_id) if lesson.answer_id else None
        card = text(
            f"review.{lesson.kind}",
            language,
            n=waiting,
            question=lesson.question,
            answer=lesson.answer,
            before=before.text if before else "",
        )
        choices = tuple(
            Choice(text(f"choice.{name}", language), f"{data}:{lesson.id}")
            for name, data in (("approve", APPROVE), ("reject", REJECT), ("edit", EDIT))
        )
        return Post(card, choices=choices, private=True)

    async def _decide(
        self, lesson_id: int, state: LessonState, admin: Fan, answer: str | None = None
    ) -> bool:
        return await self._store.decide_lesson(lesson_id, state, admin.key, self._now(), answer)

    def _admins_only(self, fan: Fan) -> None:
        if not self._settings.is_admin(fan.key):
            raise Refusal("refusal.admins_only")


def _consent_card(language: str) -> Post:
    choices = tuple(
        Choice(text(f"choice.{name}", language), data)
        for name, data in (
            ("learn_yes", YES_CONSENT),
            ("learn_tell", YES_AND_TELL),
            ("learn_no", NO_CONSENT),
        )
    )
    return Post(text("learn.ask", language), choices=choices, private=True)


def _flood_card(flood: Flood, language: str) -> Post:
    questions = "\n".join(f"- {_shortened(lesson.question)}" for lesson in flood.first)
    choices = tuple(
        Choice(text(f"choice.{name}", language), f"{data}:{flood.id}")
        for name, data in (("release", RELEASE), ("reject_all", REJECT_ALL))
    )
    card = text("review.flood", language, n=flood.count, questions=questions)
    return Post(card, choices=choices, private=True)


def _shortened(question: str) -> str:
    line = " ".join(question.split())
    return line if len(line) <= SHOWN_CHARS else line[: SHOWN_CHARS - 1].rstrip() + "…"


def split_lesson(typed: str) -> tuple[str, str]:
    """Question and answer: parted by a line break, else after the first question mark."""
    typed = clean(typed)
    question, parted, answer = typed.partition("\n")
    if not parted:
        question, parted, answer = typed.partition("?")
        question += parted
    return question.strip(), answer.strip()
