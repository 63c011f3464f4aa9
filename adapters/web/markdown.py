"""CommonMark to HTML that is safe in our page: no raw HTML, no images, no foreign link schemes."""

from __future__ import annotations

import re
from collections.abc import MutableMapping, Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererProtocol
from markdown_it.token import Token
from markdown_it.utils import OptionsDict

_LINK = re.compile(r"(https?://|mailto:)[^\s]", re.IGNORECASE)


class _Parser(MarkdownIt):
    """Chat Markdown: tables and line breaks as in chats, links only to the web and to mail."""

    def __init__(self) -> None:
        super().__init__("js-default", {"breaks": True})
        self.disable("image")  # a picture would tell its server that it was seen
        self.add_render_rule("link_open", _link)
        self.add_render_rule("th_open", _cell)
        self.add_render_rule("td_open", _cell)
        self.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
        self.add_render_rule("table_close", lambda *_: "</table></div>\n")
        self.add_render_rule("fence", _code)
        self.add_render_rule("code_block", _code)

    def validateLink(self, url: str) -> bool:  # noqa: N802 (the library's name)
        return _LINK.match(url) is not None


def _plain(
    renderer: RendererProtocol, tokens: Sequence[Token], index: int, options: OptionsDict
) -> str:
    return str(renderer.renderToken(tokens, index, options, {}))  # type: ignore[attr-defined]  # only the HTML renderer has it


def _link(
    renderer: RendererProtocol,
    tokens: Sequence[Token],
    index: int,
    options: OptionsDict,
    _env: MutableMapping[str, Any],
) -> str:
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    tokens[index].attrSet("target", "_blank")
    return _plain(renderer, tokens, index, options)


def _cell(
    renderer: RendererProtocol,
    tokens: Sequence[Token],
    index: int,
    options: OptionsDict,
    _env: MutableMapping[str, Any],
) -> str:
    """Alignment as a class: the page's policy allows no inline style."""
    style = str(tokens[index].attrs.pop("style", ""))
    if style:
        tokens[index].attrSet("class", style.removeprefix("text-align:"))
    return _plain(renderer, tokens, index, options)


def _code(
    _renderer: RendererProtocol,
    tokens: Sequence[Token],
    index: int,
    _options: OptionsDict,
    _env: MutableMapping[str, Any],
) -> str:
    """A frame around the code: the page hangs its copy button there."""
    return f'<div class="code"><pre><code>{escapeHtml(tokens[index].content)}</code></pre></div>\n'


_PARSER = _Parser()


def render(text: str) -> str:
    """The HTML of a message."""
    return str(_PARSER.render(text))
