"""How fast the bot as a whole may call Telegram; the pace of each chat is the delivery's."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any

from telegram import error
from telegram.ext import BaseRateLimiter

RATE = 30.0  # calls a second over all chats; Telegram's own limit for messages
BURST = 30  # calls that may go at once after a quiet time
LONGEST = 20.0  # seconds of waiting after which a call is turned back instead
LATE = 1.0  # seconds after which a sign of life is no longer worth sending
AT_ONCE = frozenset({"answerCallbackQuery", "getMe", "deleteWebhook"})
DROPPABLE = frozenset({"sendChatAction", "sendMessageDraft"})

Json = bool | dict[str, Any] | list[dict[str, Any]]


class Limiter(BaseRateLimiter[None]):
    """Spaces the calls of the whole bot. Sends nothing twice: who called decides about that."""

    def __init__(self, clock: Callable[[], float] | None = None) -> None:
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._next = 0.0

    async def initialize(self) -> None:
        """Nothing to prepare."""

    async def shutdown(self) -> None:
        """Nothing to close."""

    def reserve(self, longest: float) -> float | None:
        """Take the next free place and return the seconds until it, None if that is too long."""
        now = self._clock()
        place = max(now, self._next)
        wait = max(0.0, place - now - BURST / RATE)
        if wait > longest:
            return None
        self._next = place + 1 / RATE
        return wait

    async def process_request(  # noqa: PLR0917 (the library's signature)
        self,
        callback: Callable[..., Coroutine[Any, Any, Json]],
        args: Any,
        kwargs: dict[str, Any],
        endpoint: str,
        data: dict[str, Any],  # noqa: ARG002 (the library's signature)
        rate_limit_args: None,  # noqa: ARG002 (the library's signature)
    ) -> Json:
        """Call Telegram when it is this call's turn."""
        if endpoint not in AT_ONCE:
            droppable = endpoint in DROPPABLE
            wait = self.reserve(LATE if droppable else LONGEST)
            if wait is None and droppable:
                return True
            if wait is None:
                raise error.RetryAfter(math.ceil(LONGEST))
            if wait:
                await asyncio.sleep(wait)
        return await callback(*args, **kwargs)
