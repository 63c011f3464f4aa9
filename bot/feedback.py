"""Feedback: votes and corrections, from buttons, reactions and commands."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from bot.domain import Action, Press, Toast
from bot.errors import Refusal
from bot.store import Answer, Store
from bot.text import clean
from config.settings import Settings
from config.texts import text

_VALUES = {Action.UP: 1, Action.DOWN: -1, Action.CLEAR: 0}
_TOASTS = {Action.UP: "toast.up", Action.DOWN: "toast.down", Action.CLEAR: "toast.cleared"}


class Feedback:
    """Writes what fans think of answers into the store."""

    def __init__(self, store: Store, settings: Settings, now: Callable[[], datetime]) -> None:
        self._store = store
        self._settings = settings
        self._now = now

    async def find(self, press: Press) -> Answer:
        """The answer under a button; refused when it is not one of this chat."""
        answer = await self._store.answer(press.answer_id)
        if answer is None or not press.chat.holds(answer.chat_key):
            raise Refusal("refusal.answer_gone")
        return answer

    async def vote(self, press: Press) -> Toast:
        """Count a vote, one a fan and answer, the newest counts; returns the toast."""
        await self.find(press)
        changed = await self._store.vote(
            press.answer_id,
            press.fan,
            _VALUES[press.action],
            source=press.source,
            via=press.via,
            now=self._now(),
            only=_VALUES[press.cleared] if press.cleared else None,
        )
        said = changed or press.action is Action.CLEAR
        return Toast(text(_TOASTS[press.action] if said else "toast.same", press.fan.language))

    async def correct(self, press: Press, correction: str) -> Toast:
        """Keep what the answer should have been; returns the thanks."""
        await self.find(press)
        correction = clean(correction)
        if not correction:
            raise Refusal("refusal.empty_correction")
        if len(correction) > self._settings.conversation.max_chars:
            raise Refusal("refusal.too_many_chars", most=self._settings.conversation.max_chars)
        await self._store.add_correction(
            press.answer_id, press.fan, correction, source=press.source, now=self._now()
        )
        return Toast(text("toast.corrected", press.fan.language))
