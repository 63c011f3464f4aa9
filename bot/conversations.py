"""Conversations: where a question belongs, what it follows, and in what order it is answered.

A private chat, a thread and a forum topic each have one running conversation. In a group the reply
chain is the conversation: a message that replies to nothing of ours begins a new one.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from bot.answering import Answering
from bot.domain import AnswerId, AnswerState, Chat, Fan, Message
from bot.errors import Refusal
from bot.records import Answer
from bot.store import Store
from bot.work import Work, Workload
from config.settings import Settings
from config.texts import text


class Conversations:
    """Puts questions into their conversation and has them answered one after the other."""

    def __init__(
        self, *, store: Store, answering: Answering, settings: Settings, now: Callable[[], datetime]
    ) -> None:
        self._store = store
        self._answering = answering
        self._settings = settings
        self._now = now
        engine = settings.engine
        self.workload = Workload(engine.queue + engine.concurrency, engine.queue_per_fan)

    async def ask(self, work: Work) -> str | None:
        """Answer a question; the one before it in the same conversation goes first.

        Returns what to say where nothing was answered: it was stopped before its turn.
        """
        message = work.message
        question = await self._store.question_of(message)
        if question is None:  # else it was taken before a restart, and is not refused now
            self._check(message)
            self.workload.enqueue(work)
        key = message.chat.key
        if _is_chained(message.chat):
            parent = await self.replied_to(message)
            key = f"conversation:{parent.conversation_id}" if parent else message.key
        async with self.workload.turn(work, key) as its_turn:
            if its_turn:
                if question is None:
                    conversation, follows = await self._place(message)
                    question = await self._store.add_question(
                        conversation, follows, message, message.text
                    )
                await self._answering.answer(work, question)
        return self._unanswered(work)

    async def again(self, work: Work) -> str | None:
        """Answer a question once more: of the answer named, replied to, or the newest."""
        message = work.message
        answer = await self.target(message)
        if not self.may_change(message.fan, message.chat, answer.fan_key):
            raise Refusal("refusal.not_yours")
        self.workload.enqueue(work)
        chained = _is_chained(message.chat)
        key = f"conversation:{answer.conversation_id}" if chained else message.chat.key
        async with self.workload.turn(work, key) as its_turn:
            if its_turn:
                await self._answering.answer(work, answer.question_id)
        return self._unanswered(work)

    async def new(self, chat: Chat) -> None:
        """Begin a new conversation in a chat."""
        await self._store.new_conversation(chat, self._now())

    async def target(self, message: Message) -> Answer:
        """The answer that a command is about: named by id, replied to, or the newest here."""
        answer = None
        if message.command == "outra" and message.text.isdecimal():
            answer = await self._store.answer(AnswerId(int(message.text)))
        answer = answer or await self.replied_to(message)
        asked_by = message.fan.key if _is_chained(message.chat) else None
        answer = answer or await self._store.last_answer(message.chat, asked_by)
        if answer is None or not message.chat.holds(answer.chat_key):
            raise Refusal("refusal.no_answer_yet")
        return answer

    async def replied_to(self, message: Message) -> Answer | None:
        """The answer that a message replies to."""
        if not message.reply_to:
            return None
        answer_id = await self._store.answer_at(message.chat, message.reply_to)
        return await self._store.answer(answer_id) if answer_id is not None else None

    def may_change(self, fan: Fan, chat: Chat, asker: str) -> bool:
        """Whether a fan may stop or repeat an answer: the asker's, and an admin's, to decide."""
        return not chat.is_shared or fan.key == asker or self._settings.is_admin(fan.key)

    def _unanswered(self, work: Work) -> str | None:
        if work.answer_id is None and work.reason is AnswerState.STOPPED:
            return text("answer.stopped", work.message.fan.language)
        return None

    def _check(self, message: Message) -> None:
        most = self._settings.conversation.max_chars
        if not message.text:
            raise Refusal("refusal.attachment" if message.attachments else "refusal.empty")
        if len(message.text) > most:
            raise Refusal("refusal.too_many_chars", most=most)

    async def _place(self, message: Message) -> tuple[int, AnswerId | None]:
        """The conversation that a question belongs to, and the answer it follows."""
        if parent := await self.replied_to(message):
            return parent.conversation_id, parent.id
        if _is_chained(message.chat):
            return await self._store.new_conversation(message.chat, self._now()), None
        idle = timedelta(hours=self._settings.conversation.idle_hours)
        conversation = await self._store.running_conversation(message.chat, self._now(), idle)
        return conversation, await self._store.leaf(conversation)


def _is_chained(chat: Chat) -> bool:
    """Whether replies make the conversation here, not the place."""
    return chat.is_shared and not chat.thread
