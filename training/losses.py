"""What is made small: the loss of answers (SFT), and of votes (KTO).

Both are sums in float32, so that passes of different size can be added up and divided once.
KTO: Ethayarajh et al. 2024, arXiv 2402.01306, as TRL and HALOs compute it; without `z0` it is
TRL's `apo_zero_unpaired` (D'Oosterlinck et al. 2024, arXiv 2408.06266).
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx

Arrays = dict[str, Any]

RATIO = 4 / 3  # liked : disliked, by weight, is kept between 1 and this


def sft(log_probs: Any, batch: Arrays) -> Any:
    """Minus the log-probability of all completion tokens."""
    return -(log_probs * batch["weights"]).sum()


def by_row(log_probs: Any, batch: Arrays) -> Any:
    """The log-probability of each row's completion (rows,)."""
    rows = mx.arange(batch["liked"].shape[0])[:, None]
    return ((batch["owner"][None] == rows) * (log_probs * batch["weights"])[None]).sum(axis=1)


def balance(liked: int, disliked: int) -> tuple[float, float]:
    """Weights of liked and disliked answers; 1 and 1 where there is only one kind."""
    if not liked or not disliked:
        return 1.0, 1.0
    if liked < disliked:
        return disliked / liked, 1.0
    return 1.0, max(1.0, liked / (disliked * RATIO))


def divergence(policy: Any, reference: Any) -> Any:
    """z0: how far the policy is from the reference on mismatched pairs, no gradient through it.

    One pair says nothing: the loss is taken without it then.
    """
    if policy.shape[0] < 2:  # noqa: PLR2004 (a mean needs two)
        return mx.array(0.0)
    return mx.stop_gradient(mx.maximum((policy - reference).mean(), 0.0))


def kto(policy: Any, reference: Any, batch: Arrays, z0: Any, settings: Any) -> Any:
    """The sum over rows; `settings` holds beta and the weights of liked and disliked rows."""
    beta, gain, loss = settings[0], settings[1], settings[2]
    ahead = beta * (policy - reference - z0)
    liked = batch["liked"]
    return (liked * gain * (1 - mx.sigmoid(ahead))).sum() + (
        (1 - liked) * loss * (1 - mx.sigmoid(-ahead))
    ).sum()
