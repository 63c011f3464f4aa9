"""The guide that travels with a revision: how to load it elsewhere, made from its metadata."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

FILE = "INTEGRATION_GUIDE.md"


def integration_guide(name: str, metadata: Mapping[str, Any], form: str | None = None) -> str:
    """The Markdown of a revision's own guide, or of the one in a folder of an export format."""
    source = (files("training") / "data" / "integration_guide.md.j2").read_text("utf-8")
    environment = Environment(
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 (Markdown of our own values, no HTML)
        keep_trailing_newline=True,
        trim_blocks=True,
    )
    return environment.from_string(source).render(name=name, form=form, **metadata)
