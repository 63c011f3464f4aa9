"""Write docs/configuration.md from the settings themselves; `--check` only compares."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from config.settings import Settings

TARGET = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
HEAD = """# Configuration

Everything has a default. A setting is looked for on the command line, in the environment, in a file
`.env` in the folder where the bot is started, in `.env` in the state folder, and in `farense.toml`
in the state folder; the first one found counts. In TOML the sections are tables, e.g. `[web]`
`port = 9000`. Tokens and passwords may stand in the environment or in an `.env` file of your own
(`chmod 600 .env`) and nowhere else.

This page is made from `config/settings.py` by `tools/docs.py`.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## General\n", _table(Settings, "FARENSE_", top=True)]
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            title = (section.__doc__ or name).strip().rstrip(".")
            parts += [f"## {title}\n", _table(section, f"FARENSE_{name.upper()}__", top=False)]
    return "\n".join(parts)


def _table(model: type[BaseModel], prefix: str, *, top: bool) -> str:
    rows = ["| name | default | meaning |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        if not (top and is_section):
            rows.append(f"| `{prefix}{name.upper()}` | {_default(field)} | {field.description} |")
    return "\n".join(rows) + "\n"


def _default(field: FieldInfo) -> str:
    value: Any = field.default
    if field.default_factory is not None:
        return "the system's place for application data"
    if value is None or value == () or isinstance(value, SecretStr):
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def main() -> None:
    """Write the page, or say whether it is current."""
    if "--check" in sys.argv:
        sys.exit(TARGET.read_text(encoding="utf-8") != page())
    TARGET.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
