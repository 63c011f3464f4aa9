"""Running several answers through the model at once, each with a KV cache of its own.

mlx-lm's batch caches pad all rows to the longest and copy everything when a row joins or leaves:
one long prompt then stalls every short answer. Here the linear layers see all rows together, and
only attention goes row by row over what that row really holds. Joining and leaving cost nothing.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache, can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

ATTENTION = "scaled_dot_product_attention"
PROBE_TOLERANCE = 0.05  # of the largest logit: half precision rounds, a wrong cache is far off


class LayerCaches:
    """What one layer of the model takes for its cache: the same layer's caches of all rows."""

    def __init__(self, caches: Sequence[Any], offsets: Any) -> None:
        self._caches = caches
        self.offset = offsets
        self.rows: list[tuple[Any, Any]] = []

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Give each row its new key and value; `attend` reads the rows from here."""
        count = len(self._caches)
        pairs = zip(self._caches, mx.split(keys, count), mx.split(values, count), strict=True)
        self.rows = [cache.update_and_fetch(key, value) for cache, key, value in pairs]
        return keys, values

    def make_mask(self, *_: object, **__: object) -> None:
        """One new token sees everything before it: no mask."""


def make_attend(original: Callable[..., Any], *, cpu: bool) -> Callable[..., Any]:
    """Attention that goes row by row over `LayerCaches`, and is `original` for all else."""

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
            return original(queries, keys, values, cache, scale, mask, sinks)
        if cpu and sinks is None:
            return _attend_grouped(queries * scale, cache.rows)
        parts = mx.split(queries, len(cache.rows))
        return mx.concatenate(
            [
                mx.fast.scaled_dot_product_attention(part, *kv, scale=scale, mask=None, sinks=sinks)
                for part, kv in zip(parts, cache.rows, strict=True)
            ]
        )

    return attend


def _attend_grouped(queries: Any, rows: Sequence[tuple[Any, Any]]) -> Any:
    """For the CPU: one product for all heads that share a key, instead of one for each head."""
    count, heads, _, width = queries.shape
    groups = rows[0][0].shape[1]
    parts = mx.split(queries.reshape(count, groups, heads // groups, width), count)
    outputs = [
        mx.softmax(part @ keys.swapaxes(-1, -2), axis=-1, precise=True) @ values
        for part, (keys, values) in zip(parts, rows, strict=True)
    ]
    return mx.concatenate(outputs).reshape(count, heads, 1, -1)


class RowKv:
    """One row's caches, one for each layer."""

    def __init__(self, caches: list[Any]) -> None:
        self.caches = caches

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        return sum(int(cache.nbytes) for cache in self.caches)

    @property
    def arrays(self) -> list[Any]:
        """What has to be computed for the tokens to count as read."""
        return [cache.state for cache in self.caches]

    def trim(self, length: int) -> bool:
        """Keep only the first `length` tokens; False when this kind of cache cannot."""
        excess = self.caches[0].size() - length
        if excess > 0:
            return bool(
                can_trim_prompt_cache(self.caches) and trim_prompt_cache(self.caches, excess)
            )
        return bool(excess == 0)

    def copy(self) -> RowKv:
        """Share the contents; what is added to the one is not seen by the other."""
        return RowKv(copy.deepcopy(self.caches))


def forward(model: Any, rows: Sequence[RowKv], inputs: Any, *, batched: bool) -> Any:
    """Logits (rows, vocabulary) after one more token of each row; `inputs` is (rows,)."""
    if len(rows) == 1:
        return model(inputs[:, None], cache=rows[0].caches)[:, -1, :]
    if not batched:
        parts = mx.split(inputs, len(rows))
        return mx.concatenate(
            [
                forward(model, [row], part, batched=False)
                for row, part in zip(rows, parts, strict=True)
            ]
        )
    offsets = mx.array([row.caches[0].offset for row in rows])
    layers = zip(*(row.caches for row in rows), strict=True)
    return model(inputs[:, None], cache=[LayerCaches(layer, offsets) for layer in layers])[:, -1, :]


def can_batch(model: Any) -> bool:
    """Whether rows of this model can be computed together; else they are computed in turn.

    True for models whose attention is mlx-lm's own and whose caches are all plain ones: our
    attention is put into their modules, and a probe of two rows must agree with each alone.
    """
    if not all(type(cache) is KVCache for cache in make_prompt_cache(model)):
        return False
    on_cpu = mx.default_device() == mx.Device(mx.cpu)
    attend = make_attend(base.scaled_dot_product_attention, cpu=on_cpu)
    for module in {sys.modules[type(part).__module__] for _, part in model.named_modules()}:
        if getattr(module, ATTENTION, None) is base.scaled_dot_product_attention:
            setattr(module, ATTENTION, attend)
    return _probe(model)


def _probe(model: Any) -> bool:
    """Compare two rows of different length, computed together, with each on its own."""
    inputs = mx.array([3, 4])
    try:
        together = forward(model, _probe_rows(model), inputs, batched=True)
        alone = forward(model, _probe_rows(model), inputs, batched=False)
        spread = mx.abs(alone).max()
        return bool((mx.abs(together - alone).max() <= PROBE_TOLERANCE * spread).item())
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # this architecture looks into its caches in its own way


def _probe_rows(model: Any) -> list[RowKv]:
    rows = [RowKv(make_prompt_cache(model)) for _ in range(2)]
    for row, prompt in zip(rows, ([5, 6], [7, 8, 9]), strict=True):
        model(mx.array([prompt]), cache=row.caches)
    return rows


def bytes_per_token(model: Any) -> int:
    """Memory that one token takes in the KV caches; 0 where it does not grow with the text."""
    row = RowKv(make_prompt_cache(model))
    model(mx.array([[5]]), cache=row.caches)
    return sum(
        (cache.keys.nbytes + cache.values.nbytes) // cache.keys.shape[-2]
        for cache in row.caches
        if type(cache) is KVCache
    )
