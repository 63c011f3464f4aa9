"""Text in and out: what a fan typed made safe, answers cut to fit, mentions made harmless."""

from __future__ import annotations

import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import regex

Length = Callable[[str], int]

_LINE_END = regex.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")
# A ZWJ between emoji and the tags of a flag belong to what is seen; everything else that no
# reader sees can only hide something.
_HIDDEN = regex.compile(
    r"(🏴[\U000E0020-\U000E007E]+\U000E007F)"
    r"|(?<=[\p{Extended_Pictographic}\p{Emoji_Modifier}\uFE0F])(\u200D)(?=\p{Extended_Pictographic})"
    r"|(?![\n\t\uFE00-\uFE0F])[\p{Cc}\p{Cs}\p{Default_Ignorable_Code_Point}\uFFF9-\uFFFB\p{NChar}]"
)
# Longer runs of marks are no writing, and sorting them would take quadratic time.
_MARKS = regex.compile(r"(\p{M}{16})\p{M}+")
_BLANK_LINES = regex.compile(r"\n{3,}")
_SEEN = regex.compile(r"[^\s\uFE00-\uFE0F\u2800]")


def clean(text: str) -> str:
    """Make what a fan typed safe: nothing hidden, NFC, tidy lines; "" when nothing is left."""
    text = _LINE_END.sub("\n", text)
    text = _HIDDEN.sub(r"\1\2", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", _MARKS.sub(r"\1", text))
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    text = _BLANK_LINES.sub("\n\n", lines).strip()
    return text if _SEEN.search(text) else ""


_ADDRESS = r"(?!(?<=[\w.+-]@)[\w-]+(?:\.[\w-]+)*\.\w{2,})"
_MENTION = regex.compile(rf"(?:(?<=<)@(?=[&!]?\d)|@(?=everyone|here){_ADDRESS})", regex.IGNORECASE)


def quiet_mentions(text: str) -> str:
    """Break @everyone, @here, <@id> and <@&id> with an invisible space, so that none fires."""
    return _MENTION.sub("@\u200b", text)


def utf16_length(text: str) -> int:
    """The length as Telegram counts it, in UTF-16 units."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


@dataclass(frozen=True, slots=True)
class _Fence:
    """A code block, as positions in the text, and how to open and close it elsewhere.

    `body` is after the opening line, `end` after the closing one, for an open block after the text.
    """

    start: int
    body: int
    end: int
    opening: str
    closing: str
    quote: str  # what begins each of its lines


_FENCE_LINE = regex.compile(
    r"^[ \t]*+(?P<quote>(?:>[ \t]*+)*+)(?P<item>(?:(?:[-*+]|\d{1,9}[.)])[ \t]++)*+)"
    r"(?P<mark>`{3,}+|~{3,}+)(?P<info>.*)$",
    regex.MULTILINE,
)
_UNQUOTED = regex.compile(r"^(?![ \t]*>)", regex.MULTILINE)


def _fences(text: str) -> list[_Fence]:
    """All code blocks of a text, each line judged by what stands before it only."""
    found: list[_Fence] = []
    opener: regex.Match[str] | None = None
    limit = 0
    for line in _FENCE_LINE.finditer(text):
        if opener and line.start() >= limit:
            found.append(_fence(opener, limit))
            opener = None
        if opener is None:
            if line["mark"][0] == "~" or "`" not in line["info"]:
                opener, limit = line, _quote_end(text, line)
        elif _closes(line, opener):
            found.append(_fence(opener, line.end("mark")))
            opener = None
    if opener:
        found.append(_fence(opener, limit))
    return found


def _closes(line: regex.Match[str], opener: regex.Match[str]) -> bool:
    """Whether a line of marks ends the block that `opener` began."""
    column, begun = (match.start("mark") - match.start() for match in (line, opener))
    return (
        str(line["mark"]).startswith(opener["mark"])
        and not (line["item"] + line["info"]).strip()
        and bool(line["quote"]) == bool(opener["quote"])
        and column < begun + 4
    )


def _quote_end(text: str, opener: regex.Match[str]) -> int:
    """Where a code block ends at the latest: with the quotation that it stands in."""
    if opener["quote"] and (after := _UNQUOTED.search(text, opener.end() + 1)):
        return int(after.start())
    return len(text) + 1


def _fence(opener: regex.Match[str], end: int) -> _Fence:
    quote, mark = opener["quote"], opener["mark"]
    indent = " " * (opener.start("mark") - opener.start() - len(quote))
    return _Fence(
        start=opener.end() - len(opener[0].lstrip(" \t")),
        body=opener.end() + 1,
        end=end,
        opening=f"{quote}{indent[:3]}{mark}{opener['info'].rstrip()}\n",
        closing=f"\n{quote}{indent}{mark}",
        quote=quote,
    )


# Not before what might begin a list, a heading or a quotation at the start of a piece.
_PLAIN = r"(?![\p{M}\d#>+*=~|-])"
_PARAGRAPH = regex.compile(r"\n[ \t]*\n\s*+(?!\p{M})")
_LINE = regex.compile(r"\n\s*+(?!\p{M})")
_SENTENCE = regex.compile(rf"(?<=[.!?…:;][\p{{Pe}}\p{{Pf}}\"'*_]{{0,4}})\s++{_PLAIN}")
_WORD = regex.compile(rf"\s++{_PLAIN}")
_SPACE = regex.compile(r"\s++(?!\p{M})")
_ANY_SPACE = regex.compile(r"\s*")
_GRAPHEME = regex.compile(r"\X")
# What should stay in one piece, also when its end is not in sight yet.
_INLINE = regex.compile(
    r"(?P<tick>`++)(?s:.)*?(?:(?<!`)(?P=tick)(?!`)|(?=\n[ \t]*\n)|\Z)"
    r"|!?\[[^\[\]\n]*+(?:\](?:\([^()\n]*+(?:\)|\Z))?|\Z)"
    r"|(?P<bold>\*\*|__|~~|\|\|)(?=\S)[^\n]*?(?:(?P=bold)|(?=\n)|\Z)"
)
_Spans = list[tuple[int, int]]
_Cut = tuple[int, str, int, str]  # where a piece ends, how; where the next begins, how
# A place to cut and the least part of the room that it must fill, best first.
_CUTS = ((_PARAGRAPH, 1 / 2), (_LINE, 1 / 2), (_SENTENCE, 1 / 2), (_WORD, 1 / 4))


def split(text: str, limit: int, length: Length) -> list[str]:
    """Cut CommonMark into pieces of at most `limit`, at the most sensible places.

    `length` grows with the text, by at least 1 a character. While a text grows at its end, all
    pieces but the last stay as they are. A code block that has to be cut, or is still open at the
    end, is closed there and opened anew in the next piece.
    """
    text = text.strip()
    return list(_Cutter(text, limit, length)) if text else []


class _Cutter:
    """One text being cut; all positions are indexes into it."""

    def __init__(self, text: str, limit: int, length: Length) -> None:
        self._text, self._limit, self._length = text, limit, length
        self._fences = [
            fence
            for fence in _fences(text)
            if 2 * length(fence.opening + fence.quote + fence.closing)
            <= limit  # else no room for what is in it
        ]
        self._starts = [fence.start for fence in self._fences]

    def __iter__(self) -> Iterator[str]:
        start, opening = 0, ""
        while start < len(self._text):
            end, closing, after, reopening = self._cut(start, opening)
            piece = opening + self._text[start:end] + closing
            if piece.strip():
                yield piece
            start, opening = after, reopening

    def _cut(self, start: int, opening: str) -> _Cut:
        end = len(self._text)
        still_open = self._fence_at(end)
        closing = still_open.closing if still_open else ""
        if self._window(start, opening, closing) == end:
            return end, closing, end, ""
        window = self._window(start, opening, "")
        fence = self._fence_at(window)
        if fence is None:
            return self._cut_prose(start, window)
        if fence.start > start:
            before = self._text[start : fence.start].rstrip()
            return start + len(before), "", fence.start, ""
        return self._cut_code(start, opening, fence)

    def _window(self, start: int, opening: str, closing: str) -> int:
        """The last end that a piece from `start` may have."""
        most = min(self._limit, len(self._text) - start)

        def length(size: int) -> int:
            return self._length(opening + self._text[start : start + size] + closing)

        return start + max(1, bisect_right(range(most + 1), self._limit, key=length) - 1)

    def _fence_at(self, position: int) -> _Fence | None:
        """The code block that a cut here would break."""
        index = bisect_left(self._starts, position) - 1
        return self._fences[index] if index >= 0 and self._fences[index].end > position else None

    def _cut_code(self, start: int, opening: str, fence: _Fence) -> _Cut:
        """Cut inside a code block: after a line, if need be in one."""
        text = self._text
        window = self._window(start, opening, fence.closing)
        first = max(start, fence.body) + 1
        line_end = text.rfind("\n", first, window + 1)
        if line_end >= 0:
            return line_end, fence.closing, line_end + 1, fence.opening
        reopening = fence.opening + fence.quote
        space = text.rfind(" ", (first + window) // 2, window)
        if space >= 0:
            return space, fence.closing, space + 1, reopening
        cut = self._whole_grapheme(start, window)
        return cut, fence.closing, cut, reopening

    def _cut_prose(self, start: int, window: int) -> _Cut:
        """Cut outside code blocks: at the best place that breaks nothing, else at any."""
        text, room = self._text, window - start
        blocks = self._blocks(start, window)
        inline = self._inline(start, window, blocks)
        stop = self._skip_space(window) + 1  # no pattern looks further
        attempts = [(inline + blocks, *cut) for cut in _CUTS]
        attempts += [(inline + blocks, _SPACE, 1 / 4), (blocks, _WORD, 1 / 4), (blocks, _SPACE, 0)]
        for whole, pattern, share in attempts:
            for place in reversed(list(pattern.finditer(text, start, stop))):
                cut = place.start()
                if cut > window:
                    continue
                if cut < start + max(1, room * share):
                    break
                if not any(begin < cut < end for begin, end in whole):
                    return start + len(text[start:cut].rstrip()), "", place.end(), ""
        cut = self._whole_grapheme(start, window)
        return cut, "", cut, ""

    def _blocks(self, start: int, window: int) -> _Spans:
        """The code blocks between two positions, and the one that `start` is in."""
        first = max(0, bisect_left(self._starts, start) - 1)
        last = bisect_left(self._starts, window)
        return [(fence.start, fence.end) for fence in self._fences[first:last]]

    def _inline(self, start: int, window: int, blocks: _Spans) -> _Spans:
        """Code, links and bold text between the code blocks."""
        begins = [start, *(end for _, end in blocks)]
        ends = [*(begin for begin, _ in blocks), window + 1]
        return [
            match.span()
            for begin, end in zip(begins, ends, strict=True)
            for match in _INLINE.finditer(self._text, begin, max(begin, end))
        ]

    def _skip_space(self, position: int) -> int:
        """The next place that is not white space."""
        space = _ANY_SPACE.match(self._text, position)
        return int(space.end()) if space else position

    def _whole_grapheme(self, start: int, window: int) -> int:
        """The last place up to `window` that is not inside what a reader sees as one character."""
        ends = [match.end() for match in _GRAPHEME.finditer(self._text, start, window + 1)]
        fitting = [end for end in ends if end <= window]
        return fitting[-1] if fitting else window


def with_quote(text: str, quoted: str | None) -> str:
    """The fan's words with the message they reply to above them, as a quote."""
    if not quoted:
        return text
    return "\n".join(f"> {line}" for line in quoted.splitlines()) + f"\n\n{text}"
