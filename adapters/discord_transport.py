"""How posts reach Discord: channel messages, interaction follow-ups, and what its errors mean.

Requests go through discord.py's own HTTP client, below its message objects: after a restart there
is no cached channel or interaction to ask, and its webhook client would wait out any rate limit
unseen.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
import discord
import structlog
from discord.http import Route

from adapters.discord_render import render
from bot.domain import Action, Buttons, Destination, Platform, Post
from bot.errors import (
    DeliveryError,
    DeliveryFailed,
    DeliveryUnknown,
    HandleExpired,
    MessageGone,
    RetryAfter,
)
from bot.ports import Pace
from bot.text import split

log = structlog.get_logger(__name__)

LIMIT = 2000  # characters of one message
_ROOM = 100  # what escaping may add to a piece before it is cut again
_SHORTEST = 50
NONCES = 1000  # of our last messages that are remembered
_NONCE = 25  # Discord's longest
LONGEST_LABEL = 80  # characters on a button
TOKEN_LIFE = 15 * 60 - 10  # seconds that an interaction can be answered, less a margin
ORIGINAL = "@original"  # with a handle: the message that was tapped, also an ephemeral one
UNKNOWN_MESSAGE = 10008
THREAD_ARCHIVED = 50083
_SILENT = {"parse": [], "replied_user": False}
EMOJI = {
    Action.UP: "👍",
    Action.DOWN: "👎",
    Action.FIX: "✏️",
    Action.AGAIN: "🔁",
    Action.STOP: "⏹️",
}


@dataclass(frozen=True, slots=True)
class Handle:
    """What it takes to answer an interaction, also after a restart."""

    application: int
    token: str
    expires: float  # seconds since 1970
    channel: int

    @classmethod
    def of(cls, interaction: discord.Interaction[Any]) -> str:
        """The handle of an interaction, as text for the store."""
        made = cls(
            interaction.application_id,
            interaction.token,
            time.time() + TOKEN_LIFE,
            interaction.channel_id or 0,
        )
        return json.dumps(asdict(made))

    def route(self, method: str, tail: str = "", **values: str) -> Route:
        """A path under the interaction's webhook."""
        return Route(
            method,
            "/webhooks/{webhook_id}/{webhook_token}" + tail,
            webhook_id=self.application,
            webhook_token=self.token,
            **values,
        )


class DiscordTransport:
    """Discord as the core sees it."""

    platform = Platform.DISCORD
    pace = Pace(private=1.2, group=1.2, typing=8.0, idempotent_sends=True)

    def __init__(self, client: Callable[[], discord.Client | None]) -> None:
        self._client = client
        self._nonces: deque[str] = deque(maxlen=NONCES)

    def sent(self, nonce: str) -> bool:
        """Whether a message with this nonce is one of ours, lately."""
        return nonce in self._nonces

    def split(self, text: str) -> list[str]:
        """Cut CommonMark into pieces that fit one message once they are rendered."""
        return _fitting(text, LIMIT - _ROOM)

    async def send(self, to: Destination, post: Post) -> str:
        """Show a new message.

        The first follow-up of a deferred interaction takes the place of its "thinking…".
        """
        body = _body(post)
        if handle := self._handle(to):
            if post.private:
                body["flags"] |= discord.MessageFlags(ephemeral=True).value
            sent = await self._call(handle.route("POST"), handle, body)
            return str(sent["id"])
        if to.reply_to:
            body["message_reference"] = {
                "channel_id": to.chat.id,
                "message_id": to.reply_to,
                "fail_if_not_exists": False,
            }
        if post.nonce:
            body |= {"nonce": _nonce(post.nonce), "enforce_nonce": True}
            self._nonces.append(body["nonce"])
        route = Route("POST", "/channels/{channel_id}/messages", channel_id=to.chat.id)
        return str((await self._call(route, None, body))["id"])

    async def edit(self, to: Destination, message_id: str, post: Post) -> None:
        """Replace the text and buttons of one of our messages."""
        if handle := self._handle(to):
            tail = "/messages/" + (ORIGINAL if message_id == ORIGINAL else "{message_id}")
            route = handle.route("PATCH", tail, message_id=message_id)
        else:
            route = Route(
                "PATCH",
                "/channels/{channel_id}/messages/{message_id}",
                channel_id=to.chat.id,
                message_id=message_id,
            )
        await self._call(route, handle, _body(post))

    async def typing(self, to: Destination) -> None:
        """Show that the bot is typing; an interaction already shows that it is thinking."""
        if to.handle is None:
            await self._call(Route("POST", "/channels/{channel_id}/typing", channel_id=to.chat.id))

    def _handle(self, to: Destination) -> Handle | None:
        if to.handle is None:
            return None
        handle = Handle(**json.loads(to.handle))
        if time.time() >= handle.expires:
            raise HandleExpired
        return handle

    async def _call(
        self, route: Route, handle: Handle | None = None, body: dict[str, Any] | None = None
    ) -> Any:
        client = self._client()
        if client is None or client.is_closed():
            raise DeliveryFailed
        with _errors(handle), _unlocked(client):
            if body is None:
                return await client.http.request(route)
            return await client.http.request(route, json=body)


