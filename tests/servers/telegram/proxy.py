"""A loopback Bot API: `telegram-test-api` from npm, and before it what that server leaves out.

The proxy keeps updates until an offset confirms them, holds long polls open, lets one poller
end the other, checks the token, fixes dates and bot users, refuses edits of what is gone or the
same, and plays the faults that a test asks for. Everything else is the server's.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from tests.servers.need import need

HERE = Path(__file__).parent
TOKEN = "4242:loopback-Token_0123456789abcdef"
BOT = {"id": 4242, "is_bot": True, "first_name": "Leão", "username": "LeaoBot"}

DATE = 1_790_000_000

Fault = Callable[[web.Request], Any]


def refuse(code: int, description: str, **parameters: Any) -> Fault:
    """Answer with an error of the Bot API."""

    async def answer(_request: web.Request) -> web.Response:
        body = {"ok": False, "error_code": code, "description": description}
        if parameters:
            body["parameters"] = parameters
        return web.json_response(body, status=code)

    return answer


async def cut(request: web.Request) -> web.Response:
    """Close the connection without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hang(_request: web.Request) -> web.Response:
    """Never answer."""
    await asyncio.Event().wait()
    return web.Response()


@dataclass
class Call:
    """One call of the Bot API, with what it was asked and what it gave."""

    method: str
    data: dict[str, Any]
    result: Any = None


