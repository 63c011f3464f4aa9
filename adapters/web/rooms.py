"""What each browser sees: its room, the items in it, and the open tabs that follow it.

The room is the whole state of a page. A tab is told which items changed and reads them when it
writes: however slow it is, it holds at most one entry an item and then gets the newest text.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from adapters.web.markdown import render
from bot.domain import (
    CARET,
    Action,
    AnswerId,
    AnswerState,
    Buttons,
    Choice,
    Destination,
    Platform,
    Post,
)
from bot.ports import Pace
from bot.records import Exchange

HEARTBEAT = 15.0  # seconds; proxies close streams that stay silent longer
ITEMS = 150  # kept in a room; older ones fall out
TABS = 12  # open at once in one browser; the oldest is closed
ROOMS = 300  # kept although nobody looks; they can be made again from the store

_VOTES = {1: Action.UP, -1: Action.DOWN}


@dataclass(slots=True)
class Item:
    """One message in a room. Only the bot's are Markdown; a fan's are shown letter by letter."""

    id: str
    text: str
    fan: bool = False
    buttons: Buttons | None = None
    choices: tuple[Choice, ...] = ()
    vote: Action | None = None
    _html: str | None = None

    @property
    def answer(self) -> AnswerId | None:
        """The answer that it shows."""
        return self.buttons.answer_id if self.buttons else None

    @property
    def running(self) -> bool:
        """Whether it is still being written."""
        return bool(self.buttons and self.buttons.running)

    def show(self, post: Post) -> None:
        """Take over a newer text and what is under it."""
        self.text, self.buttons, self.choices = post.text, post.buttons, post.choices
        self._html = None

    def offers(self, data: str) -> bool:
        """Whether it has this choice under it."""
        return any(choice.data == data for choice in self.choices)

    def view(self) -> dict[str, object]:
        """What the page gets."""
        if self.fan:
            return {"id": self.id, "fan": True, "text": self.text}
        if self._html is None:
            self._html = render(self.text.removesuffix(CARET))  # the page has a caret of its own
        return {
            "id": self.id,
            "fan": False,
            "html": self._html,
            "text": "" if self.running else self.text,
            "answer": self.answer,
            "buttons": self.buttons.actions if self.buttons else (),
            "choices": [{"label": each.label, "data": each.data} for each in self.choices],
            "final": not self.running,
            "vote": self.vote,
        }


class Tab:
    """One open page: what it still has to be sent."""

    def __init__(self) -> None:
        self._pending: dict[str, tuple[str, Callable[[], object]]] = {}
        self._wake = asyncio.Event()
        self._closed = False

    def put(self, key: str, event: str, read: Callable[[], object]) -> None:
        """Mark something as changed; `read` is called when it is written."""
        self._pending[key] = event, read
        self._wake.set()

    def close(self) -> None:
        """End the stream; the page connects again by itself."""
        self._closed = True
        self._wake.set()

    async def chunks(self, heartbeat: float = HEARTBEAT) -> AsyncIterator[bytes]:
        """The event stream, until closed."""
        yield b"retry: 1500\n\n"
        while not self._closed:
            try:
                async with asyncio.timeout(heartbeat):
                    await self._wake.wait()
            except TimeoutError:
                yield b":\n\n"
                continue
            self._wake.clear()
            while self._pending:
                event, read = self._pending.pop(next(iter(self._pending)))
                yield f"event: {event}\ndata: {json.dumps(read())}\n\n".encode()


class Room:
    """One browser's conversation."""

    def __init__(self, history: Sequence[Exchange] = ()) -> None:
        self.items: dict[str, Item] = {}
        self.asked: str | None = None  # the guided reply that waits for the fan's next words
        self._gone: set[str] = set()
        self._tabs: list[Tab] = []
        for exchange in history:
            for item in _items(exchange):
                self.items[item.id] = item

    @property
    def idle(self) -> bool:
        """Whether nobody looks and nothing is written: it may be forgotten."""
        return not self._tabs and not any(item.running for item in self.items.values())

    def view(self) -> list[dict[str, object]]:
        """All items, oldest first."""
        return [item.view() for item in self.items.values()]

    def of_answer(self, answer: int) -> Item | None:
        """The item that shows an answer."""
        return next((item for item in self.items.values() if item.answer == answer), None)

    def put(self, item: Item) -> None:
        """Add or replace an item."""
        self.items[item.id] = item
        while len(self.items) > ITEMS:
            self.items.pop(next(iter(self.items)))
        self._tell(item.id, "item", item.view)

    def show(self, message_id: str, post: Post) -> None:
        """Show a post of the bot under this id, or in the item that already has its answer."""
        if message_id in self._gone:
            return
        item = self.items.get(message_id)
        if item is None and post.buttons:
            item = self.of_answer(post.buttons.answer_id)
        item = item or Item(message_id, "")
        if post.ask:
            self.asked = item.id
        item.show(post)
        self.put(item)

    def remove(self, item_id: str) -> None:
        """Take an item away."""
        if self.items.pop(item_id, None):
            self._sync()

    def clear(self) -> None:
        """Start with an empty page; what is still being written does not come back."""
        self._gone = {item.id for item in self.items.values() if item.running}
        self.items.clear()
        self._sync()

    def typing(self) -> None:
        """Show that the bot is at work."""
        self._tell("typing", "typing", lambda: True)

    @contextmanager
    def tab(self) -> Iterator[Tab]:
        """A new tab; it begins with everything there is."""
        tab = Tab()
        while len(self._tabs) >= TABS:
            self._tabs.pop(0).close()
        self._tabs.append(tab)
        tab.put("sync", "sync", self.view)
        try:
            yield tab
        finally:
            if tab in self._tabs:
                self._tabs.remove(tab)

    def close(self) -> None:
        """End the streams of all tabs."""
        for tab in self._tabs:
            tab.close()

    def _sync(self) -> None:
        self._tell("sync", "sync", self.view)

    def _tell(self, key: str, event: str, read: Callable[[], object]) -> None:
        for tab in self._tabs:
            tab.put(key, event, read)


