"""Running several answers through the model at once.

mlx-lm's batch caches pad all rows to the longest: one long prompt then slows every short answer
down. Here the linear layers see all rows together, attention takes those of like length at once
(`engine.pack`), and one that is much longer goes on its own, over what it really holds.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models import base
from mlx_lm.models.cache import KVCache, can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from engine.pack import Pack

ATTENTION = "scaled_dot_product_attention"
PROBE_TOLERANCE = 0.05  # of the largest logit: half precision rounds, a wrong cache is far off


class LayerCaches:
    """What one layer of the model takes for its cache: the pack's rows, then those on their own."""

    def __init__(self, layer: int, pack: Pack, caches: Sequence[Any], offsets: Any) -> None:
        self._layer = layer
        self._pack = pack
        self._caches = caches
        self.offset = offsets
        self.mask = pack.mask
        self.packed: tuple[Any, Any] | None = None
        self.rows: list[tuple[Any, Any]] = []

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Give each row its new key and value; `attend` reads the rows from here."""
        count = len(self._pack)
        if count:
            self.packed = self._pack.write(self._layer, keys[:count], values[:count])
        if self._caches:
            alone: list[Any] = [
                mx.split(part[count:], len(self._caches)) for part in (keys, values)
            ]
            self.rows = [
                cache.update_and_fetch(key, value)
                for cache, key, value in zip(self._caches, *alone, strict=True)
            ]
        return keys, values

    def make_mask(self, *_: object, **__: object) -> None:
        """One new token sees everything before it: no mask but the pack's own."""


class ReadingCaches:
    """What one layer takes for its cache while several prompts are read: each row has its own."""

    def __init__(self, caches: Sequence[Any], counts: Sequence[int], offsets: Any) -> None:
        self.caches = caches
        self.counts = counts
        self.offset = offsets
        self.rows: list[tuple[Any, Any]] = []

    def update_and_fetch(self, keys: Any, values: Any) -> tuple[Any, Any]:
        """Give each row its own tokens' keys and values; what is behind them is padding."""
        self.rows = [
            cache.update_and_fetch(keys[i : i + 1, :, :count], values[i : i + 1, :, :count])
            for i, (cache, count) in enumerate(zip(self.caches, self.counts, strict=True))
        ]
        return keys, values

    def make_mask(self, *_: object, **__: object) -> None:
        """Each row's mask is made for its own length."""


def make_attend(original: Callable[..., Any], *, cpu: bool) -> Callable[..., Any]:
    """Attention over `LayerCaches`: the pack at once, then row by row; `original` for all else."""

    def attend(  # noqa: PLR0917 (mlx-lm's signature)
        queries: Any,
        keys: Any,
        values: Any,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: Any = None,
    ) -> Any:
        if isinstance(cache, ReadingCaches):
            longest = queries.shape[2]
            parts = [
                mx.pad(
                    original(queries[i : i + 1, :, :count], *kv, own, scale, "causal", sinks),
                    [(0, 0), (0, 0), (0, longest - count), (0, 0)],
                )
                for i, (count, kv, own) in enumerate(
                    zip(cache.counts, cache.rows, cache.caches, strict=True)
                )
            ]
            return mx.concatenate(parts)
        if not isinstance(cache, LayerCaches):
            return original(queries, keys, values, cache, scale, mask, sinks)

        def one(part: Any, kv: tuple[Any, Any], hidden: Any) -> Any:
            if cpu and sinks is None:
                return _attend_grouped(part * scale, *kv, hidden)
            if hidden is not None:
                hidden = hidden.astype(part.dtype)
            return mx.fast.scaled_dot_product_attention(
                part, *kv, scale=scale, mask=hidden, sinks=sinks
            )

        count = queries.shape[0] - len(cache.rows)
        packed = [one(queries[:count], cache.packed, cache.mask)] if cache.packed else []
        alone: Any = mx.split(queries[count:], len(cache.rows)) if cache.rows else []
        parts = [one(part, kv, None) for part, kv in zip(alone, cache.rows, strict=True)]
        return mx.concatenate([*packed, *parts]) if parts else packed[0]

    return attend


def _attend_grouped(queries: Any, keys: Any, values: Any, mask: Any) -> Any:
    """For the CPU: one product for all heads that share a key, instead of one for each head.

    Queries (rows, heads, 1, width), keys and values (rows, groups, places, width).
    """
    count, heads, _, width = queries.shape
    groups = keys.shape[1]
    scores = queries.reshape(count, groups, heads // groups, width) @ keys.swapaxes(-1, -2)
    if mask is not None:
        scores = scores + mask
    return (mx.softmax(scores, axis=-1, precise=True) @ values).reshape(count, heads, 1, -1)


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


def unpack(pack: Pack, index: int) -> RowKv:
    """One row of a pack as caches of its own, copied, so that the pack may go on."""
    caches = []
    for keys, values in pack.contents(index):
        cache = KVCache()
        cache.state = mx.contiguous(keys), mx.contiguous(values), keys.shape[2]
        caches.append(cache)
    return RowKv(caches)


def forward(model: Any, pack: Pack, rows: Sequence[RowKv], inputs: Any) -> Any:
    """Logits (rows, vocabulary) after one more token of each: the pack's rows, then the others.

    `inputs` is (rows,), what each row reads next.
    """
    if not len(pack) and len(rows) == 1:
        return model(inputs[:, None], cache=rows[0].caches)[:, -1, :]
    pack.begin_step()
    places = [length - 1 for length in pack.lengths] + [row.caches[0].offset for row in rows]
    offsets = mx.array(places)
    depth = len(model.layers)
    layers = zip(*(row.caches for row in rows), strict=True) if rows else [()] * depth
    caches = [LayerCaches(i, pack, layer, offsets) for i, layer in enumerate(layers)]
    return model(inputs[:, None], cache=caches)[:, -1, :]


def read_together(model: Any, rows: Sequence[RowKv], chunks: Sequence[Sequence[int]]) -> None:
    """Read a piece of several prompts at once; their caches hold it then, not computed yet."""
    counts = [len(chunk) for chunk in chunks]
    longest = max(counts)
    inputs = mx.array([[*chunk, *[0] * (longest - len(chunk))] for chunk in chunks])
    offsets = mx.array([row.caches[0].offset for row in rows])
    layers = zip(*(row.caches for row in rows), strict=True)
    model(inputs, cache=[ReadingCaches(layer, counts, offsets) for layer in layers])


def forward_in_turn(model: Any, rows: Sequence[RowKv], inputs: Any) -> Any:
    """The same for models that cannot be batched: one after the other."""
    parts = mx.split(inputs, len(rows))
    return mx.concatenate(
        [forward(model, Pack(), [row], part) for row, part in zip(rows, parts, strict=True)]
    )


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
    """Compare rows of different length, packed and on their own, with each computed alone."""
    inputs = mx.array([3, 4, 3])
    try:
        pack = Pack()
        first, second, third = _probe_rows(model)
        for row in (first, second):
            pack.join(row.caches)
        together = forward(model, pack, [third], inputs)
        alone = forward_in_turn(model, _probe_rows(model), inputs)
        spread = mx.abs(alone).max()
        return bool((mx.abs(together - alone).max() <= PROBE_TOLERANCE * spread).item())
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False  # this architecture looks into its caches in its own way


def _probe_rows(model: Any) -> list[RowKv]:
    rows = [RowKv(make_prompt_cache(model)) for _ in range(3)]
    for row, prompt in zip(rows, ([5, 6], [7, 8, 9], [6]), strict=True):
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
