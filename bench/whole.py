"""The whole bot but for its platforms: service, store and a transport that only remembers."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from bench.streams import Stream, note_usage
from bot.domain import Chat, Destination, Fan, Message, Platform, Post, Source, Turn
from bot.ports import Engine, Pace
from bot.service import ChatService
from bot.store import Store
from bot.text import split
from config.settings import EngineSettings, Settings, load_settings
from farense_bot import logs

PIECE = 2000  # characters of one message

_updates = itertools.count(1)


class Board:
    """A transport without a platform: tells who waits that a chat has text, and its final one."""

    platform = Platform.WEB
    # No pause between edits: every preview that the service makes is shown, which costs most.
    pace = Pace(private=0.0, group=0.0, typing=100.0)

    def __init__(self) -> None:
        self.watched: dict[str, Stream] = {}
        self.finals: dict[str, asyncio.Future[str]] = {}
        self._ids = itertools.count(1)

    def split(self, text: str) -> list[str]:
        """Cut as for Discord."""
        return split(text, PIECE, len)

    async def send(self, to: Destination, post: Post) -> str:
        """Take a message."""
        self._note(to, post)
        return f"m{next(self._ids)}"

    async def edit(self, to: Destination, message_id: str, post: Post) -> None:  # noqa: ARG002 (the port's)
        """Take an edit."""
        self._note(to, post)

    async def typing(self, to: Destination) -> None:
        """Show nothing."""

    def _note(self, to: Destination, post: Post) -> None:
        stream = self.watched.get(to.chat.key)
        if stream is not None:
            stream.times.append(time.monotonic())
        final = self.finals.get(to.chat.key)
        if final and not final.done() and not (post.buttons and post.buttons.running):
            final.set_result(post.text)


class WholeBot:
    """Fans of a running service, each in a chat of their own."""

    name = "ours, whole bot"

    def __init__(self, service: ChatService, store: Store, board: Board) -> None:
        self._service = service
        self._store = store
        self._board = board

    @classmethod
    @asynccontextmanager
    async def on(cls, engine: Engine, max_tokens: int) -> AsyncIterator[Self]:
        """The bot on an engine that runs already, greedy, with an empty store."""
        with tempfile.TemporaryDirectory() as folder:
            settings = load_settings(
                Path(folder),
                engine=EngineSettings(max_tokens=max_tokens, temperature=0, repetition_penalty=1),
            )
            async with cls.of(engine, settings) as bot:
                yield bot

    @classmethod
    @asynccontextmanager
    async def of(cls, engine: Engine, settings: Settings) -> AsyncIterator[Self]:
        """The bot with these settings."""
        logs.configure(settings)
        async with Store.open(settings.database) as store:
            service, board = ChatService(engine, store, settings), Board()
            service.attach(board)
            async with service:
                yield cls(service, store, board)

    async def ask(self, turns: Sequence[Turn], max_tokens: int) -> Stream:  # noqa: ARG002 (a setting here)
        """Ask the last turn's question as a new fan; `turns` begin with the persona anyway."""
        fan = f"fan-{next(_updates)}"
        stream = await self.say(fan, turns[-1].text)
        answer = await self._store.last_answer(Chat(Platform.WEB, fan))
        if answer is None or answer.usage is None:
            raise RuntimeError(f"not answered: {stream.text}")
        stream.text = answer.text  # as the model wrote it, without a remark below it
        note_usage(stream, answer.usage)
        return stream

    async def say(self, fan: str, text: str) -> Stream:
        """Send a message and wait for the final text of its answer."""
        message = a_message(fan, text)
        stream = self._board.watched[message.chat.key] = Stream(time.monotonic())
        final = asyncio.get_running_loop().create_future()
        self._board.finals[message.chat.key] = final
        try:
            await self._service.receive(message)
            stream.text = await final
        finally:
            del self._board.watched[message.chat.key], self._board.finals[message.chat.key]
        return stream


def a_message(fan: str, text: str) -> Message:
    """A message of a fan in a private chat."""
    return Message(
        update_id=f"bench-{next(_updates)}",
        chat=Chat(Platform.WEB, fan),
        fan=Fan(Platform.WEB, fan, fan),
        text=text,
        source=Source.WEB,
        received_at=datetime.now(UTC),
    )
