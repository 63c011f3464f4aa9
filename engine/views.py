"""One revision of the model at work: its running answers, read and written step by step.

Lives in the engine's thread. A step computes one token of every answer and then reads one chunk of
one prompt, so that a long prompt never stalls those who are being answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache

from bot.domain import Finish, Request
from bot.errors import GenerationFailed
from engine.cache import Entry, PrefixCache
from engine.desk import Ended, Failed, Piece, Report
from engine.rows import RowKv, can_batch, forward
from engine.sampling import Chooser, choose
from engine.stops import Writer


@dataclass(slots=True)
class Row:
    """One answer. `read` are the tokens whose keys and values `kv` holds."""

    request: Request
    max_tokens: int
    kv: RowKv
    read: list[int]
    chooser: Chooser
    writer: Writer
    cached: int = field(init=False)

    def __post_init__(self) -> None:
        self.cached = len(self.read)

    @property
    def unread(self) -> tuple[int, ...]:
        """What of the prompt is still to be read; its last token belongs to the first step."""
        return self.request.tokens[len(self.read) : -1]

    @property
    def written(self) -> int:
        """Tokens of the answer so far."""
        return len(self.read) - len(self.request.tokens)


class View:
    """A model under a revision's name, with the answers that run on it."""

    def __init__(
        self, revision: str, digest: str, model: Any, tokenizer: Any, cache: PrefixCache[RowKv]
    ) -> None:
        self.revision = revision
        self.digest = digest
        self.model = model
        self._tokenizer = tokenizer
        self._ends = frozenset(tokenizer.eos_token_ids)
        self._cache = cache
        self._batched = can_batch(model)
        self._reading: deque[Row] = deque()
        self._rows: list[Row] = []
        self._inputs: Any = None  # (rows,): what each row reads next, perhaps not computed yet
        self.last_read = 0  # prompt tokens read in the last step

    @property
    def idle(self) -> bool:
        """Whether nothing runs here."""
        return not self._rows and not self._reading

    @property
    def writing(self) -> bool:
        """Whether some answer is past its prompt."""
        return bool(self._rows)

    @property
    def nbytes(self) -> int:
        """Memory held by the running answers' caches."""
        return sum(row.kv.nbytes for row in self._everyone())

    def admit(self, request: Request, max_tokens: int) -> None:
        """Begin an answer with the longest part of the prompt that was read before."""
        known = self._cache.take(
            self.digest, request.conversation, request.tokens, request.pinned
        ) or Entry((), RowKv(make_prompt_cache(self.model)))
        writer = Writer(self._tokenizer.detokenizer, request.sampling.stop)
        chooser = Chooser(request.sampling)
        row = Row(request, max_tokens, known.kv, list(known.tokens), chooser, writer)
        self._reading.append(row)

    def drop(self, request_id: str) -> Iterator[Report]:
        """Cancel an answer, wherever it is; what was read stays known."""
        for row in [row for row in self._everyone() if row.request.id == request_id]:
            if row in self._reading:
                self._reading.remove(row)
            else:
                self._keep([i for i, other in enumerate(self._rows) if other is not row])
            yield self._end(row, Finish.CANCELLED, row.written)

    def fail(self) -> list[Report]:
        """Give up everything that runs and start afresh."""
        reports: list[Report] = [
            Failed(row.request.id, GenerationFailed()) for row in self._everyone()
        ]
        self._reading.clear()
        self._rows, self._inputs = [], None
        self._cache.forget(self.digest)
        return reports

    def step(self, chunk: int) -> list[Report]:
        """One token of every answer, and up to `chunk` tokens of the next prompt."""
        self.last_read = 0
        reports = self._write() if self._rows else []
        if self._reading:
            reports += self._read(self._reading[0], chunk)
        return reports

    def _write(self) -> list[Report]:
        """Start the next step on the device, then pass on what the one before came to."""
        rows, inputs = self._rows, self._inputs
        logits = forward(self.model, [row.kv for row in rows], inputs, batched=self._batched)
        chosen = choose(logits, [row.chooser for row in rows], [row.read for row in rows], inputs)
        mx.async_eval(chosen)  # type: ignore[no-untyped-call]  # mlx's stub
        reports: list[Report] = []
        stay: list[int] = []
        for i, (row, token) in enumerate(zip(rows, inputs.tolist(), strict=True)):
            row.read.append(token)
            news = list(self._advance(row, token)) if row.written > 0 else []
            reports += news
            if not news or not isinstance(news[-1], Ended):
                stay.append(i)
        self._inputs = chosen
        if len(stay) < len(rows):
            self._keep(stay)
        return reports

    def _advance(self, row: Row, token: int) -> Iterator[Report]:
        """What one more token means for an answer."""
        name = row.request.id
        if token in self._ends:
            yield Piece(name, row.writer.finish())
            yield self._end(row, Finish.STOP, row.written - 1)
            return
        text, stopped = row.writer.add(token)
        full = row.written >= row.max_tokens
        if full and not stopped:
            text += row.writer.finish()
        yield Piece(name, text)
        if stopped or full:
            yield self._end(row, Finish.STOP if stopped else Finish.LENGTH, row.written)

    def _read(self, row: Row, chunk: int) -> list[Report]:
        """Read the next chunk of a prompt; after the last one the answer begins."""
        request = row.request
        try:
            if piece := row.unread[: self._boundary(row, chunk)]:
                self.model(mx.array([piece]), cache=row.kv.caches)
                mx.async_eval(row.kv.arrays)  # type: ignore[no-untyped-call]  # mlx's stub
                row.read += piece
                self.last_read = len(piece)
            if len(row.read) == request.pinned and request.pinned:
                self._pin(row)
        except (ValueError, RuntimeError, TypeError, IndexError):
            self._reading.popleft()
            return [Failed(request.id, GenerationFailed())]
        if not row.unread:
            self._reading.popleft()
            last = mx.array(request.tokens[-1:])
            self._inputs = mx.concatenate([self._inputs, last]) if self._rows else last
            self._rows.append(row)
        return []

    def _boundary(self, row: Row, chunk: int) -> int:
        """How far to read: a chunk, but not past the end of the persona's prefix."""
        left = row.request.pinned - len(row.read)
        return min(chunk, left) if left > 0 else chunk

    def _pin(self, row: Row) -> None:
        prefix = tuple(row.read)
        if not self._cache.is_pinned(self.digest, prefix):
            self._cache.pin(self.digest, prefix, row.kv.copy())

    def _keep(self, stay: list[int]) -> None:
        self._rows = [self._rows[i] for i in stay]
        self._inputs = self._inputs[mx.array(stay)] if stay else None

    def _end(self, row: Row, finish: Finish, written: int) -> Ended:
        if row.read:
            entry = Entry(tuple(row.read), row.kv)
            self._cache.put(self.digest, row.request.conversation, entry)
        return Ended(row.request.id, finish, self.revision, max(0, written), row.cached)

    def _everyone(self) -> list[Row]:
        return [*self._reading, *self._rows]
