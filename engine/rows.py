"""Running several answers, and pieces of prompts, through the model at once.

mlx-lm's batch caches pad all rows to the longest: one long prompt then slows every short answer
down. Here the linear layers see all tokens together, which costs hardly more than reading the
weights once, and `engine.attention` takes each row over what it really holds.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from engine.attention import LayerCaches, install, on_cpu
from engine.pack import Pack

PROBE_TOLERANCE = 0.05  # of the largest logit: half precision rounds, a wrong cache is far off
STEP = 256  # places that a row's caches grow by, on average
TILE = 8  # rows
FAULTS = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)


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

    def rewind(self, length: int) -> None:
        """Forget what plain caches hold beyond this, also when only some layers got it."""
        for cache in self.caches:
            cache.offset = min(cache.offset, length)

    def copy(self) -> RowKv:
        """Share the contents; what is added to the one is not seen by the other."""
        return RowKv(copy.deepcopy(self.caches))


def new_row(model: Any) -> RowKv:
    """An empty row. Its layers grow at different lengths: all at once would be a long wait."""
    caches = make_prompt_cache(model)
    for layer, cache in enumerate(caches):
        if type(cache) is KVCache:
            cache.step = STEP // 2 + layer % 32 * STEP // 32
    return RowKv(caches)


def unpack(pack: Pack, index: int) -> RowKv:
    """One row of a pack as caches of its own, copied, so that the pack may go on."""
    caches = []
    for keys, values in pack.contents(index):
        cache = KVCache()
        cache.state = mx.contiguous(keys), mx.contiguous(values), keys.shape[2]
        caches.append(cache)
    return RowKv(caches)


class Network:
    """A model in two halves where it can be taken apart: logits are dear, and few are wanted."""

    def __init__(self, model: Any, *, apart: bool | None = None) -> None:
        """`apart` tells whether the halves are the model, where that is known already."""
        self._model = model
        self._halves = halves(model) if apart is None else (_seam(model) if apart else None)
        self.tiled = on_cpu()
        self.depth = len(model.layers)

    @property
    def apart(self) -> bool:
        """Whether the model is used in its two halves."""
        return self._halves is not None

    def __call__(self, tokens: Any, caches: Sequence[Any], wanted: int) -> Any:
        """Logits (wanted, vocabulary) after the first rows of `tokens` (rows, count)."""
        if not self._halves:
            return self._model(tokens, cache=caches)[:wanted, -1]
        body, head = self._halves
        return head(body(tokens, cache=caches)[:wanted, -1])


def halves(model: Any) -> tuple[Any, Any] | None:
    """The layers and the output, if one after the other they are the model: some scale or cap."""
    parts = _seam(model)
    if parts is None:
        return None
    body, head = parts
    probe = mx.array([[5, 6, 7]])
    try:
        agree = mx.allclose(head(body(probe)), model(probe), rtol=1e-3, atol=1e-3).item()
    except FAULTS:
        return None
    return parts if agree else None


def _seam(model: Any) -> tuple[Any, Any] | None:
    """What a model of the usual make consists of."""
    body = getattr(model, "model", None)
    tied = getattr(getattr(body, "embed_tokens", None), "as_linear", None)
    head = getattr(model, "lm_head", tied)
    return (body, head) if body and head else None


Prompt = tuple[RowKv, Sequence[int]]  # a row, and which tokens it reads next


def forward(
    network: Network,
    pack: Pack,
    rows: Sequence[RowKv],
    inputs: Any,
    prompts: Sequence[Prompt] = (),
) -> Any:
    """Logits (rows, vocabulary) after one more token of each: the pack's rows, then `rows`.

    `inputs` is (rows,), what each row reads next. `prompts` are read in the same pass, last.
    """
    parts = [*((row, 1) for row in rows), *((row, len(tokens)) for row, tokens in prompts)]
    reading = mx.array([token for _, tokens in prompts for token in tokens], dtype=mx.uint32)
    tokens = mx.concatenate([inputs.astype(mx.uint32), reading])
    if not len(pack) and len(parts) == 1:
        return network(tokens[None], parts[0][0].caches, 1)
    pack.begin_step()
    places = [length - 1 for length in pack.lengths]
    for row, count in parts:
        begin = row.caches[0].offset
        places += range(begin, begin + count)
    # On a CPU products are computed in tiles of rows: seven take longer than eight.
    surplus = -len(places) % TILE if network.tiled and len(places) > TILE // 2 else 0
    tokens = mx.pad(tokens, (0, surplus))
    offsets = mx.array(places + [0] * surplus)
    caches = [
        LayerCaches(i, pack, [(row.caches[i], count) for row, count in parts], offsets)
        for i in range(network.depth)
    ]
    return network(tokens[:, None], caches, inputs.shape[0])


def forward_in_turn(network: Network, rows: Sequence[RowKv], inputs: Any) -> Any:
    """The same for models that cannot be batched: one after the other."""
    parts = mx.split(inputs, len(rows))
    return mx.concatenate(
        [forward(network, Pack(), [row], part) for row, part in zip(rows, parts, strict=True)]
    )


def can_batch(network: Network, model: Any) -> bool:
    """Whether rows of this model can be computed together; else they are computed in turn.

    True for models whose attention is mlx-lm's own and whose caches are all plain ones: our
    attention is put into their modules, and a probe of rows must agree with each alone.
    """
    if not all(type(cache) is KVCache for cache in make_prompt_cache(model)):
        return False
    install(model)
    return _probe(network, model)


def _probe(network: Network, model: Any) -> bool:
    """Compare rows, packed, on their own and being read, with each computed alone."""
    inputs = mx.array([3, 4, 3])
    try:
        pack = Pack()
        first, second, third, fourth = _probe_rows(model)
        for row in (first, second):
            pack.join(row.caches)
        together = forward(network, pack, [third], inputs, [(fourth, [8, 9])])
        read = forward(network, Pack(), [fourth], inputs[:1])
        *rows, fourth = _probe_rows(model)
        alone = forward_in_turn(network, rows, inputs)
        model(mx.array([[8, 9]]), cache=fourth.caches)
        read_alone = forward(network, Pack(), [fourth], inputs[:1])
        far = mx.abs(mx.concatenate([together - alone, read - read_alone])).max()
        return bool((far <= PROBE_TOLERANCE * mx.abs(alone).max()).item())
    except FAULTS:
        return False  # this architecture looks into its caches in its own way


def _probe_rows(model: Any) -> list[RowKv]:
    rows = [new_row(model) for _ in range(4)]
    for row, prompt in zip(rows, ([5, 6], [7, 8, 9], [6], [4, 5, 6]), strict=True):
        model(mx.array([prompt]), cache=row.caches)
    return rows


def bytes_per_token(model: Any) -> int:
    """Memory that one token takes in the KV caches; 0 where it does not grow with the text."""
    row = new_row(model)
    model(mx.array([[5]]), cache=row.caches)
    return sum(
        (cache.keys.nbytes + cache.values.nbytes) // cache.keys.shape[-2]
        for cache in row.caches
        if type(cache) is KVCache
    )
