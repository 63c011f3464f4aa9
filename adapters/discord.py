"""The Discord adapter: keeps a client connected, and says how that goes."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import aiohttp
import discord
import structlog
from discord.gateway import DiscordWebSocket
from discord.http import Route
from yarl import URL

from adapters.discord_client import Client
from adapters.discord_transport import DiscordTransport
from bot.domain import Platform
from bot.errors import ConfigError, StoreError
from bot.health import Health, State
from bot.service import ChatService
from config.settings import DiscordSettings, Settings
from config.texts import text

log = structlog.get_logger(__name__)


def _without_traceback(record: logging.LogRecord) -> bool:
    """A connection that is lost and tried again is worth a line, not a page."""
    record.exc_info = None
    return True


def _without_tokens(record: logging.LogRecord) -> bool:
    """An interaction's token is good for 15 minutes, and part of the addresses that are logged."""
    record.msg, record.args = _TOKEN.sub(r"\g<place>…", record.getMessage()), ()
    return True


_TOKEN = re.compile(r"(?P<place>/(?:webhooks|interactions)/\d+/)[^/?\s'\"]+|[\w-]{60,}")
logging.getLogger(discord.client.__name__).addFilter(_without_traceback)
for _name in ("discord.http", "discord.webhook.async_", "discord.gateway"):
    logging.getLogger(_name).addFilter(_without_tokens)

FIRST_WAIT, LONGEST_WAIT = 5.0, 300.0  # seconds between two attempts to connect
RESUME_WAIT = 5.0  # seconds until a store that could not say what is open is asked again
CLOSING = 2.0  # seconds for a polite goodbye
SHARED_FOR = 600.0  # seconds that another program's message counts as a sign of it
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
        self._wait = FIRST_WAIT
        self._shared_until = 0.0  # as long as another program seems to use the token too
        self._addresses = ExitStack()
        self.transport = DiscordTransport(lambda: self._client)

    @property
    def health(self) -> Health:
        """How the connection is right now."""
        if time.monotonic() < self._shared_until:
            language = self._settings.conversation.language
            return Health(State.BROKEN, text("discord.conflict", language))
        return self._health

    def connection(self) -> Client:
        """A new client, which the transport uses from now on."""
        self._client = Client(
            self._service, self._settings, self.transport, self._note, self._overhear
        )
        return self._client

    async def run(self) -> None:
        """Serve until cancelled. Raises ConfigError when only the admin can help."""
        token = self._settings.discord.token
        if token is None:
            raise ConfigError("discord.token_missing")
        self._addresses.close()
        self._addresses.enter_context(addresses(self._settings.discord))
        while True:
            reason = await self._connect(self.connection(), token.get_secret_value())
            log.warning("not connected", platform="discord", reason=reason, wait=self._wait)
            await asyncio.sleep(self._wait)
            self._wait = min(2 * self._wait, LONGEST_WAIT)

    async def close(self) -> None:
        """Close the connections, when the last answer has been delivered."""
        if self._client is not None:
            await _close(self._client)
        self._addresses.close()

    async def _connect(self, client: Client, token: str) -> str:
        """Stay connected for as long as the library manages to; returns why it gave up."""
        try:
            await client.start(token)
        except asyncio.CancelledError:
            await _leave_gateway(client)  # what is being answered still goes out, until `close`
            raise
        except (discord.DiscordException, aiohttp.ClientError, OSError) as error:
            await _close(client)
            if key := _only_admin_can_help(error):
                raise ConfigError(key) from error
            return f"{type(error).__name__}: {error}"
        finally:
            await self._note(State.DOWN)
        return "closed"

    async def _note(self, state: State) -> None:
        """Keep how the connection is; whenever it is back, answer what is still open."""
        language = self._settings.conversation.language
        detail = "" if state is State.UP else text("discord.down", language)
        if state is not self._health.state:
            log.info("discord health", state=state.value)
        self._health = Health(state, detail)
        if state is State.UP:
            self._wait = FIRST_WAIT
            await self._resume()

    def _overhear(self, nonce: str) -> None:
        """Notice a message in the bot's name that this program did not send."""
        if self.transport.sent(nonce):
            return
        if time.monotonic() >= self._shared_until:
            language = self._settings.conversation.language
            log.error(text("discord.conflict", language), platform="discord")
        self._shared_until = time.monotonic() + SHARED_FOR

    async def _resume(self) -> None:
        """Answer what is still open, as soon as the store can say what that is."""
        while self._health.state is State.UP:
            try:
                await self._service.resume(Platform.DISCORD)
            except StoreError as error:
                log.warning("not resumed", platform="discord", error=str(error))
                await asyncio.sleep(RESUME_WAIT)
            else:
                return


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


def _only_admin_can_help(error: Exception) -> str | None:
    """The text that says what to do, where trying again would not help."""
    code = error.code if isinstance(error, discord.ConnectionClosed) else None
    if isinstance(error, discord.LoginFailure) or code == BAD_TOKEN:
        return "discord.token_wrong"
    if isinstance(error, discord.PrivilegedIntentsRequired) or code in BAD_INTENTS:
        return "discord.intents"
    return None


async def _leave_gateway(client: Client) -> None:
    """Hear nothing new, but wait for no server that does not say goodbye."""
    if client.ws is not None:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSING):
                await client.ws.close(code=1000)


async def _close(client: Client) -> None:
    await _leave_gateway(client)
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSING):
            await client.close()
    await client.http.close()  # also when the goodbye took too long
