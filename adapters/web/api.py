"""The small API of the page: what a fan says and presses goes to the service, events come back."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from typing import Annotated, TypeVar

import structlog
from aiohttp import web
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from adapters.web.rooms import Item, Room, WebTransport
from adapters.web.sessions import BROWSER, Browser
from bot.commands import Argument, find, parse
from bot.domain import FORM, Action, AnswerId, Message, Press, Source, Tap, Toast
from bot.errors import FarenseError, Refusal
from bot.service import ChatService

WRITE_TIMEOUT = 30.0  # seconds in which a tab takes a chunk, else it must connect again

log = structlog.get_logger(__name__)
UpdateId = Annotated[str, StringConstraints(pattern=r"^[\w-]{8,64}$")]


class Body(BaseModel):
    """The JSON of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class _Said(Body):
    text: str
    id: UpdateId


class _Commanded(Body):
    name: str
    id: UpdateId
    text: str = ""


class _Pressed(Body):
    action: Action
    answer_id: int


class _Tapped(Body):
    id: str
    data: str
    text: str | None = None


class _Corrected(Body):
    answer_id: int
    text: str


B = TypeVar("B", bound=Body)


async def body(request: web.Request, kind: type[B]) -> B:
    """The JSON of a request, checked."""
    try:
        return kind.model_validate_json(await request.read())
    except ValidationError:
        raise web.HTTPBadRequest from None


class ChatApi:
    """The handlers under /api."""

    def __init__(self, service: ChatService, rooms: WebTransport) -> None:
        self._service = service
        self._rooms = rooms

    def routes(self) -> list[web.RouteDef]:
        """Where they are."""
        return [
            web.get("/api/history", self._get_history),
            web.get("/api/events", self._get_events),
            web.post("/api/message", self._post_message),
            web.post("/api/command", self._post_command),
            web.post("/api/press", self._post_press),
            web.post("/api/correct", self._post_correct),
            web.post("/api/tap", self._post_tap),
        ]

    async def _get_history(self, request: web.Request) -> web.Response:
        room = await self._rooms.room(request[BROWSER].id)
        return web.json_response(room.view())

    async def _get_events(self, request: web.Request) -> web.StreamResponse:
        room = await self._rooms.room(request[BROWSER].id)
        response = web.StreamResponse(headers={"X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        await response.prepare(request)
        with room.tab() as tab:
            try:
                async for chunk in tab.chunks():
                    async with asyncio.timeout(WRITE_TIMEOUT):
                        await response.write(chunk)
            except (ConnectionError, TimeoutError):
                log.debug("a tab went away")
        return response

    async def _post_message(self, request: web.Request) -> web.Response:
        said = await body(request, _Said)
        command, rest = parse(said.text)
        if command:
            return await self._command(request, command.name, rest, said.id, said.text)
        room = await self._rooms.room(request[BROWSER].id)
        asked = room.asked
        await self._receive(
            request[BROWSER], room, said.id, said.text, shown=said.text, reply_to=asked
        )
        if room.asked == asked:  # now it is answered
            room.asked = None
        return web.json_response({})

    async def _post_command(self, request: web.Request) -> web.Response:
        asked = await body(request, _Commanded)
        command = find(asked.name)
        if command is None or (command.argument is Argument.REQUIRED and not asked.text):
            raise web.HTTPBadRequest
        return await self._command(request, command.name, asked.text, asked.id, asked.text)

    async def _command(
        self, request: web.Request, name: str, argument: str, update: str, shown: str
    ) -> web.Response:
        """Hand a command over; two of them do more on a page than in a chat."""
        browser: Browser = request[BROWSER]
        room = await self._rooms.room(browser.id)
        if name == "corrigir" and not argument:
            newest = await self._service.newest_answer(browser.chat)
            if newest is None or room.of_answer(newest) is None:
                raise Refusal("refusal.no_answer_yet")
            return web.json_response({"shown": False, "correct": newest})
        if name == "novo":
            await self._start_anew(browser, room)
            shown = ""
        await self._receive(browser, room, update, argument, command=name, shown=shown)
        return web.json_response({"shown": bool(shown)})

    async def _start_anew(self, browser: Browser, room: Room) -> None:
        for item in list(room.items.values()):
            if item.running and item.answer is not None:
                await self._service.press(_press(browser, Action.STOP, item.answer))
        room.clear()

    async def _receive(
        self,
        browser: Browser,
        room: Room,
        update: str,
        words: str,
        *,
        shown: str,
        command: str | None = None,
        reply_to: str | None = None,
    ) -> None:
        """Show the fan's words in all tabs and give them to the service."""
        message = Message(
            update_id=f"{browser.id}:{update}",
            chat=browser.chat,
            fan=browser.fan,
            text=words,
            source=Source.WEB,
            received_at=datetime.now(UTC),
            message_id=update,
            reply_to=reply_to,
            command=command,
        )
        is_new = bool(shown) and update not in room.items
        if is_new:
            room.put(Item(update, shown, fan=True))
        try:
            await self._service.receive(message)
        except FarenseError:
            if is_new:
                room.remove(update)
            raise

    async def _post_press(self, request: web.Request) -> web.Response:
        pressed = await body(request, _Pressed)
        browser: Browser = request[BROWSER]
        room = await self._rooms.room(browser.id)
        item = room.of_answer(pressed.answer_id)
        if item is None or pressed.action in (Action.FIX, Action.CLEAR):
            raise Refusal("refusal.answer_gone")
        # A second tap on the same thumb takes the vote back.
        action = Action.CLEAR if pressed.action is item.vote else pressed.action
        cleared = item.vote if action is Action.CLEAR else None
        press = _press(browser, action, AnswerId(pressed.answer_id), cleared)
        toast = await self._service.press(press)
        if toast.done and pressed.action in (Action.UP, Action.DOWN):
            item.vote = None if action is Action.CLEAR else action
            room.put(item)
        return _told(toast)

    async def _post_correct(self, request: web.Request) -> web.Response:
        corrected = await body(request, _Corrected)
        browser: Browser = request[BROWSER]
        press = _press(browser, Action.FIX, AnswerId(corrected.answer_id))
        return _told(await self._service.correct(press, corrected.text))

    async def _post_tap(self, request: web.Request) -> web.Response:
        """A choice under a notice; one that opens a form comes with what was typed into it."""
        tapped = await body(request, _Tapped)
        browser: Browser = request[BROWSER]
        room = await self._rooms.room(browser.id)
        item = room.items.get(tapped.id)
        if item is None or not item.offers(tapped.data):
            raise Refusal("refusal.choice_gone")
        if tapped.data.startswith(FORM) != (tapped.text is not None):
            raise web.HTTPBadRequest
        update = f"{browser.id}:{uuid.uuid4()}"
        tap = Tap(tapped.data, browser.fan, browser.chat, Source.WEB, update, item.id)
        if tapped.text is None:
            outcome = await self._service.tap(tap)
        else:
            outcome = await self._service.fill(tap, tapped.text)
        if outcome.post:
            room.show(item.id, outcome.post)
        return web.json_response({"toast": outcome.toast})


def _told(toast: Toast) -> web.Response:
    return web.json_response({"toast": toast.text, "done": toast.done})


def _press(
    browser: Browser, action: Action, answer: AnswerId, cleared: Action | None = None
) -> Press:
    return Press(
        action,
        answer,
        browser.fan,
        browser.chat,
        Source.WEB,
        f"{browser.id}:{uuid.uuid4()}",
        cleared=cleared,
    )
