"""How answers and notices get into chats.

Previews are coalesced to the newest text and may be dropped, finals never are. A `Transport` shows,
a `Ledger` remembers which message shows which piece of an answer, so that an answer interrupted by
a crash is finished on the messages that it began. Knows no platform.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import structlog

from bot.arbiter import Arbiter, Job, Limits
from bot.domain import AnswerId, Buttons, Chat, Destination, Post
from bot.errors import DeliveryFailed, DeliveryUnknown, FarenseError, MessageGone, NotModified
from bot.ports import Transport

_SURPLUS = Post("…")  # what is left of a message when the final needs fewer than were shown

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LedgerPiece:
    """One message of an answer; `message_id` is None when its send was begun, not confirmed."""

    piece: int
    message_id: str | None


class Ledger(Protocol):
    """What was sent, remembered across restarts."""

    async def pieces(self, answer_id: AnswerId) -> Sequence[LedgerPiece]:
        """The messages of an answer."""
        ...

    async def record(
        self, answer_id: AnswerId, piece: int, chat: Chat, message_id: str | None
    ) -> None:
        """Note that a piece is about to be sent (None) or was sent as this message."""
        ...


class Delivery:
    """The arbiters of all chats of one platform; `async with` owns their tasks.

    The exit waits a little for finals and notices and drops previews.
    """

    def __init__(self, transport: Transport, ledger: Ledger, limits: Limits | None = None) -> None:
        self._transport, self._ledger = transport, ledger
        self._limits = limits or Limits()
        self._chats: dict[str, tuple[Arbiter, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Show finals and notices for a little longer, then give up what is left."""
        self._open = False
        for arbiter, _ in self._chats.values():
            arbiter.hasten_end()
        tasks = [task for _, task in self._chats.values()]
        try:
            if tasks:
                await asyncio.wait(tasks, timeout=self._limits.drain)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def open(self, to: Destination, answer_id: AnswerId) -> Stream:
        """Begin to show an answer; shows the typing sign until there is text."""
        arbiter = self._arbiter(to.chat)
        stream = Stream(arbiter, to, answer_id, self._ledger)
        arbiter.begin(stream)
        return stream

    async def post(self, to: Destination, post: Post) -> str | None:
        """Show a notice, split where it is long; the id of its last message, None if unknown.

        Raises DeliveryFailed when it was given up although the chat is still there.
        """
        return await _Notice(self._arbiter(to.chat), to, post).delivered()

    async def edit(self, to: Destination, message_id: str, post: Post) -> bool:
        """Change a notice of ours; False when it is no longer there or could not be changed."""
        return await _Change(self._arbiter(to.chat), to, message_id, post).delivered()

    def _arbiter(self, chat: Chat) -> Arbiter:
        if not self._open:
            raise RuntimeError("delivery is closed")
        if known := self._chats.get(chat.key):
            return known[0]
        arbiter = Arbiter(self._transport, chat, self._limits, self._spawn)
        self._chats[chat.key] = arbiter, self._spawn(self._run(arbiter))
        return arbiter

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, arbiter: Arbiter) -> None:
        try:
            await arbiter.run()
        except Exception:  # noqa: BLE001 (the chat's next message gets a new arbiter)
            _log.exception("delivery.arbiter_broke", chat=arbiter.chat.key)
        finally:
            del self._chats[arbiter.chat.key]
            arbiter.close()


class _Notice(Job):
    """A post of its own: a notice or the reply to a command."""

    def __init__(self, arbiter: Arbiter, to: Destination, post: Post) -> None:
        super().__init__(arbiter, to)
        texts = self._transport.split(post.text) or [post.text]
        nonces = [post.nonce and f"{post.nonce}.{piece}" for piece in range(len(texts))]
        first = [
            replace(post, text=text, nonce=nonce, buttons=None, ask=None)
            for text, nonce in zip(texts[:-1], nonces, strict=False)
        ]
        self._posts = [*first, replace(post, text=texts[-1], nonce=nonces[-1])]
        self._message_id: str | None = None
        self._gone = False

    async def delivered(self) -> str | None:
        """Wait for the end; the id of the last message."""
        self._arbiter.hurry(self)
        if not await asyncio.shield(self._result) and not self._gone:
            raise DeliveryFailed
        return self._message_id

    async def _advance(self) -> None:
        post = self._posts[0]
        try:
            self._message_id = await self._arbiter.call(self._transport.send(self.to, post))
        except MessageGone as error:
            self._gone, self._message_id = True, None
            self._give_up(error)
            return
        except DeliveryUnknown:
            if post.nonce and self._repeatable:
                raise
            self._message_id = None
        del self._posts[0]
        if not self._posts:
            self.settle(delivered=True)


class _Change(Job):
    """Another text for a notice that is in the chat."""

    def __init__(self, arbiter: Arbiter, to: Destination, message_id: str, post: Post) -> None:
        super().__init__(arbiter, to)
        self._message_id, self._post = message_id, post

    async def delivered(self) -> bool:
        """Wait for the end; whether the text stands in the chat."""
        self._arbiter.hurry(self)
        return await asyncio.shield(self._result)

    async def _advance(self) -> None:
        try:
            await self._arbiter.call(self._transport.edit(self.to, self._message_id, self._post))
        except MessageGone as error:
            self._give_up(error)
        except NotModified:
            self.settle(delivered=True)
        else:
            self.settle(delivered=True)


@dataclass(slots=True)
class _Shown:
    """One message of an answer; no id: sent perhaps, and final; no post: its text is not known."""

    id: str | None
    post: Post | None


