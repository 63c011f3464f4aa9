"""Attention over rows of every kind in one pass, put into mlx-lm's models in place of their own.

In a pass the linear layers see all tokens alike: one of each answer that is being written, and
pieces of the prompts that are being read. Attention is where they part: the pack's answers in one
product, every other row over what it really holds.

On a CPU it also avoids `mx.exp`, which is computed there one number at a time, in 8.5 ns where a
power of two takes 2.9 (measured on x86-64, mlx 0.32.4) and was half of the time of a long prompt.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models import activations, base

from engine.pack import Pack

ATTENTION, ACTIVATION = "scaled_dot_product_attention", "swiglu"
LOG2_E = math.log2(math.e)


class LayerCaches:
    """What one layer of the model takes for its cache: the pack's rows, then `parts`.

    A part is a row's own cache and how many of the pass's tokens are that row's. Tokens stand one
    a row in the batch dimension, so that each has its own place; what comes after them is filling.
    """

    def __init__(
        self, layer: int, pack: Pack, parts: Sequence[tuple[Any, int]], offsets: Any
    ) -> None:
        self._layer = layer
        self._pack = pack
        self.count = len(pack)
        self._parts = parts
        self.offset = offsets
        self.mask = pack.mask
        self.packed: tuple[Any, Any] | None = None
        self.rows: list[tuple[int, tuple[Any, Any]]] = []

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Give each row its new keys and values; `attend` reads the rows from here."""
        at = self.count
        if at:
            self.packed = self._pack.write(self._layer, keys[:at], values[:at])
        for cache, count in self._parts:
            new = (part[at : at + count].swapaxes(0, 2) for part in (keys, values))
            self.rows.append((count, cache.update_and_fetch(*new)))
            at += count
        return keys, values

    def make_mask(self, *_: object, **__: object) -> None:
        """The pack has its own mask, and a part sees everything before it."""


def on_cpu() -> bool:
    """Whether this is where MLX's exponential is slow, and nobody computes ahead."""
    return bool(mx.default_device() == mx.Device(mx.cpu))


def install(model: Any) -> None:
    """Put our attention into the modules of a model, and on a CPU the faster activation too."""
    attend = make_attend(base.scaled_dot_product_attention, cpu=on_cpu())
    for module in {sys.modules[type(part).__module__] for _, part in model.named_modules()}:
        if getattr(module, ATTENTION, None) is base.scaled_dot_product_attention:
            setattr(module, ATTENTION, attend)
        if on_cpu() and getattr(module, ACTIVATION, None) is activations.swiglu:
            setattr(module, ACTIVATION, swiglu)


def make_attend(original: Callable[..., Any], *, cpu: bool) -> Callable[..., Any]:
    """Attention that knows `LayerCaches`; `original` for what we cannot do better."""

    def one(queries: Any, kv: tuple[Any, Any], scale: float, mask: Any, sinks: Any) -> Any:
        if cpu and sinks is None:
            return _attend_grouped(queries * (scale * LOG2_E), *kv, mask)
        if isinstance(mask, mx.array):
            mask = mask.astype(queries.dtype)
        return mx.fast.scaled_dot_product_attention(
            queries, *kv, scale=scale, mask=mask, sinks=sinks
        )

    def attend(  # noqa: PLR0917 (mlx-lm's signature)
        queries: Any,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: Any = None,
    ) -> Any:
        if not isinstance(cache, LayerCaches):
            plain = cpu and not hasattr(cache, "bits") and not isinstance(mask, mx.array)
            if plain and sinks is None:
                return one(queries, (keys, values), scale, mask, sinks)
            return original(queries, keys, values, cache, scale, mask, sinks)
        done = []
        at = cache.count
        if cache.packed:
            done.append(one(queries[:at], cache.packed, scale, cache.mask, sinks))
        for count, kv in cache.rows:
            part = queries[at : at + count].swapaxes(0, 2)
            hidden = "causal" if count > 1 else None
            done.append(one(part, kv, scale, hidden, sinks).swapaxes(0, 2))
            at += count
        if surplus := queries.shape[0] - at:  # rows that only fill a tile
            done.append(mx.zeros((surplus, *done[0].shape[1:]), done[0].dtype))
        return mx.concatenate(done) if len(done) > 1 else done[0]

    return attend


def _attend_grouped(queries: Any, keys: Any, values: Any, mask: Any) -> Any:
    """For the CPU: one product for all heads that share a key, instead of one for each head.

    Queries (rows, heads, tokens, width), in powers of two; keys and values (rows, groups, places,
    width); the mask is added to the scores, or "causal".
    """
    rows, heads, tokens, width = queries.shape
    groups = keys.shape[1]
    shared = queries.reshape(rows, groups, heads // groups * tokens, width)
    scores = (shared @ keys.swapaxes(-1, -2)).astype(mx.float32)
    if isinstance(mask, mx.array):
        scores = scores + mask
    elif mask == "causal" and tokens > 1:
        later = mx.triu(mx.full((tokens, tokens), -math.inf), 1)
        hidden = mx.concatenate([later] * (heads // groups))
        scores[..., -tokens:] = scores[..., -tokens:] + hidden
    weights = mx.power(2.0, scores - scores.max(axis=-1, keepdims=True))
    sums = weights.sum(axis=-1, keepdims=True)
    return (
        ((weights.astype(values.dtype) @ values) / sums)
        .astype(queries.dtype)
        .reshape(rows, heads, tokens, -1)
    )


def swiglu(gate: Any, x: Any) -> Any:
    """mlx-lm's activation, silu(gate) * x, with a power of two for its exponential."""
    return gate * x / (1 + mx.power(2.0, gate * -LOG2_E))
