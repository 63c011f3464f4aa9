"""A report as one HTML file: pictures inside, readable on a phone, light and dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt

_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}
_PICTURE = re.compile(r'<img src="(?P<file>[\w-]+\.\w+)"')
_ARROW = {"▲": "better", "▼": "worse"}


def page(report: Path, language: str) -> str:
    """The HTML of a Markdown file whose pictures lie beside it. Raises OSError."""
    markdown = report.read_text("utf-8")
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    body = _PICTURE.sub(_inside(report.parent), body)
    for arrow, kind in _ARROW.items():
        body = body.replace(arrow, f'<b class="{kind}">{arrow}</b>')
    body = body.replace("<table>", '<div class="table"><table>').replace(
        "</table>", "</table></div>"
    )
    source = (files("training") / "data" / "page.html.j2").read_text("utf-8")
    template = Environment(undefined=StrictUndefined, autoescape=True).from_string(source)
    title = markdown.splitlines()[0].removeprefix("# ")
    return template.render(title=title, language=language, body=body)


def _inside(folder: Path) -> Callable[[re.Match[str]], str]:
    """Puts a picture's bytes in the place of its name; the drawn one where there are both."""

    def put(found: re.Match[str]) -> str:
        file = folder / found["file"]
        drawn = file.with_suffix(".svg")
        file = drawn if drawn.is_file() else file
        data = base64.b64encode(file.read_bytes()).decode()
        return f'<img src="data:{_TYPES[file.suffix]};base64,{data}"'

    return put
