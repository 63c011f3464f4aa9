"""Answers of like length in one buffer a layer, so that attention is one product for all of them.

Rows are aligned at their end: each step writes one place for all rows, and shorter rows have
places before them that a mask hides. A row much longer than the others stays out: everybody would
pay for its length. Joining and leaving copy one row; a step copies nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx

GROW = 64  # places that a full buffer grows by, on either side
AHEAD = 32  # places before its end at which a buffer may grow, so that not all do in one step
WASTE = 2  # times the tokens that are really there: how much padding is put up with
SMALL = 2048  # places, of all rows together, below which padding does not matter


class Pack:
    """The keys and values of rows: for each layer two buffers (slots, heads, places, width).

    Row i's tokens are the last `lengths[i]` places before `end` in slot i; what stands elsewhere
    is finite and hidden.
    """

    def __init__(self) -> None:
        self.lengths: list[int] = []
        self.end = 0
        self.mask: Any = None  # (rows, 1, 1, window), added to the scores; None without padding
        self._keys: list[Any] = []
        self._values: list[Any] = []

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(int(buffer.nbytes) for buffer in self.arrays)

    @property
    def arrays(self) -> list[Any]:
        """What has to be computed for the rows to be here."""
        return [*self._keys, *self._values]

    def accepts(self, length: int) -> bool:
        """Whether a row of this length can come in without much padding, its own or the others'."""
        lengths = [*self.lengths, length]
        places = len(lengths) * max(lengths)
        return places <= max(SMALL, WASTE * sum(lengths))

    def join(self, caches: Sequence[Any]) -> None:
        """Take in a row, as the last one; its caches, one a layer, are not needed any more."""
        length, slot = int(caches[0].offset), len(self.lengths)
        left = max(0, length - self.end)
        if not self.lengths:
            self._keys = [mx.zeros_like(cache.keys[..., :0, :]) for cache in caches]
            self._values = [mx.zeros_like(cache.values[..., :0, :]) for cache in caches]
        if left:
            self._pad(before=left + GROW)
        if slot == self._keys[0].shape[0]:
            self._pad(slots=slot)
        places = slice(self.end - length, self.end)
        for layer, cache in enumerate(caches):
            self._keys[layer][slot, :, places] = cache.keys[0, :, :length]
            self._values[layer][slot, :, places] = cache.values[0, :, :length]
        self.lengths.append(length)

    def contents(self, index: int) -> list[tuple[Any, Any]]:
        """One row's keys and values, for each layer, without padding."""
        places = slice(self.end - self.lengths[index], self.end)
        return [
            (keys[index : index + 1, :, places], values[index : index + 1, :, places])
            for keys, values in zip(self._keys, self._values, strict=True)
        ]

    def remove(self, index: int) -> None:
        """Let a row go; the last one takes its place."""
        last = len(self.lengths) - 1
        if index < last:
            for buffer in self.arrays:
                buffer[index] = buffer[last]
            self.lengths[index] = self.lengths[last]
        del self.lengths[last]
        if not self.lengths:
            self.end, self._keys, self._values = 0, [], []
        elif self.end > WASTE * max(self.lengths):
            self._shrink()

    def begin_step(self) -> None:
        """Make room for one more token of each row, and the mask for the step."""
        if not self.lengths:
            return
        self._grow()
        self.end += 1
        self.lengths = [length + 1 for length in self.lengths]
        window = max(self.lengths)
        self.mask = None
        if min(self.lengths) < window:
            first = mx.array([window - length for length in self.lengths])[:, None]
            hidden = mx.arange(window)[None] < first
            self.mask = mx.where(hidden, -float("inf"), 0.0)[:, None, None]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Undo a step that was begun, if it was: the rows hold as many tokens as that again."""
        self.end -= sum(self.lengths[:1]) - sum(lengths[:1])
        self.lengths = list(lengths)

    def write(self, layer: int, keys: Any, values: Any) -> tuple[Any, Any]:
        """Add a token's key and value (rows, heads, 1, width); all of the window's come back."""
        count, window = len(self.lengths), slice(self.end - max(self.lengths), self.end)
        for buffers, new in ((self._keys, keys), (self._values, values)):
            buffers[layer][:count, :, self.end - 1 : self.end] = new
        return self._keys[layer][:count, :, window], self._values[layer][:count, :, window]

    def _grow(self) -> None:
        """Make room for the step's tokens, a few layers at a time: copying all is a long wait."""
        few = -(-2 * len(self._keys) // AHEAD)
        for layer, buffer in enumerate(self._keys):
            spare = buffer.shape[2] - self.end
            if not spare or (few and spare <= AHEAD):
                few -= 1
                for kind in (self._keys, self._values):
                    kind[layer] = mx.pad(kind[layer], [(0, 0), (0, 0), (0, GROW), (0, 0)])

    def _shrink(self) -> None:
        """Drop places that no row needs any more."""
        first = self.end - max(self.lengths)
        for buffers in (self._keys, self._values):
            buffers[:] = [mx.contiguous(buffer[:, :, first:]) for buffer in buffers]
        self.end -= first

    def _pad(self, *, slots: int = 0, before: int = 0) -> None:
        shape = [(0, slots), (0, 0), (before, 0), (0, 0)]
        for buffers in (self._keys, self._values):
            buffers[:] = [mx.pad(buffer, shape) for buffer in buffers]
        self.end += before
