"""The chat service: what happens between a fan's message and the answer under it.

One entry for everything that a fan sends, `receive`: the message is durable before it returns,
and is worked on in a task of its own. Buttons come through `press`, typed corrections through
`correct`; both answer with a short sentence (a toast) at once.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Self

import structlog

from bot.answering import Answering
from bot.commands import COMMANDS
from bot.conversations import Conversations
from bot.delivery import Delivery
from bot.domain import (
    Action,
    AnswerId,
    AnswerState,
    Asked,
    Chat,
    Destination,
    Fan,
    Message,
    Outcome,
    Platform,
    Post,
    Press,
    Tap,
    Toast,
    Wanted,
)
from bot.errors import DeliveryFailed, EngineDead, FarenseError, Refusal, StoreError, explain
from bot.feedback import Feedback
from bot.ports import Engine, Nights, Transport
from bot.prompts import Persona
from bot.records import Exchange
from bot.replies import Replies
from bot.store import Store
from bot.teaching import Teaching
from bot.text import clean
from bot.work import Work
from config.settings import Settings
from config.texts import text

log = structlog.get_logger(__name__)

QUOTED = 1000  # characters of a message replied to that the model is shown
GRACE = 2.5  # seconds that a shutdown gives running answers to end by themselves
FLUSH = 1.0  # seconds in which the interrupted ones say so
RETRY = 300.0  # seconds after which an answer that could not be delivered is tried once more


def utc_now() -> datetime:
    """The time, as the store keeps it."""
    return datetime.now(UTC)


class ChatService:
    """Conversations of all platforms, on one engine and one store."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        settings: Settings,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._now = now
        self._persona = Persona.load(settings.conversation.persona)
        self._deliveries: dict[Platform, Delivery] = {}
        answering = Answering(
            engine=engine,
            store=store,
            settings=settings,
            persona=self._persona,
            deliveries=self._deliveries,
            now=now,
        )
        self._conversations = Conversations(
            store=store, answering=answering, settings=settings, now=now
        )
        self._workload = self._conversations.workload
        self._feedback = Feedback(store, settings, now)
        self._teaching = Teaching(store, settings, now, self._ask_for)
        self._replies = Replies(engine, store, settings, self._teaching)
        self._commands = {
            "perguntar": self._ask,
            "novo": self._new,
            "parar": self._stop,
            "outra": self._again,
            "corrigir": self._correct,
        }
        self._tasks: set[asyncio.Task[object]] = set()
        self._closing = False

    def attach(self, transport: Transport) -> None:
        """Make a platform's transport known; before the service is entered."""
        self._deliveries[transport.platform] = Delivery(transport, self._store)

    def use(self, nights: Nights) -> None:
        """Let admins steer the nights."""
        self._replies.nights = nights

    async def __aenter__(self) -> Self:
        await self._store.remember_persona(self._persona.version, self._persona.text)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let answers end, then interrupt them: those are written anew after the next start.

        The platforms must still be up, so that fans are told; what arrives now is only stored.
        """
        self._closing = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE)
        self._workload.stop(lambda _: True, AnswerState.INTERRUPTED)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=FLUSH)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(delivery.close() for delivery in self._deliveries.values()))

    async def resume(self, platform: Platform) -> None:
        """Answer what a platform's fans sent before the last stop; call it when connected."""
        for message in await self._store.pending():
            if message.chat.platform is platform:
                self._start(message)

    async def receive(self, message: Message) -> None:
        """Take a message or command. Returns when it is safely stored; the answer comes later.

        The same update again does nothing.
        """
        quoted = clean(message.quoted or "")[:QUOTED] or None
        message = replace(message, text=clean(message.text), quoted=quoted)
        if await self._store.accept(message):
            self._start(message)

    async def press(self, press: Press) -> Toast:
        """Act on a button or a reaction; returns the toast in the fan's language.

        FIX makes the service ask for the correction by a guided reply (`Post.ask`): platforms
        with forms of their own open the form instead and call `correct`.
        """
        try:
            match press.action:
                case Action.STOP:
                    return Toast(await self._press_stop(press))
                case Action.AGAIN:
                    return Toast(await self._press_again(press))
                case Action.FIX:
                    return Toast(await self._press_fix(press))
                case _:
                    return await self._vote(press)
        except FarenseError as error:
            return self._refused(press, error)

    async def correct(self, press: Press, correction: str) -> Toast:
        """Store a fan's correction of an answer; returns the toast."""
        try:
            toast = await self._feedback.correct(press, correction)
            self._post_soon(press, await self._teaching.after_correction(press, correction))
        except FarenseError as error:
            return self._refused(press, error)
        return toast

    async def tap(self, tap: Tap) -> Outcome:
        """Act on a choice under a card; returns the toast, and what the card becomes.

        A form is asked for by a guided reply: platforms with forms of their own call `fill`.
        """
        try:
            return await self._teaching.tap(tap)
        except FarenseError as error:
            return Outcome(self._refused(tap, error).text)

    async def fill(self, tap: Tap, typed: str) -> Outcome:
        """Take what was typed into the form of a choice; returns what `tap` does."""
        try:
            return await self._teaching.fill(tap, typed)
        except FarenseError as error:
            return Outcome(self._refused(tap, error).text)

    async def announce(self, to: Destination, post: Post) -> str | None:
        """Show something that no message asked for; the id of it, None where it is not known."""
        try:
            return await self._deliveries[to.chat.platform].post(to, post)
        except (DeliveryFailed, KeyError):  # given up, or the platform is not configured
            return None

    async def revise(self, to: Destination, message_id: str, post: Post) -> bool:
        """Change what was announced; False when it could not be."""
        delivery = self._deliveries.get(to.chat.platform)
        return delivery is not None and await delivery.edit(to, message_id, post)

    def _refused(self, press: Press | Tap, error: FarenseError) -> Toast:
        if not error.for_fans:
            log.warning("press failed", press=type(press).__name__, error=str(error))
        return Toast(explain(error, press.fan.language), done=False)

    async def answer_at(self, chat: Chat, message_id: str) -> AnswerId | None:
        """Which answer a message of ours shows: for reactions."""
        return await self._store.answer_at(chat, message_id)

    async def newest_answer(self, chat: Chat) -> AnswerId | None:
        """The newest answer in a chat: what `/corrigir` without a reply means."""
        answer = await self._store.last_answer(chat)
        return answer.id if answer else None

    async def transcript(self, chat: Chat, fan: Fan, limit: int = 50) -> list[Exchange]:
        """The running conversation of a chat, oldest first, with the fan's own votes."""
        return await self._store.exchanges(chat, fan.key, limit)

    # One message

    def _start(self, message: Message) -> None:
        if self._closing or message in self._workload:
            return
        self._spawn(self._work(message), message.key)

    def _spawn(self, coroutine: Coroutine[Any, Any, object], name: str) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, message: Message) -> None:
        """Do what a message asks, tell the fan how it ended, and take it out of the inbox.

        What was interrupted or could not be delivered stays there: it is done later.
        """
        with self._workload.take(message) as work:
            try:
                if not self._workload.floods(work):
                    await self._do(work)
                if work.reason is not AnswerState.INTERRUPTED:
                    await self._store.done(message)
            except EngineDead:
                pass
            except DeliveryFailed:
                asyncio.get_running_loop().call_later(RETRY, self._start, message)
            except StoreError as error:
                log.warning("message kept for later", update=message.key, error=str(error))

    async def _do(self, work: Work) -> None:
        message = work.message
        try:
            await self._store.remember_fan(message.fan, self._now())
            reply = await self._dispatch(work)
        except (EngineDead, DeliveryFailed):
            raise
        except FarenseError as error:
            if not error.for_fans:
                log.warning("message failed", update=message.key, error=str(error))
            reply = explain(error, message.fan.language)
        except Exception:
            log.exception("message failed", update=message.key)  # other chats go on
            reply = text("error.unexpected", message.fan.language)
        work.in_queue = False
        if reply and work.reason is not AnswerState.INTERRUPTED:
            post = reply if isinstance(reply, Post) else Post(reply, private=True)
            post = replace(post, nonce=message.key)
            await self._show(work.to, post)

    async def _dispatch(self, work: Work) -> str | Post | None:
        """Run a command or answer a question; returns a short reply, or None when all is said."""
        message = work.message
        command = next((one for one in COMMANDS if one.name == message.command), None)
        if command and command.admin:
            if not self._settings.is_admin(message.fan.key):
                raise Refusal("refusal.admins_only")
            if not message.chat.is_shared:  # where a night's result is told
                chat = json.dumps(dataclasses.asdict(message.chat))
                await self._store.set_setting("admin_chat", chat)
        name = command.name if command else "perguntar"
        if few_words := self._replies.handlers.get(name):
            return await few_words(message)
        return await self._commands[name](work)

    # Commands

    async def _ask(self, work: Work) -> str | Post | None:
        message = work.message
        if message.reply_to and not message.command:
            asked = await self._store.asked_for(message.chat, message.reply_to)
            if asked is not None:
                return await self._take(message, asked)
        return await self._conversations.ask(work)

    async def _take(self, message: Message, asked: Asked) -> str | Post:
        """Take a reply to what a guided message of ours asked for."""
        match asked.what:
            case Wanted.CORRECTION:
                answer_id = AnswerId(int(asked.about))
                return await self._correct_by(_press(message, answer_id), message.text)
            case Wanted.LESSON:
                return await self._teaching.teach(message)
            case Wanted.CHOICE:
                fan, chat = message.fan, message.chat
                tap = Tap(asked.about, fan, chat, message.source, message.update_id)
                outcome = await self._teaching.fill(tap, message.text)
                return outcome.post or Post(outcome.toast, private=True)

    async def _correct_by(self, press: Press, correction: str) -> str | Post:
        """Keep a correction that came as a message: the thanks, or the card that asks more."""
        toast = await self._feedback.correct(press, correction)
        card = await self._teaching.after_correction(press, correction)
        if card is None or not card.choices:
            return toast.text
        return replace(card, text=f"{toast.text}\n\n{card.text}")

    async def _new(self, work: Work) -> str:
        await self._conversations.new(work.message.chat)
        return text("reply.new", work.message.fan.language)

    async def _stop(self, work: Work) -> str:
        fan, chat = work.message.fan, work.message.chat

        def is_theirs(other: Work) -> bool:
            asked = other.message
            may = self._conversations.may_change(fan, chat, asked.fan.key)
            return asked.chat.key == chat.key and may

        stopped = self._workload.stop(is_theirs, AnswerState.STOPPED, before=work)
        return text("reply.stopped" if stopped else "reply.nothing_to_stop", fan.language)

    async def _again(self, work: Work) -> str | None:
        return await self._conversations.again(work)

    async def _correct(self, work: Work) -> str | Post | None:
        message = work.message
        press = _press(message, (await self._conversations.target(message)).id)
        if message.text:
            return await self._correct_by(press, message.text)
        await self._ask_correction(press, work.to)
        return None

    # Buttons

    async def _show(self, to: Destination, post: Post) -> None:
        """Show a notice; what it asks for is noted, so that a reply to it is understood."""
        message_id = await self._deliveries[to.chat.platform].post(to, post)
        if post.ask and message_id is not None:
            await self._store.ask_for(to.chat, message_id, post.ask)

    async def _ask_correction(self, press: Press, to: Destination) -> None:
        asked = Asked(Wanted.CORRECTION, str(press.answer_id))
        said = text("reply.ask_correction", press.fan.language)
        await self._show(to, Post(said, private=True, ask=asked))

    async def _ask_for(self, tap: Tap, post: Post) -> None:
        """Ask for what a form would ask."""
        await self._show(Destination(tap.chat, handle=tap.handle), post)

    async def _vote(self, press: Press) -> Toast:
        toast = await self._feedback.vote(press)
        if press.action is not Action.CLEAR:
            self._post_soon(press, await self._teaching.after_vote(press))
        return toast

    def _post_soon(self, press: Press, post: Post | None) -> None:
        """Show a card after the toast, which must not wait for it."""
        if post is not None and not self._closing:
            to = Destination(press.chat, handle=press.handle)
            self._spawn(self.announce(to, post), f"card:{press.update_id}")

    async def _press_fix(self, press: Press) -> str:
        await self._feedback.find(press)
        await self._ask_correction(press, Destination(press.chat, handle=press.handle))
        return text("toast.ask_correction", press.fan.language)

    async def _press_stop(self, press: Press) -> str:
        await self._find_own(press)
        stopped = self._workload.stop(
            lambda work: work.answer_id == press.answer_id, AnswerState.STOPPED
        )
        return text("reply.stopped" if stopped else "reply.nothing_to_stop", press.fan.language)

    async def _press_again(self, press: Press) -> str:
        await self._find_own(press)
        message = Message(
            update_id=press.update_id,
            chat=press.chat,
            fan=press.fan,
            text=str(press.answer_id),
            source=press.source,
            received_at=self._now(),
            command="outra",
            handle=press.handle,
        )
        await self.receive(message)
        return text("toast.again", press.fan.language)

    async def _find_own(self, press: Press) -> None:
        answer = await self._feedback.find(press)
        if not self._conversations.may_change(press.fan, press.chat, answer.fan_key):
            raise Refusal("refusal.not_yours")


def _press(message: Message, answer_id: AnswerId) -> Press:
    """A message that corrects an answer, as the press of ✏️ that it stands for."""
    return Press(
        action=Action.FIX,
        answer_id=answer_id,
        fan=message.fan,
        chat=message.chat,
        source=message.source,
        update_id=message.update_id,
        handle=message.handle,
        via="message",
    )
