"""How much of a prompt to read between two steps of the answers that are being written."""

from __future__ import annotations

PATIENCE = 1.25  # of its normal steps: how much longer an answer waits for somebody's prompt
LEAST = 8  # tokens: with fewer, reading the weights costs more than the tokens
FIRST_SHARE = 4  # of the whole chunk, before anything was measured
SMOOTHING = 0.25


class Pacer:
    """Learns what a step and a prompt token cost here, and sizes the chunks accordingly."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._step: float | None = None
        self._token: float | None = None

    def chunk(self, *, writing: bool) -> int:
        """Prompt tokens to read next; all that is allowed while nobody else waits."""
        if not writing:
            return self._most
        if not self._step or not self._token:
            return max(LEAST, self._most // FIRST_SHARE)
        return max(LEAST, min(self._most, int(PATIENCE * self._step / self._token)))

    def note(self, chunk: int, seconds: float) -> None:
        """A step took this long, together with this many prompt tokens."""
        if chunk == 0:
            self._step = _blend(self._step, seconds)
        elif self._step:
            self._token = _blend(self._token, max(0.0, seconds - self._step) / chunk)


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + SMOOTHING * (new - old)
