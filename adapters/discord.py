"""The Discord adapter: keeps a client connected, and says how that goes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import aiohttp
import discord
import structlog
from discord.gateway import DiscordWebSocket
from discord.http import Route
from yarl import URL

from adapters.discord_client import Client
from adapters.discord_transport import DiscordTransport
from bot.domain import Platform
from bot.errors import ConfigError
from bot.health import Health, State
from bot.service import ChatService
from config.settings import DiscordSettings, Settings
from config.texts import text

log = structlog.get_logger(__name__)

FIRST_WAIT, LONGEST_WAIT = 5.0, 300.0  # seconds between two attempts to connect
CLOSING = 3.0  # seconds for a polite goodbye
BAD_TOKEN = 4004
BAD_INTENTS = {4013, 4014}


class DiscordAdapter:
    """Discord, as the supervisor runs it."""

    platform = Platform.DISCORD

    def __init__(self, service: ChatService, settings: Settings) -> None:
        self._service = service
        self._settings = settings
        self._client: Client | None = None
        self._health = Health(State.STARTING)
        self._resumed = False
        self._wait = FIRST_WAIT
        self.transport = DiscordTransport(lambda: self._client)

    @property
    def health(self) -> Health:
        """How the connection is right now."""
        return self._health

    def connection(self) -> Client:
        """A new client, which the transport uses from now on."""
        self._client = Client(self._service, self._settings, self._note)
        return self._client

    async def run(self) -> None:
        """Serve until cancelled. Raises ConfigError when only the admin can help."""
        token = self._settings.discord.token
        if token is None:
            raise ConfigError("discord.token_missing")
        with addresses(self._settings.discord):
            while True:
                reason = await self._connect(self.connection(), token.get_secret_value())
                log.warning("not connected", platform="discord", reason=reason, wait=self._wait)
                await asyncio.sleep(self._wait)
                self._wait = min(2 * self._wait, LONGEST_WAIT)

    async def _connect(self, client: Client, token: str) -> str:
        """Stay connected for as long as the library manages to; returns why it gave up."""
        try:
            await client.start(token)
        except (discord.LoginFailure, discord.PrivilegedIntentsRequired) as error:
            wrong = isinstance(error, discord.LoginFailure)
            raise ConfigError("discord.token_wrong" if wrong else "discord.intents") from error
        except discord.ConnectionClosed as error:
            if error.code == BAD_TOKEN:
                raise ConfigError("discord.token_wrong") from error
            if error.code in BAD_INTENTS:
                raise ConfigError("discord.intents") from error
            return str(error)
        except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            await self._note(State.DOWN)
            await _close(client)
        return "closed"

    async def _note(self, state: State) -> None:
        """Keep how the connection is; on the first success, answer what is still open."""
        language = self._settings.conversation.language
        detail = "" if state is State.UP else text("discord.down", language)
        self._health = Health(state, detail)
        if state is not State.UP:
            return
        self._wait = FIRST_WAIT
        if not self._resumed:
            self._resumed = True
            await self._service.resume(Platform.DISCORD)


@contextmanager
def addresses(settings: DiscordSettings) -> Iterator[None]:
    """Point discord.py at the configured servers for as long as the block runs."""
    before = Route.BASE, DiscordWebSocket.DEFAULT_GATEWAY
    Route.BASE = settings.api_url.rstrip("/")
    DiscordWebSocket.DEFAULT_GATEWAY = URL(settings.gateway_url)
    try:
        yield
    finally:
        Route.BASE, DiscordWebSocket.DEFAULT_GATEWAY = before


async def _close(client: Client) -> None:
    """Say goodbye, but wait for no server that does not answer."""
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSING):
            await client.close()
    await client.http.close()
