"""Whether fans like a revision less than the one before it: votes, and what chance may do."""

from __future__ import annotations

import numpy as np

LEAST = 20  # votes on each side, below which nothing is said
SURE = 0.99
DRAWS = 20_000

Votes = tuple[int, int]  # up, down


def dropped(before: Votes, now: Votes) -> bool:
    """Whether the share of likes fell, but for one chance in a hundred (Beta posteriors)."""
    if sum(before) < LEAST or sum(now) < LEAST:
        return False
    random = np.random.default_rng(7)
    then, since = (random.beta(1 + up, 1 + down, DRAWS) for up, down in (before, now))
    return bool((since < then).mean() >= SURE)


def percent(votes: Votes) -> int:
    """The share of likes, in percent."""
    return round(100 * votes[0] / max(1, sum(votes)))