@contextmanager
def perhaps_too_late() -> Iterator[None]:
    """Go on when Discord takes no word any more: what the fan asked for counts all the same."""
    try:
        yield
    except (discord.DiscordException, DeliveryError, aiohttp.ClientError, OSError) as error:
        # Not the error's own text: it may hold the address, and with it the interaction's token.
        reason = type(error).__name__
        if isinstance(error, discord.HTTPException):
            reason = f"{error.status}/{error.code}"
        log.warning("not said", platform="discord", reason=reason)


@contextmanager
def _errors(handle: Handle | None) -> Iterator[None]:
    """Turn discord.py's errors into ours."""
    try:
        yield
    except discord.RateLimited as error:
        raise RetryAfter(error.retry_after) from error
    except discord.HTTPException as error:
        raise _meaning(error, handle) from error
    except aiohttp.ClientConnectorError as error:
        raise DeliveryFailed from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise DeliveryUnknown from error


@contextmanager
def _unlocked(client: discord.Client) -> Iterator[None]:
    """Keep a call cancelled during a global rate limit from blocking all calls for ever."""
    try:
        yield
    except asyncio.CancelledError:
        client.http._global_over.set()  # noqa: SLF001 (discord.py 2.7 forgets it on cancellation)
        raise


def _meaning(error: discord.HTTPException, handle: Handle | None) -> DeliveryError:
    """Which of our errors a refusal is."""
    if error.status == 429:  # noqa: PLR2004 (an HTTP status)
        return RetryAfter(float(error.response.headers.get("Retry-After", 5)))
    if error.status in {401, 403, 404} or error.code == THREAD_ARCHIVED:
        if handle is not None and error.code != UNKNOWN_MESSAGE:
            return HandleExpired()
        return DeliveryFailed() if error.status == 401 else MessageGone()  # noqa: PLR2004 (the same)
    return DeliveryFailed(reason=f"{error.status} {error.text}")


def _body(post: Post) -> dict[str, Any]:
    """A message as Discord's API takes it."""
    return {
        "content": render(post.text) or "\u200b",
        "components": _row(post),
        "allowed_mentions": _SILENT,
        "flags": discord.MessageFlags(suppress_embeds=True).value,
    }


def custom_id(buttons: Buttons, action: Action) -> str:
    """The name of a button: all that it needs to work after a restart."""
    return f"fb:{action}:{buttons.answer_id}"


def _row(post: Post) -> list[dict[str, Any]]:
    view = discord.ui.View(timeout=None)
    if buttons := post.buttons:
        for action in buttons.actions:
            name = custom_id(buttons, action)
            view.add_item(discord.ui.Button(emoji=EMOJI[action], custom_id=name))
    for choice in post.choices:
        label = choice.label[:LONGEST_LABEL]
        view.add_item(discord.ui.Button(label=label, custom_id=f"c:{choice.data}"))
    return view.to_components()


def _nonce(wanted: str) -> str:
    if len(wanted) <= _NONCE:
        return wanted
    return hashlib.sha256(wanted.encode()).hexdigest()[:_NONCE]


def _fitting(text: str, limit: int) -> list[str]:
    """Pieces of at most `limit` characters, cut again where rendering makes one too long."""
    pieces: list[str] = []
    for piece in split(text, limit, len):
        fits = limit <= _SHORTEST or len(render(piece)) <= LIMIT
        pieces += [piece] if fits else _fitting(piece, limit // 2)
    return pieces
