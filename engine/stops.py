"""From tokens to the text that is shown, up to the first stop text, wherever the chunks are cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"  # what half a character decodes to


class Detokenizer(Protocol):
    """What we use of mlx-lm's streaming detokenizers."""

    @property
    def last_segment(self) -> str:
        """The text that was completed since it was last read."""
        ...

    def add_token(self, token: int) -> None:
        """Take one more token."""
        ...

    def finalize(self) -> None:
        """Complete what is left."""
        ...


class Writer:
    """The text of one answer."""

    def __init__(self, detokenizer: Detokenizer, stops: Sequence[str]) -> None:
        self._detokenizer = detokenizer
        self._filter = StopFilter(stops)

    def add(self, token: int) -> tuple[str, bool]:
        """Take one more token; give back what may be shown, and whether a stop text was met."""
        self._detokenizer.add_token(token)
        return self._filter.push(self._detokenizer.last_segment)

    def finish(self) -> str:
        """The rest, now that no more tokens come, without half a character at the end."""
        self._detokenizer.finalize()
        text, stopped = self._filter.push(self._detokenizer.last_segment)
        return text if stopped else (text + self._filter.flush()).rstrip(REPLACEMENT)


class StopFilter:
    """Lets text through, but nothing that is, or may become, part of a stop text.

    Of several stop texts the one complete first counts; of two complete at once, the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next chunk; give back what may be shown, and whether a stop text was met."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        hold = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold], False

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next(size for size in range(longest, -1, -1) if text.endswith(stop[:size]))
