"""A model while it is trained: one pass over a batch, and its log-probabilities.

The persona stands before every text. It is read once a batch, and all rows attend to it: the same
gradient as with a copy for each row, for less than half of the work. On a CPU, exponentials are
powers of two (see `engine.attention`), each with its gradient written out.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import mlx.core as mx
from mlx_lm.models import activations
from mlx_lm.models.cache import KVCache, make_prompt_cache

from engine.attention import ACTIVATION, ATTENTION, LOG2_E, on_cpu
from engine.attention import swiglu as serving_swiglu
from engine.rows import FAULTS, PROBE_TOLERANCE, halves

Arrays = dict[str, Any]


class Shared:
    """What every layer takes for its cache: where each token stands, and who sees whom."""

    def __init__(self, places: Any, prefix: int, rows: int) -> None:
        self.offset = places
        self.prefix = prefix
        self.rows = rows

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Nothing is kept: a pass sees whole texts."""
        return keys, values

    def make_mask(self, *_: object, **__: object) -> None:
        """Attention has its own."""


class Network:
    """A model within `training_on`."""

    def __init__(self, model: Any, prefix: int) -> None:
        self.model = model
        self._halves = halves(model)
        self._depth = len(model.layers)
        self.prefix = prefix

    def log_probs(self, batch: Arrays) -> Any:
        """Of each target, in float32 (targets,)."""
        rows = batch["liked"].shape[0]
        body, head = self._halves or (self.model, None)
        if self.prefix:
            caches = [Shared(batch["places"], self.prefix, rows)] * self._depth
            out = body(batch["tokens"][:, None], cache=caches)
        else:
            out = body(batch["tokens"].reshape(rows, -1))
        out = out.reshape(-1, out.shape[-1])[batch["where"]]
        return log_softmax_at(head(out) if head else out, batch["targets"])


@contextmanager
def training_on(model: Any, prefix: int, *, checkpoint: bool) -> Iterator[Network]:
    """Put our attention and activation into the model's modules while it is trained.

    The prefix is shared where this architecture lets it be.
    """
    with ExitStack() as stack:
        _install(model, stack)
        if checkpoint:
            _recompute(model, stack)
        yield Network(model, prefix)


def can_share(model: Any) -> bool:
    """Whether rows that share their beginning come out as each does alone."""
    if not all(type(cache) is KVCache for cache in make_prompt_cache(model)):
        return False
    with ExitStack() as stack:
        _install(model, stack)
        places = mx.array([0, 1, 2, 3, 2, 3])
        caches = [Shared(places, 2, 2)] * len(model.layers)
        try:
            together = model(mx.array([5, 6, 7, 8, 9, 4])[:, None], cache=caches)[:, 0]
            alone = model(mx.array([[5, 6, 7, 8], [5, 6, 9, 4]]))
        except FAULTS:
            return False
        wanted = mx.concatenate([alone[0], alone[1, 2:]])
        far = mx.abs(together - wanted).max()
        return bool((far <= PROBE_TOLERANCE * mx.abs(wanted).max()).item())


def _install(model: Any, stack: ExitStack) -> None:
    for module in {sys.modules[type(part).__module__] for _, part in model.named_modules()}:
        before = getattr(module, ATTENTION, None)
        if before is not None:
            _replace(module, ATTENTION, _make_attend(before), stack)
        if on_cpu() and getattr(module, ACTIVATION, None) in {activations.swiglu, serving_swiglu}:
            _replace(module, ACTIVATION, swiglu, stack)


def _replace(module: Any, name: str, new: Any, stack: ExitStack) -> None:
    stack.callback(setattr, module, name, getattr(module, name))
    setattr(module, name, new)


def _make_attend(before: Callable[..., Any]) -> Callable[..., Any]:
    def attend(  # noqa: PLR0917 (mlx-lm's signature)
        queries: Any, keys: Any, values: Any, cache: Any, scale: float, mask: Any, sinks: Any = None
    ) -> Any:
        if isinstance(cache, Shared):
            return _attend_shared(queries * scale, keys, values, cache)
        if on_cpu() and cache is None and sinks is None and mask in {None, "causal"}:
            return _attend(queries * scale, [(keys, values)])
        return before(queries, keys, values, cache, scale, mask, sinks)

    return attend


