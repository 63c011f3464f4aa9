"""How the parts are doing: what `/readyz`, `/estado` and the supervisor speak about."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from bot.domain import Platform
from bot.ports import Transport


class State(StrEnum):
    """The state of a platform."""

    OFF = "off"  # not configured
    STARTING = "starting"
    UP = "up"
    DOWN = "down"  # unreachable for now; it is tried again
    BROKEN = "broken"  # misconfigured: somebody must act


@dataclass(frozen=True, slots=True)
class Health:
    """A state and, where it is not `up`, a sentence for the admin."""

    state: State
    detail: str = ""


class Adapter(Protocol):
    """One chat platform, as the supervisor runs it."""

    @property
    def platform(self) -> Platform:
        """Which one it is."""
        ...

    @property
    def transport(self) -> Transport:
        """How the core shows things on it."""
        ...

    @property
    def health(self) -> Health:
        """How it is doing right now."""
        ...

    async def run(self) -> None:
        """Serve until cancelled.

        Raises ConfigError when only the admin can help (a wrong token, a port taken); anything
        else that escapes is a fault after which the supervisor starts it again.
        """
        ...

    async def close(self) -> None:
        """Close the connections; after `run` has ended and the last answer was delivered."""
        ...
