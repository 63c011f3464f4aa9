"""Logging: one line per event on stderr, readable on a terminal, JSON otherwise, no secrets."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from typing import Any

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from config.settings import Settings

# Libraries that speak about every request; telegram's addresses hold the token besides.
CHATTY = ("httpx", "httpcore", "telegram", "discord", "aiohttp.access", "aiosqlite", "markdown_it")


class Redact:
    """A structlog processor that blots secrets out of every text of an event."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = [secret for secret in secrets if secret]

    def __call__(self, _logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
        """Return the event with every secret in it blotted out."""
        return {key: self._clean(value) for key, value in event.items()}

    def _clean(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        shown = value if isinstance(value, str) else repr(value)
        if not any(secret in shown for secret in self._secrets):
            return value
        for secret in self._secrets:
            shown = shown.replace(secret, "***")
        return shown


def configure(settings: Settings) -> None:
    """Send our events and those of the libraries through one set of processors."""
    secrets = (settings.telegram.token, settings.discord.token, settings.web.password)
    redact = Redact(secret.get_secret_value().strip() for secret in secrets if secret)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Tracebacks become plain text before the secrets are blotted out: rich ones show variables.
    render: Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
    )
    last: list[Processor] = [structlog.processors.format_exc_info, redact, render]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log.upper())
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
