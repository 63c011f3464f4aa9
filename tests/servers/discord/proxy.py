"""A loopback Discord: `discord-digital-twin` from npm, and before it what that server leaves out.

The proxy checks the token, names the owner and who is mentioned, gives back the commands, refuses
to resume sessions (the server keeps none), answers an interaction's callback as Discord does, and
plays the faults that a test asks for. Everything else is the server's.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import aiohttp
from aiohttp import web

from tests.servers.need import need

HERE = Path(__file__).parent
API = "/api/v10"

Fault = Callable[[web.Request], Awaitable[web.Response]]
# As Discord sends it: without a charset, from behind its proxies.
JSON = {"Content-Type": "application/json", "Via": "1.1 loopback"}


def refuse(status: int, code: int = 0, **body: Any) -> Fault:
    """Answer with an error of Discord's API."""

    async def answer(_request: web.Request) -> web.Response:
        error = json.dumps({"code": code, "message": "a fault of the test", **body}).encode()
        return web.Response(status=status, body=error, headers=JSON)

    return answer


async def cut(request: web.Request) -> web.Response:
    """Close the connection without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def _with_texts(commands: bytes) -> bytes:
    """Write permissions as the server reads them; Discord takes numbers too."""
    parsed = json.loads(commands)
    for command in parsed:
        if (hint := command.get("default_member_permissions")) is not None:
            command["default_member_permissions"] = str(hint)
    return json.dumps(parsed).encode()


@dataclass
class Call:
    """One call of the bot, with what it was asked and how it was answered."""

    method: str
    path: str
    body: Any
    status: int


@dataclass
class Loopback:
    """The server, as a test sees it."""

    token: str = ""
    bot: str = ""
    channel: str = ""
    fan: str = ""
    url: str = ""
    calls: list[Call] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    faults: deque[tuple[str, Fault]] = field(default_factory=deque)  # a pattern of the path, what
    _commands: bytes = b"[]"
    _backend: str = ""
    _session: aiohttp.ClientSession | None = None
    _twin: asyncio.subprocess.Process | None = None
    _gateways: list[web.Request] = field(default_factory=list)

    @property
    def api_url(self) -> str:
        return f"http://{self.url}{API}"

    @property
    def gateway_url(self) -> str:
        return f"ws://{self.url}/gateway"

    @property
    def connections(self) -> int:
        """How often the bot has connected to the gateway."""
        return len(self._gateways)

    # --- what fans do ------------------------------------------------------------------------

    async def act(self, call: str, **args: Any) -> Any:
        """Let the twin do something, by the names of its own interface."""
        assert self._twin is not None
        assert self._twin.stdin is not None
        assert self._twin.stdout is not None
        place = {"channelId": self.channel, "userId": self.fan}
        self._twin.stdin.write(json.dumps({"call": call, "args": place | args}).encode() + b"\n")
        answer = json.loads(await self._twin.stdout.readline())
        assert "error" not in answer, answer
        return answer["result"]

    async def shown(self) -> list[dict[str, Any]]:
        """What the bot has in the channel, oldest first."""
        messages = await self.act("messages")
        return [message for message in messages if message["author"]["id"] == self.bot]

    def drop(self) -> None:
        """Cut all gateway connections."""
        for request in self._gateways:
            if request.transport is not None:
                request.transport.abort()

    # --- what a test waits for ---------------------------------------------------------------

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something that the bot did makes a condition true."""
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(condition)

    def of(self, method: str, ending: str) -> list[Call]:
        """The calls of one kind."""
        return [
            call for call in self.calls if call.method == method and re.search(ending, call.path)
        ]

    async def tell(self) -> None:
        """Let everybody who waits look again."""
        async with self.changed:
            self.changed.notify_all()

    # --- the API -----------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.Response:
        """One call of the bot."""
        body = await request.read()
        path = request.path.removeprefix(API)
        response = await self._answer(request, path, body)
        parsed = json.loads(body) if body else None
        self.calls.append(Call(request.method, path, parsed, response.status))
        await self.tell()
        return response

    async def _answer(self, request: web.Request, path: str, body: bytes) -> web.Response:
        asked = request.headers.get("Authorization")
        if asked != f"Bot {self.token}" and not path.startswith(("/interactions", "/webhooks")):
            return await refuse(401)(request)
        if self.faults and re.search(self.faults[0][0], path):
            return await self.faults.popleft()[1](request)
        if path == "/oauth2/applications/@me":
            owner = {"id": "1", "username": "dona", "discriminator": "0", "avatar": None}
            return await self._forward(request, "/applications/@me", body, owner=owner)
        if re.fullmatch(r"/applications/\d+/commands", path):
            if request.method == "GET":
                return web.Response(body=self._commands, headers=JSON)
            self._commands = body
            body = _with_texts(body)
        return await self._forward(request, path, body)

    async def _forward(
        self, request: web.Request, path: str, body: bytes, **more: Any
    ) -> web.Response:
        assert self._session is not None
        async with self._session.request(
            request.method, f"{self._backend}{API}{path}", data=body, params=request.query,
            headers={"Content-Type": "application/json"},
        ) as answer:  # fmt: skip
            content = await answer.read()
            if answer.status == 204 and path.endswith("/callback"):
                made = {"interaction": {"id": path.split("/")[2], "type": 2}}
                return web.Response(body=json.dumps(made).encode(), headers=JSON)
            if more:
                content = json.dumps(json.loads(content) | more).encode()
            headers = JSON if content else {}
            return web.Response(status=answer.status, body=content or None, headers=headers)

    # --- the gateway -------------------------------------------------------------------------

    async def gateway(self, request: web.Request) -> web.WebSocketResponse:
        """One connection of the bot."""
        assert self._session is not None
        ours = web.WebSocketResponse()
        await ours.prepare(request)
        self._gateways.append(request)
        await self.tell()
        async with self._session.ws_connect(
            self._backend.replace("http", "ws") + "/gateway"
        ) as twin:
            relay = asyncio.create_task(self._relay(twin, ours))
            async for frame in ours:
                if json.loads(frame.data)["op"] == 6:
                    await ours.send_json({"op": 9, "d": False})
                else:
                    await twin.send_str(frame.data)
            relay.cancel()
        return ours

    async def _relay(
        self, twin: aiohttp.ClientWebSocketResponse, ours: web.WebSocketResponse
    ) -> None:
        async for frame in twin:
            event = json.loads(frame.data)
            if event.get("t") == "MESSAGE_CREATE":
                named = re.findall(r"<@(\d+)>", event["d"]["content"])
                event["d"]["mentions"] = [
                    {"id": name, "username": "leao", "discriminator": "0", "avatar": None}
                    for name in named
                ]
            await ours.send_json(event)
        await ours.close(code=twin.close_code or 1000)

    # --- start and stop ----------------------------------------------------------------------

    @classmethod
    @asynccontextmanager
    async def start(cls) -> AsyncIterator[Self]:
        """Run the server and the proxy before it."""
        node = need("node", "the Discord walks run a server from npm")
        need(HERE / "node_modules", "run `npm ci --ignore-scripts` in tests/servers/discord")
        twin = await asyncio.create_subprocess_exec(
            node, str(HERE / "twin.mjs"), stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, limit=2**20,
        )  # fmt: skip
        assert twin.stdout is not None
        assert twin.stdin is not None
        facts = json.loads(await twin.stdout.readline())
        backend = f"http://127.0.0.1:{facts.pop('port')}"
        async with aiohttp.ClientSession() as session:
            self = cls(**facts, _backend=backend, _session=session, _twin=twin)
            app = web.Application()
            app.router.add_route("GET", "/gateway", self.gateway)
            app.router.add_route("*", API + "/{path:.+}", self.handle)
            runner = web.AppRunner(app, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = "{}:{}".format(*runner.addresses[0][:2])
            try:
                yield self
            finally:
                self.drop()
                await runner.cleanup()
                twin.stdin.close()
                await twin.wait()
