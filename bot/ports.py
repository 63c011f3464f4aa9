"""What the core needs from the outside, as protocols. `engine` and `adapters` implement them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from bot.domain import Destination, EngineStatus, Event, Platform, Post, Request, Turn


class Engine(Protocol):
    """A language model that many fans share.

    `async with engine:` starts and stops it. Cancelling the task that iterates `generate`, or
    closing the iterator, stops token generation at the next step.
    """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exc: object) -> None: ...

    @property
    def status(self) -> EngineStatus:
        """A snapshot; cheap, never waits."""
        ...

    def encode(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Render the chat template and tokenize; role tokens inside a turn's text stay inert.

        Ends with the opening of the assistant's turn when the last turn is not an assistant's.
        A system turn alone gives the pinned prefix, a true prefix of every prompt that starts so.
        """
        ...

    def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        """Queue a request and stream it: `Queued`*, `Delta`*, `Done`.

        Raises EngineBusy, PromptTooLong, GenerationFailed or EngineDead.
        """
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """How often a platform lets us touch one chat, in seconds between calls."""

    private: float
    group: float
    typing: float = 4.0  # the typing sign fades by itself; repeat it this often
    idempotent_sends: bool = False  # same `Post.nonce`, one message; only without a handle


class Nights(Protocol):
    """The runs that train revisions, as admins steer them. Refusals are for them to read."""

    async def start(self, started_by: str, to: Destination | None, language: str) -> None:
        """Begin a run now; its progress and result go to `to`. Raises Refusal when one runs."""
        ...

    async def cancel(self) -> bool:
        """Stop the run; False when there is none."""
        ...

    async def describe(self, language: str) -> str:
        """What runs now, and how the last runs ended."""
        ...

    async def roll_back(self, by: str, language: str) -> str:
        """Put the revision before this one into service, and say which it is."""
        ...

    async def revisions(self, language: str) -> str:
        """The revisions that are there, and which one serves."""
        ...


class Transport(Protocol):
    """One platform's way to show things. Errors are the DeliveryError branch, nothing else."""

    platform: Platform
    pace: Pace

    def split(self, text: str) -> list[str]:
        """Cut CommonMark into pieces that each fit one message, fences and words kept whole."""
        ...

    async def send(self, to: Destination, post: Post) -> str:
        """Show a new message and return the platform's id of it."""
        ...

    async def edit(self, to: Destination, message_id: str, post: Post) -> None:
        """Replace the text and buttons of a message we sent."""
        ...

    async def typing(self, to: Destination) -> None:
        """Show that the bot is at work; best effort."""
        ...
