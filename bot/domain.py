"""The words of the bot: who writes, where, what was asked, what was answered.

Plain frozen values that every layer may import. Nothing here knows a platform's library, a
database or a model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import NewType

AnswerId = NewType("AnswerId", int)
QuestionId = NewType("QuestionId", int)

CARET = " ▌"  # ends a text that is still being written


class Platform(StrEnum):
    """Where a message comes from."""

    TELEGRAM = "telegram"
    DISCORD = "discord"
    WEB = "web"
    CONSOLE = "console"


class ChatKind(StrEnum):
    """A chat of one fan with the bot, or one that many fans share."""

    PRIVATE = "private"
    GROUP = "group"


class Language(StrEnum):
    """The languages that the bot's own texts exist in."""

    PT = "pt"
    EN = "en"


class Source(StrEnum):
    """How a text reached us; decides what it may be used for (see docs on privacy)."""

    TELEGRAM_PRIVATE = "telegram_private"
    TELEGRAM_GROUP = "telegram_group"
    DISCORD_COMMAND = "discord_command"
    DISCORD_MESSAGE = "discord_message"
    WEB = "web"
    CONSOLE = "console"


@dataclass(frozen=True, slots=True)
class Fan:
    """One person on one platform."""

    platform: Platform
    id: str
    name: str = ""
    language: Language = Language.PT

    @property
    def key(self) -> str:
        """The fan's name in the store and in the list of admins, e.g. `telegram:1`."""
        return f"{self.platform}:{self.id}"


@dataclass(frozen=True, slots=True)
class Chat:
    """One place where messages are exchanged; a thread or forum topic is a chat of its own."""

    platform: Platform
    id: str
    kind: ChatKind = ChatKind.PRIVATE
    thread: str | None = None

    @property
    def key(self) -> str:
        """The chat's name in the store, e.g. `telegram:-100123/45`."""
        return f"{self.platform}:{self.id}" + (f"/{self.thread}" if self.thread else "")

    def holds(self, chat_key: str) -> bool:
        """Whether a chat's key is this one's or that of one of its threads.

        Threads count as one here because a reaction does not say in which of them it was made.
        """
        return chat_key.partition("/")[0] == f"{self.platform}:{self.id}"

    @property
    def is_shared(self) -> bool:
        """Whether many fans share it."""
        return self.kind is ChatKind.GROUP


@dataclass(frozen=True, slots=True)
class Message:
    """One message or command addressed to the bot, as an adapter hands it over.

    `update_id` is unique within the platform: the same update twice is answered once.
    `handle` belongs to the adapter: whatever it needs to reach the place again after a restart
    (an interaction token); the core stores it and gives it back in `Destination`.
    `command` is a canonical name of `bot.commands.COMMANDS`, `text` then holds its argument.
    """

    update_id: str
    chat: Chat
    fan: Fan
    text: str
    source: Source
    received_at: datetime
    message_id: str | None = None
    reply_to: str | None = None
    quoted: str | None = None
    command: str | None = None
    attachments: int = 0
    handle: str | None = None

    @property
    def key(self) -> str:
        """The update's name in the store, unique over all platforms."""
        return f"{self.chat.platform}:{self.update_id}"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a post goes: the chat, the message it replies to, and the adapter's own handle."""

    chat: Chat
    reply_to: str | None = None
    handle: str | None = None


class Action(StrEnum):
    """What a button under an answer does. The values go into callback data: keep them short."""

    UP = "up"
    DOWN = "dn"
    FIX = "fx"
    AGAIN = "ag"
    STOP = "st"
    CLEAR = "cl"  # no button: a reaction that was taken back


@dataclass(frozen=True, slots=True)
class Buttons:
    """The row under an answer: ⏹ while it is being written, 👍 👎 ✏️ 🔁 when it is done."""

    answer_id: AnswerId
    running: bool = False

    @property
    def actions(self) -> tuple[Action, ...]:
        """The buttons to show, left to right."""
        if self.running:
            return (Action.STOP,)
        return (Action.UP, Action.DOWN, Action.FIX, Action.AGAIN)


