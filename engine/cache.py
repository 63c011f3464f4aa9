"""What the model has already read: KV caches of personas and conversations, within a byte budget.

Knows nothing of MLX: a `Kv` is whatever can be measured, shortened and copied. Keys carry the
content hash of the revision, so nothing computed with one set of weights is used with another.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, Self, TypeVar

PINNED_LIMIT = 16  # personas are few: more means that they changed, and the oldest may go


class Kv(Protocol):
    """The keys and values of a run of tokens, for all layers."""

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        ...

    def trim(self, length: int) -> bool:
        """Keep only the first `length` tokens; False when this kind of cache cannot."""
        ...

    def copy(self) -> Self:
        """Share the contents; what is added to the one is not seen by the other."""
        ...


K = TypeVar("K", bound=Kv)


@dataclass(frozen=True, slots=True)
class Entry(Generic[K]):
    """The tokens that were read, and what the model remembers of them."""

    tokens: tuple[int, ...]
    kv: K


class PrefixCache(Generic[K]):
    """Pinned persona prefixes, never evicted, and conversations, least recently used first out."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._limit = budget
        self._pinned: OrderedDict[tuple[str, tuple[int, ...]], K] = OrderedDict()
        self._talks: OrderedDict[tuple[str, str], Entry[K]] = OrderedDict()

    @property
    def nbytes(self) -> int:
        """Memory held by everything kept here."""
        held = sum(entry.kv.nbytes for entry in self._talks.values())
        return held + sum(kv.nbytes for kv in self._pinned.values())

    def take(
        self, digest: str, conversation: str, tokens: Sequence[int], pinned: int
    ) -> Entry[K] | None:
        """The longest known beginning of a prompt, always at least one token short of it.

        A conversation's entry is handed over, not shared: put it back when the answer ends. It
        stays where the persona's prefix is the better match, since the answer will replace it.
        """
        usable = len(tokens) - 1
        entry = self._talks.get((digest, conversation))
        length = min(common_prefix(entry.tokens, tokens), usable) if entry else 0
        prefix = tuple(tokens[:pinned])
        persona = self._pinned.get((digest, prefix)) if 0 < pinned <= usable else None
        if entry and length > (pinned if persona else 0):
            del self._talks[digest, conversation]
            if entry.kv.trim(length):
                return Entry(entry.tokens[:length], entry.kv)
        return Entry(prefix, persona.copy()) if persona else None

    def put(self, digest: str, conversation: str, entry: Entry[K]) -> None:
        """Remember a conversation as the one used last."""
        self._talks[digest, conversation] = entry
        self._talks.move_to_end((digest, conversation))
        self._evict()

    def is_pinned(self, digest: str, prefix: tuple[int, ...]) -> bool:
        """Whether this persona's prefix was read already."""
        return (digest, prefix) in self._pinned

    def pin(self, digest: str, prefix: tuple[int, ...], kv: K) -> None:
        """Remember a persona's prefix for good."""
        self._pinned[digest, prefix] = kv
        if len(self._pinned) > PINNED_LIMIT:
            self._pinned.popitem(last=False)
        self._evict()

    def leave_room(self, running: int) -> None:
        """Keep within the budget together with `running` bytes held by running answers."""
        self._limit = max(0, self._budget - running)
        self._evict()

    def forget(self, digest: str) -> None:
        """Drop everything that was computed with one revision."""
        for key in [key for key in self._talks if key[0] == digest]:
            del self._talks[key]
        for pin in [pin for pin in self._pinned if pin[0] == digest]:
            del self._pinned[pin]

    def _evict(self) -> None:
        excess = self.nbytes - self._limit
        while excess > 0 and self._talks:
            _, entry = self._talks.popitem(last=False)
            excess -= entry.kv.nbytes


def common_prefix(left: Sequence[int], right: Sequence[int]) -> int:
    """How many leading tokens two prompts share."""
    length = min(len(left), len(right))
    return next((i for i in range(length) if left[i] != right[i]), length)
