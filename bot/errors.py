"""Everything that can go wrong, as one tree.

FarenseError                     carries a text key and its values: the sentence a person reads
├── ConfigError                  a setting is missing or wrong: the admin must act
├── ModelError                   the model is missing, truncated or of an unknown kind
├── StoreError                   the database is locked, read-only, corrupt or full
├── Refusal                      the fan must act: empty, too long, too fast, not allowed
├── EngineError
│   ├── EngineBusy               the queue is full; `retry_after` says when to come back
│   ├── PromptTooLong            a single message over the budget
│   ├── GenerationFailed         this one request failed, the engine goes on
│   ├── EnginePaused             what serves cannot be changed while its memory is lent out
│   └── EngineDead               the engine thread is gone or wedged; only a restart helps
└── DeliveryError
    ├── RetryAfter               the platform asks us to wait `seconds`
    ├── MessageGone              the message or chat was deleted, or the bot was blocked
    ├── HandleExpired            the interaction token is too old; use the chat itself
    ├── NotModified              the message already shows this text: nothing to do
    ├── DeliveryUnknown          the reply was lost: the message may or may not be there
    └── DeliveryFailed           the platform refused or is down; safe to try again
"""

from __future__ import annotations

from config.texts import text


class FarenseError(Exception):
    """Base of all our errors: a key of the text catalogue and the values for it.

    `for_fans` is false where the sentence is only for those who run the bot: it may name a path.
    """

    key = "error.unexpected"
    for_fans = True

    def __init__(self, key: str | None = None, /, **values: object) -> None:
        self.key = key or type(self).key
        self.values = values
        super().__init__(self.key, values)

    def __str__(self) -> str:
        details = ", ".join(f"{name}={value}" for name, value in self.values.items())
        return f"{self.key}({details})"


class ConfigError(FarenseError):
    """A setting is missing or wrong."""

    key = "error.config"
    for_fans = False


class ModelError(FarenseError):
    """The model cannot be loaded."""

    key = "error.model"
    for_fans = False


class StoreError(FarenseError):
    """The database cannot be used."""

    key = "error.store"
    for_fans = False


class Refusal(FarenseError):
    """We will not answer this message; the text says what the fan can do."""

    key = "refusal.empty"


class EngineError(FarenseError):
    """Something about the generation."""

    key = "error.engine"


class EngineBusy(EngineError):
    """The queue is full."""

    key = "refusal.busy"

    def __init__(self, retry_after: float) -> None:
        super().__init__(seconds=max(1, round(retry_after)))
        self.retry_after = retry_after


class PromptTooLong(EngineError):
    """A single message does not fit into the context."""

    key = "refusal.too_long"


class GenerationFailed(EngineError):
    """This request failed; others go on."""

    key = "error.generation"


class EnginePaused(EngineError):
    """The engine has given its memory back for a while."""

    key = "error.engine_paused"


class EngineDead(EngineError):
    """The engine thread is gone or wedged."""

    key = "error.engine_dead"


class DeliveryError(FarenseError):
    """A platform did not take a message."""

    key = "error.delivery"


class RetryAfter(DeliveryError):
    """The platform asks us to wait."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds=seconds)
        self.seconds = seconds


class MessageGone(DeliveryError):
    """The message or the chat is no longer there for us."""


class HandleExpired(DeliveryError):
    """The adapter's handle is too old; the chat itself may still be reached."""


class NotModified(DeliveryError):
    """The message already shows this."""


class DeliveryUnknown(DeliveryError):
    """The connection was lost after the request went out: the post may be in the chat."""


class DeliveryFailed(DeliveryError):
    """The platform refused, or is down; nothing was shown."""


def explain(error: FarenseError, language: str) -> str:
    """The sentence that a fan reads about an error."""
    if error.for_fans:
        return text(error.key, language, **error.values)
    return text(FarenseError.key, language)