class Wanted(StrEnum):
    """What a guided reply gives us."""

    CORRECTION = "correction"  # of the answer that it is about
    LESSON = "lesson"
    CHOICE = "choice"  # the text that this choice's form would take


@dataclass(frozen=True, slots=True)
class Asked:
    """What a notice asks for by a guided reply, and about what."""

    what: Wanted
    about: str = ""


FORM = "?"  # begins the data of a choice whose tap opens a form, where the platform has forms


@dataclass(frozen=True, slots=True)
class Choice:
    """A button under a notice. `data` comes back in the `Tap`: at most 40 ASCII characters."""

    label: str
    data: str


@dataclass(frozen=True, slots=True)
class Post:
    """One message to show. `text` is CommonMark; the adapter renders it for its platform.

    `private` asks for an ephemeral message where the platform has them, `ask` for a guided reply
    (Telegram's force reply) and says what it gives, `nonce` makes a repeated send harmless where
    the platform allows it. `choices` are buttons in one row; a post has these or `buttons`, not
    both.
    """

    text: str
    buttons: Buttons | None = None
    choices: tuple[Choice, ...] = ()
    private: bool = False
    ask: Asked | None = None
    nonce: str | None = None


@dataclass(frozen=True, slots=True)
class Press:
    """A tap on a button or a reaction: who, what, on which answer, seen where."""

    action: Action
    answer_id: AnswerId
    fan: Fan
    chat: Chat
    source: Source
    update_id: str
    handle: str | None = None
    via: str = "button"  # or "reaction"
    cleared: Action | None = None  # with CLEAR: only this vote is meant; None: whichever there is


@dataclass(frozen=True, slots=True)
class Toast:
    """The short sentence after a tap or form; `done` tells whether anything came of it."""

    text: str
    done: bool = True


@dataclass(frozen=True, slots=True)
class Tap:
    """A tap on a choice: who, which, on which message of ours, seen where."""

    data: str
    fan: Fan
    chat: Chat
    source: Source
    update_id: str
    message_id: str | None = None
    handle: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tap leads to: a short sentence, and what the message under it becomes (None: as is).

    A post without choices ends the card: its buttons go.
    """

    toast: str
    post: Post | None = None


class Role(StrEnum):
    """Who speaks in a prompt."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a prompt."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; `seed` makes a request repeatable."""

    temperature: float = 0.7
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    max_tokens: int = 512
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """One generation asked of the engine.

    `fan` is the key that the queue is fair between, `conversation` the key under which the KV
    cache of the prompt may be found again, `pinned` how many leading tokens are the persona's.
    """

    id: str
    fan: str
    conversation: str
    tokens: tuple[int, ...]
    pinned: int = 0
    sampling: Sampling = field(default_factory=Sampling)


class AnswerState(StrEnum):
    """How far an answer came."""

    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"  # by the fan; what was written stays
    FAILED = "failed"
    INTERRUPTED = "interrupted"  # by a shutdown; it is answered after the start


class Finish(StrEnum):
    """Why a generation ended."""

    STOP = "stop"  # the model ended its answer
    LENGTH = "length"  # max_tokens reached
    CANCELLED = "cancelled"  # the fan or the shutdown stopped it


@dataclass(frozen=True, slots=True)
class Usage:
    """What one generation cost. Times in seconds, counted from its arrival in the queue."""

    revision: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queued: float
    first_token: float
    total: float


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits; `position` 1 is next, but `held` ones wait until the engine is back."""

    position: int
    held: bool = False


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer, never half a character, never part of a stop text."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a generation; always the last event."""

    finish: Finish
    usage: Usage


Event = Queued | Delta | Done


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """What the engine reports to `/estado`, `doctor` and `/readyz`."""

    ready: bool
    model: str
    revision: str
    plan: str
    context: int
    running: int
    waiting: int
    tokens_per_second: float
    cache_bytes: int
    detail: str = ""
    paused: bool = False  # who comes now is answered once it is back
    back_in: float | None = None  # seconds, where that is known