@dataclass
class Loopback:
    """The server, as a test sees it."""

    url: str = ""
    token: str = TOKEN
    calls: list[Call] = field(default_factory=list)
    faults: defaultdict[str, deque[Fault]] = field(default_factory=lambda: defaultdict(deque))
    confirmed: int = 0  # the highest update that was confirmed
    shown: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    _backend: str = ""
    _session: aiohttp.ClientSession | None = None
    _pending: list[dict[str, Any]] = field(default_factory=list)
    _menus: dict[str, list[Any]] = field(default_factory=dict)
    _poller: asyncio.Future[None] | None = None
    _changes: int = 0
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    # --- what fans do ----------------------------------------------------------------------

    async def say(self, text: str, *, fan: int = 1, chat: int | None = None, **more: Any) -> None:
        """A fan writes; `more` are fields of the message."""
        message = {
            "botToken": self.token,
            "date": DATE,
            "from": fan_json(fan),
            "chat": chat_json(fan, chat),
            "text": text,
            **more,
        }
        await self._post("/sendMessage", message)

    async def tap(self, data: str, message: dict[str, Any], *, fan: int = 1) -> None:
        """A fan taps a button under a message of the bot."""
        query = {
            "botToken": self.token, "from": fan_json(fan), "message": message, "data": data,
        }  # fmt: skip
        await self._post("/sendCallback", query)

    async def react(
        self, message_id: int, old: str = "", new: str = "", *, fan: int = 1, chat: int = 1
    ) -> None:
        """A fan changes a reaction; it travels inside a message, as the server knows none."""
        change = {"chat": chat_json(fan, chat), "message_id": message_id, "date": DATE}
        change |= {"user": fan_json(fan)}
        for name, emoji in (("old_reaction", old), ("new_reaction", new)):
            change[name] = [{"type": "emoji", "emoji": emoji}] if emoji else []
        body = {"botToken": self.token, "chat": chat_json(fan, chat), "message_reaction": change}
        await self._post("/sendMessage", body)

    async def _post(self, path: str, body: dict[str, Any]) -> None:
        assert self._session is not None
        async with self._session.post(self._backend + path, json=body) as response:
            assert (await response.json())["ok"]
        await self._tell()

    # --- what a test waits for ---------------------------------------------------------------

    async def until(self, condition: Callable[[], bool], patience: float = 20) -> None:
        """Wait for a call that makes a condition true."""
        async with asyncio.timeout(patience), self._changed:
            await self._changed.wait_for(condition)

    async def called(self, method: str, count: int = 1) -> Call:
        """Wait for the nth call of a method and return it."""
        await self.until(lambda: len(self.of(method)) >= count)
        return self.of(method)[count - 1]

    def of(self, method: str) -> list[Call]:
        """All calls of a method that were answered."""
        return [call for call in self.calls if call.method == method]

    async def _tell(self) -> None:
        async with self._changed:
            self._changes += 1
            self._changed.notify_all()

    # --- the Bot API -----------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """One call of the bot."""
        method = request.match_info["method"]
        data = {key: _loads(value) for key, value in (await request.post()).items()}
        if request.match_info["token"] != self.token:
            return await refuse(401, "Unauthorized")(request)
        if faults := self.faults[method]:
            response = await faults.popleft()(request)
        else:
            own = getattr(self, f"_{method}", None)
            result = await (own(data) if own else self._forward(request, method, data))
            self.calls.append(Call(method, data, result))
            response = result if isinstance(result, web.Response) else _ok(result)
        await self._tell()
        return response

    async def _forward(self, request: web.Request, method: str, data: dict[str, Any]) -> Any:
        assert self._session is not None
        body = {key: json.dumps(v) if not isinstance(v, str) else v for key, v in data.items()}
        async with self._session.post(f"{self._backend}{request.path}", data=body) as response:
            answer = await response.json()
        if response.status != 200:
            return web.json_response(
                {"ok": False, "error_code": 404, "description": f"{method}: {answer}"}, status=404
            )
        result = answer["result"]
        if method == "sendMessage":
            self.shown[str(data["chat_id"]), result["message_id"]] = data
            result = _message(data, result["message_id"])
        return True if result is None else result

    async def _getMe(self, _data: dict[str, Any]) -> Any:  # noqa: N802 (Telegram's name)
        return BOT

    async def _sendChatAction(self, _data: dict[str, Any]) -> Any:  # noqa: N802
        return True

    async def _sendMessageDraft(self, _data: dict[str, Any]) -> Any:  # noqa: N802
        return True

    async def _getMyCommands(self, data: dict[str, Any]) -> Any:  # noqa: N802
        return self._menus.get(_menu(data), [])

    async def _setMyCommands(self, data: dict[str, Any]) -> Any:  # noqa: N802
        self._menus[_menu(data)] = data["commands"]
        return True

    async def _editMessageText(self, data: dict[str, Any]) -> Any:  # noqa: N802
        key = str(data["chat_id"]), int(data["message_id"])
        shown = self.shown.get(key)
        if shown is None:
            return _bad("Bad Request: message to edit not found")
        same = [shown.get(name) == data.get(name) for name in ("text", "entities", "reply_markup")]
        if all(same):
            return _bad("Bad Request: message is not modified")
        self.shown[key] = data
        assert self._session is not None
        url = f"{self._backend}/bot{self.token}/editMessageText"
        body = {name: json.dumps(v) if not isinstance(v, str) else v for name, v in data.items()}
        async with self._session.post(url, data=body) as response:
            assert (await response.json())["ok"]
        return _message(data, key[1])

    async def _getUpdates(self, data: dict[str, Any]) -> Any:  # noqa: N802
        offset = int(data.get("offset", 0))
        self.confirmed = max(self.confirmed, offset - 1)
        self._pending = [each for each in self._pending if each["update_id"] >= offset]
        if self._poller and not self._poller.done():
            self._poller.set_result(None)
        me = self._poller = asyncio.get_running_loop().create_future()
        await self._tell()
        seen = self._changes
        found = await self._fetch()  # also by a poll that does not wait
        with suppress(TimeoutError):
            async with asyncio.timeout(float(data.get("timeout", 0))):
                while not (me.done() or found):
                    seen = await self._next_change(seen)
                    found = await asyncio.shield(self._fetch())
        if me.done():
            return web.json_response(
                {
                    "ok": False,
                    "error_code": 409,
                    "description": "Conflict: terminated by other getUpdates request",
                },
                status=409,
            )
        return self._pending

    async def _next_change(self, seen: int) -> int:
        async with self._changed:
            await self._changed.wait_for(lambda: self._changes > seen)
            return self._changes

    async def _fetch(self) -> list[dict[str, Any]]:
        assert self._session is not None
        url = f"{self._backend}/bot{self.token}/getUpdates"
        async with self._session.post(url) as response:
            fresh = (await response.json())["result"]
        for update in fresh:
            if "callback_query" in update:
                update["callback_query"]["chat_instance"] = "1"
            elif "message_reaction" in update["message"]:
                update["message_reaction"] = update.pop("message")["message_reaction"]
        self._pending += fresh
        return self._pending

    # --- start and stop ------------------------------------------------------------------------

    @classmethod
    @asynccontextmanager
    async def start(cls) -> AsyncIterator[Self]:
        """Run the server and the proxy before it."""
        node = need("node", "the Telegram walks run a server from npm")
        need(HERE / "node_modules", "run `npm ci` in tests/servers/telegram")
        port = free_port()
        process = await asyncio.create_subprocess_exec(
            node, str(HERE / "start.js"), str(port),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdin is not None
        assert await process.stdout.readline() == b"ready\n"
        async with aiohttp.ClientSession() as session:
            self = cls(_backend=f"http://127.0.0.1:{port}", _session=session)
            app = web.Application()
            app.router.add_route("*", "/bot{token}/{method}", self.handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1, access_log=None)
            await runner.setup()
            port = free_port()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            self.url = f"http://127.0.0.1:{port}"
            try:
                yield self
            finally:
                await runner.cleanup()
                process.stdin.close()
                await process.wait()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _loads(value: Any) -> Any:
    try:
        return json.loads(value) if value[:1] in "[{" else value
    except ValueError:
        return value


def _menu(data: dict[str, Any]) -> str:
    """Which menu: whose, and in which language."""
    return f"{data.get('scope', '')} {data.get('language_code', '')}"


def _ok(result: Any) -> web.Response:
    return web.json_response({"ok": True, "result": result})


def _bad(description: str) -> web.Response:
    return web.json_response(
        {"ok": False, "error_code": 400, "description": description}, status=400
    )


def _message(data: dict[str, Any], message_id: int) -> dict[str, Any]:
    """A message of the bot, as Telegram gives it back."""
    chat = chat_json(0, int(data["chat_id"]))
    message = {"message_id": message_id, "date": DATE, "from": BOT, "chat": chat}
    return message | {name: data[name] for name in ("text", "entities") if name in data}


def fan_json(fan: int) -> dict[str, Any]:
    return {"id": fan, "is_bot": False, "first_name": f"Fã {fan}", "language_code": "pt-PT"}


def chat_json(fan: int, chat: int | None) -> dict[str, Any]:
    if chat is None or chat > 0:
        return {"id": chat or fan, "type": "private", "first_name": f"Fã {chat or fan}"}
    return {"id": chat, "type": "supergroup", "title": "Adeptos"}
