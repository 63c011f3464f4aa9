"""CommonMark to Discord's Markdown: what Discord cannot show is turned into what it can.

Discord has no tables, images, rules or headings below the third level, reads `__` as underline and
`||` as spoiler, and knows no fence longer than three marks. Text that only looks like markup is
escaped, so nothing a fan or the model writes can break the rest.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable

import discord
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

from bot.text import quiet_mentions

RULE = "───────"
_PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])
_LANGUAGE = re.compile(r"[A-Za-z0-9_+.#-]+")
_WRAPS = {"em": "*", "strong": "**", "s": "~~"}
_DEEPEST_HEADING = 3


@functools.lru_cache(maxsize=512)
def render(text: str) -> str:
    """Write CommonMark as Discord shows it best, with mass mentions made inert."""
    return quiet_mentions(_blocks(SyntaxTreeNode(_PARSER.parse(text)).children))


def _blocks(nodes: Iterable[SyntaxTreeNode]) -> str:
    """Render blocks one below the other, with a blank line where CommonMark has a gap."""
    written = ""
    previous: SyntaxTreeNode | None = None
    for node in nodes:
        block = _block(node)
        if not block:
            continue
        if previous is not None:
            written += "\n" if _tight(previous, node) else "\n\n"
        written += block
        previous = node
    return written


def _tight(previous: SyntaxTreeNode, node: SyntaxTreeNode) -> bool:
    """Whether two blocks touch: Discord itself puts room around headings and code."""
    if node.parent is not None and node.parent.type == "list_item":
        return True
    if previous.type == "heading" or {previous.type, node.type} & {"fence", "table"}:
        return True
    return (
        node.type.endswith("_list")
        and previous.map is not None
        and (node.map is not None and previous.map[1] == node.map[0])
    )


def _block(node: SyntaxTreeNode) -> str:
    if write := _BLOCKS.get(node.type):
        return write(node)
    return _inline(node.children)


def _heading(node: SyntaxTreeNode) -> str:
    level, text = int(node.tag[1:]), _inline(node.children)
    return f"{'#' * level} {text}" if level <= _DEEPEST_HEADING else f"**{text}**"


def _code(content: str, info: str) -> str:
    word = (info.split() or [""])[0]
    language = word if _LANGUAGE.fullmatch(word) else ""
    inside = content.rstrip("\n").replace("```", "``\u200b`")
    return f"```{language}\n{inside}\n```" if inside.strip() else ""


def _list(node: SyntaxTreeNode) -> str:
    number = int(node.attrs.get("start", 1)) if node.type == "ordered_list" else None
    items = []
    for item in node.children:
        marker = "- " if number is None else f"{number}. "
        number = None if number is None else number + 1
        items.append(marker + _blocks(item.children).replace("\n", "\n" + " " * len(marker)))
    return "\n".join(items)


def _quote(node: SyntaxTreeNode) -> str:
    """Put a quotation's mark before each line; Discord has no quotation within a quotation."""
    lines = _blocks(node.children).split("\n")
    return "\n".join(line if line.startswith("> ") else f"> {line}" for line in lines)


def _table(node: SyntaxTreeNode) -> str:
    """Set a table in columns of a code block."""
    rows = [
        [_plain(cell.children) for cell in row.children]
        for part in node.children
        for row in part.children
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["─" * width for width in widths])
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
    return _code("\n".join(lines), "")


def _plain(nodes: Iterable[SyntaxTreeNode]) -> str:
    """The words alone, for places that show no markup."""
    return "".join(
        " " if node.type in {"softbreak", "hardbreak"} else node.content if not node.children
        else _plain(node.children)
        for node in nodes
    )  # fmt: skip


def _inline(nodes: Iterable[SyntaxTreeNode]) -> str:
    return "".join(_span(node) for node in nodes)


def _span(node: SyntaxTreeNode) -> str:
    if mark := _WRAPS.get(node.type):
        return f"{mark}{_inline(node.children)}{mark}"
    if write := _SPANS.get(node.type):
        return write(node)
    return _inline(node.children) if node.children else _escape(node.content)


def _code_span(node: SyntaxTreeNode) -> str:
    content = node.content
    if "`" not in content:
        return f"`{content}`"
    inside = content.replace("``", "`\u200b`")
    return f"`` {inside} ``"


def _link(node: SyntaxTreeNode) -> str:
    words = _plain(node.children)
    return _masked(_inline(node.children), words, str(node.attrs["href"]))


def _image(node: SyntaxTreeNode) -> str:
    words = _plain(node.children)
    return _masked(_escape(words), words, str(node.attrs["src"]))


def _masked(shown: str, words: str, address: str) -> str:
    """A masked link where the address is one of the web's; else what stood there."""
    if not address.startswith(("http://", "https://")):
        return f"{shown} ({_escape(address)})" if address and address != words else shown
    if not words or words == address:
        return address
    return f"[{shown}](<{address}>)" if ")" in address else f"[{shown}]({address})"


def _escape(text: str) -> str:
    """Make text that looks like markup show as it is."""
    return discord.utils.escape_markdown(text)


_BLOCKS: dict[str, Callable[[SyntaxTreeNode], str]] = {
    "heading": _heading,
    "fence": lambda node: _code(node.content, node.info),
    "code_block": lambda node: _code(node.content, ""),
    "bullet_list": _list,
    "ordered_list": _list,
    "blockquote": _quote,
    "table": _table,
    "hr": lambda _: RULE,
    "html_block": lambda node: _escape(node.content.strip()),
}
_SPANS: dict[str, Callable[[SyntaxTreeNode], str]] = {
    "code_inline": _code_span,
    "softbreak": lambda _: "\n",
    "hardbreak": lambda _: "\n",
    "link": _link,
    "image": _image,
}