def _attend_shared(queries: Any, keys: Any, values: Any, cache: Shared) -> Any:
    """Attention of tokens that stand one a row (tokens, heads, 1, width)."""
    at = cache.prefix

    def own(part: Any) -> Any:
        _, heads, _, width = part.shape
        return part[at:].reshape(cache.rows, -1, heads, width).swapaxes(1, 2)

    first = tuple(part[:at].swapaxes(0, 2) for part in (keys, values))
    prefix = _attend(queries[:at].swapaxes(0, 2), [first]).swapaxes(0, 2)
    rows = _attend(own(queries), [first, (own(keys), own(values))])
    heads, width = rows.shape[1], rows.shape[3]
    return mx.concatenate([prefix, rows.swapaxes(1, 2).reshape(-1, heads, 1, width)])


def _attend(queries: Any, parts: list[tuple[Any, Any]]) -> Any:
    """All of the first parts is seen, and of the last one what came before.

    Queries (rows, heads, tokens, width); a part's keys and values (rows or 1, groups, places,
    width).
    """
    rows, heads, tokens, width = queries.shape
    groups = parts[0][0].shape[1]
    shared = queries.reshape(rows, groups, heads // groups * tokens, width)
    scores = [(shared @ keys.swapaxes(-1, -2)).astype(mx.float32) for keys, _ in parts]
    later = mx.triu(mx.full((tokens, tokens), -math.inf), 1)
    scores[-1] = scores[-1] + mx.concatenate([later] * (heads // groups))
    weights = softmax(mx.concatenate(scores, axis=-1)).astype(queries.dtype)
    first = parts[0][1].shape[2]
    out = weights[..., :first] @ parts[0][1]
    for _, values in parts[1:]:
        out = out + weights[..., first:] @ values
    return out.reshape(rows, heads, tokens, -1)


def _exp(x: Any) -> Any:
    return mx.power(2.0, x * LOG2_E) if on_cpu() else mx.exp(x)


def _softmax(scores: Any) -> Any:
    weights = _exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def _softmax_vjp(_: Any, cotangent: Any, weights: Any) -> Any:
    weighted = cotangent * weights
    return weighted - weights * weighted.sum(axis=-1, keepdims=True)


def _swiglu_vjp(primals: Any, cotangent: Any, _: Any) -> Any:
    gate, x = primals
    sigmoid = 1 / (1 + _exp(-gate))
    silu = gate * sigmoid
    return cotangent * x * (sigmoid + silu - silu * sigmoid), cotangent * silu


def _log_softmax_at(logits: Any, targets: Any) -> Any:
    logits = logits.astype(mx.float32)
    chosen = mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    greatest = logits.max(axis=-1)
    return chosen - greatest - mx.log(_exp(logits - greatest[:, None]).sum(axis=-1))


def _log_softmax_at_vjp(primals: Any, cotangent: Any, _: Any) -> Any:
    logits, targets = primals
    rest = -softmax(logits.astype(mx.float32)) * cotangent[:, None]
    gradient = rest.at[mx.arange(targets.shape[0]), targets].add(cotangent)
    return gradient.astype(logits.dtype), mx.zeros_like(targets)


softmax: Any = mx.custom_function(_softmax)  # over the last axis
softmax.vjp(_softmax_vjp)
swiglu: Any = mx.custom_function(serving_swiglu)
swiglu.vjp(_swiglu_vjp)
# The log-probability of one target a row, in float32.
log_softmax_at: Any = mx.custom_function(_log_softmax_at)
log_softmax_at.vjp(_log_softmax_at_vjp)


def _recompute(model: Any, stack: ExitStack) -> None:
    """Let each layer keep its input only and compute the rest again for its gradient.

    The layers get a class of their own for the time; the architecture's class stays as it is.
    """
    for layer in model.layers:
        stack.callback(setattr, layer, "__class__", type(layer))
        object.__setattr__(layer, "__class__", _recomputed(type(layer)))


def _recomputed(kind: type) -> type:
    def call(self: Any, x: Any, *args: Any, **named: Any) -> Any:
        def inner(weights: Any, x: Any) -> Any:
            self.update(weights)
            return kind.__call__(self, x, *args, **named)

        return mx.checkpoint(inner)(self.trainable_parameters(), x)

    return type(kind.__name__, (kind,), {"__call__": call})
