"""A bounded queue that is fair between fans: each fan has a turn before anybody has a second one.

Pure Python, no locks, no clock: whoever owns it calls it from one thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Generic, Protocol, TypeVar


class Ticket(Protocol):
    """What can wait here."""

    @property
    def id(self) -> str:
        """Unique among those that wait."""
        ...

    @property
    def fan(self) -> str:
        """Whose turn it takes."""
        ...


T = TypeVar("T", bound=Ticket)


class FairQueue(Generic[T]):
    """Round-robin between fans, first come first served for each of them."""

    def __init__(self, limit: int, per_fan: int) -> None:
        self._limit = limit
        self._per_fan = per_fan
        self._size = 0
        self._turns: dict[str, deque[T]] = {}  # in the order of the fans' turns

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        """Those who wait, in the order in which they will be taken."""
        rounds = zip_longest(*self._turns.values())
        return (ticket for turn in rounds for ticket in turn if ticket is not None)

    def put(self, ticket: T) -> bool:
        """Add to the end of the fan's line; False when it or the whole queue is full."""
        line = self._turns.get(ticket.fan, ())
        if self._size >= self._limit or len(line) >= self._per_fan:
            return False
        self._turns.setdefault(ticket.fan, deque()).append(ticket)
        self._size += 1
        return True

    def peek(self, ready: Callable[[T], bool]) -> T | None:
        """The next one that is ready. A fan who has nothing ready keeps the turn for later."""
        return next((ticket for ticket in self._in_turn() if ready(ticket)), None)

    def take(self, ticket: T) -> None:
        """Remove the one that is served now; its fan's turn ends."""
        self.remove(ticket)
        if ticket.fan in self._turns:
            self._turns[ticket.fan] = self._turns.pop(ticket.fan)

    def remove(self, ticket: T) -> bool:
        """Take one out of the middle; False when it does not wait here."""
        line = self._turns.get(ticket.fan)
        if line is None or ticket not in line:
            return False
        line.remove(ticket)
        self._size -= 1
        if not line:
            del self._turns[ticket.fan]
        return True

    def _in_turn(self) -> Iterator[T]:
        return (ticket for line in self._turns.values() for ticket in line)
