"""The settings: each declared once, with its default and its help.

Order: command line, environment, `.env` in the current folder, `.env` in the state folder,
`farense.toml` in the state folder, default. Tokens and passwords come from the environment or an
`.env` only: in TOML they are refused, because TOML files end up in git.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from dotenv import dotenv_values
from pydantic import BaseModel, ConfigDict, Field, SecretStr, StringConstraints
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

EMBEDDED_MODEL = "embedded"
SECRETS = (("telegram", "token"), ("discord", "token"), ("web", "password"))
AdminId = Annotated[str, StringConstraints(pattern=r"^(telegram|discord|web|console):\S+$")]


class SecretInToml(ValueError):
    """A token or password stands in the TOML file."""


class UnknownSetting(ValueError):
    """A setting that does not exist, most often misspelt."""


def default_home() -> Path:
    """The state folder: `FARENSE_HOME`, else where the system keeps application data."""
    chosen = os.environ.get("FARENSE_HOME") or dotenv_values(".env").get("FARENSE_HOME")
    if chosen:
        return Path(chosen).expanduser()
    return platformdirs.user_data_path("farense-bot", appauthor=False)


class Section(BaseModel):
    """A group of settings; an unknown name in it is an error, not a surprise later."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class EngineSettings(Section):
    """The model and how it is run."""

    model: str | None = Field(
        None, description="MLX model id or folder; `embedded` is the small one that comes along."
    )
    context: int = Field(4096, ge=256, description="Tokens of prompt and answer together.")
    max_tokens: int = Field(512, ge=1, description="Longest answer, in tokens.")
    temperature: float = Field(0.7, ge=0, le=2, description="0 is greedy, higher is freer.")
    top_p: float = Field(0.95, gt=0, le=1, description="Nucleus sampling.")
    repetition_penalty: float = Field(1.05, ge=1, le=2, description="1 is off.")
    concurrency: int = Field(8, ge=1, description="Answers written at the same time.")
    queue: int = Field(64, ge=1, description="Requests that may wait; more are refused.")
    queue_per_fan: int = Field(3, ge=1, description="Requests of one fan that may wait.")
    prefill_step: int = Field(128, ge=16, description="Prompt tokens read between two steps.")
    cache_mb: int = Field(1024, ge=0, description="Memory for KV caches of conversations.")
    request_timeout: float = Field(300, gt=0, description="Seconds until a request is given up.")
    step_timeout: float = Field(60, gt=0, description="Seconds until a step counts as wedged.")


class TelegramSettings(Section):
    """The Telegram bot."""

    token: SecretStr | None = Field(
        None, description="From @BotFather; without it Telegram is off."
    )
    base_url: str = Field(
        "https://api.telegram.org", description="Bot API server, for one of your own."
    )
    drafts: bool = Field(False, description="Stream into message drafts instead of edits.")


class DiscordSettings(Section):
    """The Discord bot."""

    token: SecretStr | None = Field(None, description="Bot token; without it Discord is off.")
    api_url: str = Field("https://discord.com/api/v10", description="REST address.")
    gateway_url: str = Field("wss://gateway.discord.gg/", description="Gateway address.")


class WebSettings(Section):
    """The web chat and the health checks."""

    enabled: bool = Field(True, description="Serve the web chat.")
    host: str = Field("127.0.0.1", description="Address; any but this machine's needs a password.")
    port: int = Field(8910, ge=0, le=65535, description="Port; 0 takes a free one.")
    password: SecretStr | None = Field(None, description="Password of the web chat.")


class ConversationSettings(Section):
    """Conversations and messages."""

    idle_hours: float = Field(12, gt=0, description="After this pause a private chat starts anew.")
    max_chars: int = Field(8000, ge=100, description="Longest message of a fan, in characters.")
    language: Literal["pt", "en"] = Field("pt", description="Language of the bot's own texts.")
    persona: str = Field("farense", description="File in config/personas, without the ending.")