class Stream(Job):
    """One answer on its way into a chat: previews while it is written, then the final text.

    `gone` is set when the chat cannot be reached any more: nobody will read the answer.
    """

    urgent = False

    def __init__(
        self, arbiter: Arbiter, to: Destination, answer_id: AnswerId, ledger: Ledger
    ) -> None:
        super().__init__(arbiter, to)
        self._ledger = ledger
        self.gone = asyncio.Event()
        self._answer_id = answer_id
        self._text: str | None = None
        self._last_buttons: Buttons | None = Buttons(answer_id, running=True)
        self._posts: list[Post] = []
        self._previews = True
        self._loaded = False
        self._shown: dict[int, _Shown] = {}
        self._doubtful: set[int] = set()  # pieces whose send may have been made already
        self._renewed: set[int] = set()  # pieces whose message was deleted once

    def preview(self, text: str) -> None:
        """Show this soon, unless something newer comes first; never waits."""
        if self._previews:
            self._show(text)

    async def finish(self, text: str, *, buttons: bool = True) -> bool:
        """Show the final text and wait until it is there; False when it could not be shown.

        Cancelling the wait does not cancel the delivery.
        """
        if not self.urgent and not self._result.done():
            self.urgent, self._previews = True, False
            self._last_buttons = Buttons(self._answer_id) if buttons else None
            self._tries, self.not_before = 0, 0.0
            self._show(text)
            self._arbiter.remove(self)
            self._arbiter.hurry(self)
        return await asyncio.shield(self._result)

    async def abandon(self) -> None:
        """Show nothing more; without effect once `finish` was called."""
        if not self.urgent:
            self.settle(delivered=False)

    @property
    def has_preview(self) -> bool:
        """Whether there is a text to show before the final one."""
        return self._previews and self._text is not None

    @property
    def shows_nothing(self) -> bool:
        """Whether the fan still waits for the first text."""
        return not self._shown

    def _show(self, text: str) -> None:
        if self._text is None:
            self._arbiter.wake()
        self._text = text
        self._posts = []

    def _failed(self, error: Exception) -> None:
        if not self.urgent:
            self._text = None  # the next preview is newer anyway
        super()._failed(error)

    async def _advance(self) -> None:
        if not self._loaded:
            await self._load()
        if move := self._move():
            await self._make(*move)
        if self._move() is None and not self._result.done():
            self._text = None
            if self.urgent:
                self.settle(delivered=True)

    def _move(self) -> tuple[int, Post] | None:
        """The first piece that is not shown as it should be."""
        if self._text is None:
            return None
        if not self._posts and (texts := self._transport.split(self._text)):
            self._posts = [*map(Post, texts[:-1]), Post(texts[-1], self._last_buttons)]
        for piece, post in enumerate(self._posts):
            shown = self._shown.get(piece)
            if shown is None or (shown.id and shown.post != post):
                return piece, post
        if self.urgent:
            for piece, shown in self._shown.items():
                if piece >= len(self._posts) and shown.id and shown.post != _SURPLUS:
                    return piece, _SURPLUS
        return None

    async def _make(self, piece: int, post: Post) -> None:
        shown = self._shown.get(piece)
        if shown is None or shown.id is None:
            await self._send(piece, post)
        else:
            await self._edit(piece, post, shown, shown.id)

    async def _send(self, piece: int, post: Post) -> None:
        final = self.urgent  # it may become so during the call
        to = replace(self.to, reply_to=None) if piece else self.to
        nonce = f"{self._answer_id}.{piece}.{int(piece in self._renewed)}"
        await self._record(piece, None)
        try:
            message_id = await self._arbiter.call(
                self._transport.send(to, replace(post, nonce=nonce))
            )
        except MessageGone as error:
            self.gone.set()
            self._give_up(error)
        except DeliveryUnknown:
            if self._repeatable:
                self._doubtful.add(piece)
                raise
            if final:
                self._shown[piece] = _Shown(None, post)
            self._previews = False
        else:
            # A repeated send may have found the message of the first one, with its older text.
            self._shown[piece] = _Shown(message_id, None if piece in self._doubtful else post)
            await self._record(piece, message_id)

    async def _edit(self, piece: int, post: Post, shown: _Shown, message_id: str) -> None:
        try:
            await self._arbiter.call(self._transport.edit(self.to, message_id, post))
        except NotModified:
            shown.post = post
        except MessageGone:
            self._previews = False
            del self._shown[piece]
            if piece in self._renewed:  # deleted twice: it is not wanted
                self._shown[piece] = _Shown(None, post)
            self._renewed.add(piece)
        except DeliveryUnknown:
            shown.post = None
            raise
        else:
            shown.post = post

    async def _load(self) -> None:
        """Take up the messages that an earlier run of the bot has sent."""
        try:
            async with asyncio.timeout(self._arbiter.limits.call):
                pieces = await self._ledger.pieces(self._answer_id)
        except (FarenseError, TimeoutError) as error:
            _log.warning("delivery.ledger", error=type(error).__name__)
            pieces = []
        self._shown = {p.piece: _Shown(p.message_id, None) for p in pieces if p.message_id}
        self._loaded = True

    async def _record(self, piece: int, message_id: str | None) -> None:
        try:
            async with asyncio.timeout(self._arbiter.limits.call):
                await self._ledger.record(self._answer_id, piece, self._arbiter.chat, message_id)
        except (FarenseError, TimeoutError) as error:  # the fan is answered all the same
            _log.warning("delivery.ledger", error=type(error).__name__)
