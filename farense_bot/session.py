"""What every command begins with: settings, logging, and errors as one sentence."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console

from bot.errors import ConfigError, EngineDead, FarenseError
from config.settings import SecretInToml, Settings, UnknownSetting, load_settings
from config.texts import catalogue, text
from farense_bot.logs import configure

Model = Annotated[
    str | None, typer.Option("--model", help="MLX model id or folder, or `embedded`.")
]
Home = Annotated[Path | None, typer.Option("--home", help="State folder (FARENSE_HOME).")]
PROFILE = "Kind of machine; else as set, or this one's."
Profile = Annotated[str | None, typer.Option("--profile", help=PROFILE)]

stderr = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def session(
    home: Path | None, model: str | None, log: str | None, profile: str | None = None
) -> Iterator[Settings]:
    """Settings and logging for a command; our errors become one sentence on stderr."""
    given: dict[str, Any] = {"engine": {"model": model}} if model else {}
    if log:
        given["log"] = log
    if profile:
        given["profile"] = profile
    settings: Settings | None = None
    try:
        from training.planned import fitted, named_profile

        if profile:
            named_profile(profile)
        settings = fitted(_read_settings(home, given))
        configure(settings)
        yield settings
    except EngineDead as error:
        _complain(error, settings)
        raise
    except FarenseError as error:
        _complain(error, settings)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _complain(error: FarenseError, settings: Settings | None) -> None:
    language = settings.conversation.language if settings else "pt"
    stderr.print(f"✗ {text(error.key, language, **error.values)}", style="bold red", markup=False)


def _read_settings(home: Path | None, given: dict[str, Any]) -> Settings:
    try:
        return load_settings(home, **given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        known = f"setting.{first['type']}"
        reason = text(known, "pt", **first.get("ctx", {})) if known in catalogue() else first["msg"]
        raise ConfigError("error.setting", where=where, reason=reason) from None
    except SettingsError as error:
        raise ConfigError("error.not_json", reason=error) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("error.file_unreadable", reason=error) from None
    except (OSError, RuntimeError) as error:
        raise ConfigError("error.config_unreachable", reason=error) from None
    except SecretInToml as error:
        raise ConfigError("error.secret_in_toml", where=error) from None
    except UnknownSetting as error:
        raise ConfigError("error.unknown_setting", where=error) from None