def _items(exchange: Exchange) -> Iterator[Item]:
    yield Item(f"q{exchange.question_id}", exchange.question, fan=True)
    answer = exchange.answer
    if answer and (answer.text or answer.state is AnswerState.RUNNING):
        buttons = Buttons(answer.id, running=answer.state is AnswerState.RUNNING)
        vote = _VOTES.get(exchange.vote)
        yield Item(f"a{answer.id}", answer.text, buttons=buttons, vote=vote)


class WebTransport:
    """The rooms of all browsers, and the way that the core shows things in them."""

    platform = Platform.WEB
    pace = Pace(private=0.05, group=0.05, typing=4, idempotent_sends=True)

    def __init__(self, load: Callable[[str], Awaitable[Sequence[Exchange]]]) -> None:
        self._load = load
        self._rooms: OrderedDict[str, Room] = OrderedDict()

    async def room(self, session: str) -> Room:
        """The room of a browser, made from the store when it is not there."""
        if session not in self._rooms:
            room = Room(await self._load(session))
            self._forget()
            self._rooms.setdefault(session, room)  # another task may have been quicker
        self._rooms.move_to_end(session)
        return self._rooms[session]

    def end_streams(self) -> None:
        """Let all pages go; they connect again by themselves."""
        for room in self._rooms.values():
            room.close()

    def split(self, text: str) -> list[str]:
        """One message holds any text."""
        return [text]

    async def send(self, to: Destination, post: Post) -> str:
        """Show a new message; a nonce already shown is not shown twice."""
        message_id = post.nonce or secrets.token_hex(8)
        (await self.room(to.chat.id)).show(message_id, post)
        return message_id

    async def edit(self, to: Destination, message_id: str, post: Post) -> None:
        """Replace the text and buttons of a message."""
        (await self.room(to.chat.id)).show(message_id, post)

    async def typing(self, to: Destination) -> None:
        """Show the dots."""
        (await self.room(to.chat.id)).typing()

    def _forget(self) -> None:
        """Make place for one more: the rooms that were not used for longest go."""
        idle = [session for session, room in self._rooms.items() if room.idle]
        for session in idle[: max(0, len(self._rooms) - ROOMS + 1)]:
            del self._rooms[session]