class LearningSettings(Section):
    """Learning from what fans teach, at night."""

    enabled: bool = Field(True, description="Train at night; /retrain works all the same.")
    at: str = Field(
        "03:30", pattern=r"^([01]\d|2[0-3]):[0-5]\d$", description="When the night begins."
    )
    timezone: str = Field("Europe/Lisbon", description="The time zone of `at`.")
    min_new: int = Field(
        3, ge=1, description="New lessons or votes below which a night is skipped."
    )
    max_minutes: float = Field(180, gt=0, description="Longest training, without pauses for fans.")
    pause: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Let the model's memory go while training: `auto` does where both do not fit.",
    )
    keep: int = Field(7, ge=2, description="Revisions kept for going back.")
    new_account_days: float = Field(
        7, ge=0, description="Days in which what a new fan says weighs nothing by itself."
    )
    discord_votes: bool = Field(False, description="Train on votes given on Discord's commands.")
    discord_permission: str = Field(
        "", description="Reference of Discord's written permission to train on message content."
    )
    report_to: str = Field(
        "", description="Chat for the night's report, e.g. telegram:1; else the admin's last one."
    )


class Settings(BaseSettings):
    """Everything that can be set."""

    model_config = SettingsConfigDict(
        env_prefix="FARENSE_",
        env_nested_delimiter="__",
        extra="ignore",  # an .env holds other programs' names too; ours are checked below
        frozen=True,
        validate_default=True,
    )

    home: Path = Field(default_factory=default_home, description="The state folder.")
    admins: tuple[AdminId, ...] = Field(
        (), description='Who may give admin commands, e.g. ["telegram:1","discord:2"].'
    )
    log: Literal["debug", "info", "warning", "error"] = Field("info", description="Log level.")
    profile: Literal["auto", "m1-8gb", "m1-pro-16gb", "m1-max-32gb", "cpu", "cuda"] = Field(
        "auto",
        description="Kind of machine that the defaults are for: one of config/profiles.toml; `auto`"
        " looks for itself.",
    )
    engine: EngineSettings = EngineSettings()
    telegram: TelegramSettings = TelegramSettings()
    discord: DiscordSettings = DiscordSettings()
    web: WebSettings = WebSettings()
    conversation: ConversationSettings = ConversationSettings()
    learning: LearningSettings = LearningSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (pydantic's signature)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put the TOML file last; it may hold no secret."""
        toml = TomlConfigSettingsSource(settings_cls)
        _check_toml(toml.toml_data)
        return init_settings, env_settings, dotenv_settings, toml

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.home / "farense.db"

    @property
    def models(self) -> Path:
        """Where converted and downloaded models are kept."""
        return self.home / "models"

    @property
    def revisions(self) -> Path:
        """Where trained revisions are kept."""
        return self.home / "revisions"

    def is_admin(self, fan_key: str) -> bool:
        """Whether this fan may give admin commands; nobody when the list is empty."""
        return fan_key in self.admins


def load_settings(home: Path | None = None, **given: Any) -> Settings:
    """Read the settings for a state folder; `given` values win over every other source.

    Raises ValidationError, SettingsError, TOMLDecodeError, UnicodeDecodeError, OSError,
    RuntimeError (a home of nobody), SecretInToml or UnknownSetting.
    """
    folder = (home or default_home()).expanduser().absolute()

    _check_names({**dotenv_values(folder / ".env"), **dotenv_values(".env"), **os.environ})

    class Here(Settings):
        """The settings with the files of this state folder."""

        model_config = SettingsConfigDict(
            env_file=(folder / ".env", ".env"), toml_file=folder / "farense.toml"
        )

    return Here(home=folder, **given)


def _check_toml(data: dict[str, Any]) -> None:
    for section, name in SECRETS:
        found = data.get(section)
        if isinstance(found, dict) and name in found:
            raise SecretInToml(f"{section}.{name}")
    for name in data:
        if name not in Settings.model_fields:
            raise UnknownSetting(name)


def _check_names(environment: Mapping[str, str | None]) -> None:
    for name in environment:
        if name.upper().startswith("FARENSE_"):
            section = name[len("FARENSE_") :].lower().split("__")[0]
            if section not in Settings.model_fields:
                raise UnknownSetting(name)
