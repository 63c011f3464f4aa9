"""One revision of the model at work: its running answers, read and written step by step.

Lives in the engine's thread. One token of every answer is computed, then a bounded piece of the
waiting prompts is read, and so on: a long prompt never stalls those who are being answered.
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
from engine.pack import Pack
from engine.rows import (
    RowKv,
    can_batch,
    forward,
    forward_in_turn,
    read_together,
    unpack,
)
from engine.sampling import PENALTY_WINDOW, Chooser, choose
from engine.stops import Writer

READ_FAULTS = (ValueError, RuntimeError, TypeError, IndexError)
BURST = 56  # tokens of several short prompts that are read at once beside running answers
SHORT_AFTER = 1024  # tokens read before: after more, attention makes even few tokens slow
SHORT = 32  # tokens of a prompt that are read at once, whatever the pace: it is hardly a wait


@dataclass(eq=False, slots=True)
class Row:
    """One answer: the prompt and what was written so far; `kv` holds the first `read` of them.

    None while the row is in its view's pack.
    """

    request: Request
    max_tokens: int
    kv: RowKv | None
    read: int
    chooser: Chooser
    writer: Writer
    tokens: list[int] = field(init=False)
    cached: int = field(init=False)

    def __post_init__(self) -> None:
        self.tokens = list(self.request.tokens)
        self.cached = self.read

    @property
    def unread(self) -> list[int]:
        """What of the prompt is still to be read; its last token belongs to the first step."""
        return self.tokens[self.read : len(self.request.tokens) - 1]

    @property
    def is_short(self) -> bool:
        """Whether what is left of the prompt is read in a moment: few tokens, on few before."""
        few = len(self.unread) <= SHORT and self.read <= SHORT_AFTER
        return few and self.read >= self.request.pinned

    @property
    def recent(self) -> list[int]:
        """The last tokens that were read."""
        return self.tokens[max(0, self.read - PENALTY_WINDOW) : self.read]

    @property
    def written(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.tokens)


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
        self._pack = Pack()
        self._rows: list[Row] = []  # those in the pack first, in its order
        self._inputs: Any = None  # (rows,): what each row reads next, perhaps not computed yet
        # A GPU computes the next step while the last one's tokens are passed on. On a CPU there is
        # nobody to compute meanwhile: being ahead would only make each token late by a step.
        self.ahead = mx.default_device() != mx.Device(mx.cpu)
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
        return self._pack.nbytes + sum(row.kv.nbytes for row in self._everyone() if row.kv)

    @property
    def reserved(self) -> int:
        """Tokens that the running answers may come to hold."""
        return sum(len(row.request.tokens) + row.max_tokens for row in self._everyone())

    def admit(self, request: Request, max_tokens: int) -> None:
        """Begin an answer with the longest part of the prompt that was read before."""
        known = self._cache.take(
            self.digest, request.conversation, request.tokens, request.pinned
        ) or Entry((), RowKv(make_prompt_cache(self.model)))
        writer = Writer(self._tokenizer.detokenizer, request.sampling.stop)
        chooser = Chooser(request.sampling)
        row = Row(request, max_tokens, known.kv, len(known.tokens), chooser, writer)
        self._reading.append(row)

    def drop(self, request_id: str) -> Iterator[Report]:
        """Cancel an answer, wherever it is; what was read stays known."""
        for row in [row for row in self._everyone() if row.request.id == request_id]:
            report = self._end(row, Finish.CANCELLED, row.written)
            if row in self._reading:
                self._reading.remove(row)
            else:
                self._keep([i for i, other in enumerate(self._rows) if other is not row])
            yield report

    def fail(self) -> list[Report]:
        """Give up everything that runs and start afresh."""
        reports: list[Report] = [
            Failed(row.request.id, GenerationFailed()) for row in self._everyone()
        ]
        self._reading.clear()
        self._rows, self._inputs, self._pack = [], None, Pack()
        self._cache.forget(self.digest)
        return reports

    def write(self) -> list[Report]:
        """One step: one more token of every answer."""
        rows, inputs = self._rows, self._inputs
        if not rows:
            return []
        alone = [row.kv for row in rows if row.kv]
        logits = (
            forward(self.model, self._pack, alone, inputs)
            if self._batched
            else forward_in_turn(self.model, alone, inputs)
        )
        chosen = choose(logits, [row.chooser for row in rows], [row.recent for row in rows], inputs)
        mx.async_eval(chosen)  # type: ignore[no-untyped-call]  # mlx's stub
        for row in rows:
            row.read += 1
        self._inputs = chosen
        tokens = (inputs if self.ahead else chosen).tolist()
        reports: list[Report] = []
        stay: list[int] = []
        for i, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            # Ahead of its first token, a row has only read its prompt's last one.
            news = [] if self.ahead and row.read == len(row.tokens) else self._advance(row, token)
            reports += news
            if not news or not isinstance(news[-1], Ended):
                stay.append(i)
        if len(stay) < len(rows):
            self._keep(stay)
        return reports

    def read(self, budget: int) -> list[Report]:
        """Read up to `budget` tokens of the prompts that came first."""
        self.last_read = 0
        reports: list[Report] = []
        self._read_together(budget)
        while self._reading and self.last_read < budget:
            row = self._reading[0]
            try:
                self._read_chunk(row, budget - self.last_read)
            except READ_FAULTS:
                self._reading.popleft()
                reports.append(Failed(row.request.id, GenerationFailed()))
                continue
            if not row.unread:
                self._reading.popleft()
                self._begin(row)
        return reports

    def _read_together(self, budget: int) -> None:
        """Read what is left of the prompts that came first, while it is short, in one go."""
        room = max(budget, BURST) if self._rows else 2 * budget
        rows: list[Row] = []
        for row in self._reading:
            unread = len(row.unread)
            room -= unread
            if not self._batched or not row.is_short or room < 0:
                break
            rows.append(row)
        pieces = [(row, row.kv, row.unread) for row in rows if row.kv and row.unread]
        if len(pieces) > 1:
            try:
                read_together(self.model, [kv for _, kv, _ in pieces], [new for *_, new in pieces])
                mx.eval([kv.arrays for _, kv, _ in pieces])
            except READ_FAULTS:
                for row, kv, _ in pieces:
                    kv.trim(row.read)  # one of them is bad: each on its own will tell which
                return
            for row, _, new in pieces:
                row.read += len(new)
                self.last_read += len(new)
            for row in rows:
                self._reading.remove(row)
                self._begin(row)

    def _advance(self, row: Row, token: int) -> list[Report]:
        """What one more token means for an answer."""
        name = row.request.id
        row.tokens.append(token)
        if token in self._ends:
            rest = Piece(name, row.writer.finish())
            return [rest, self._end(row, Finish.STOP, row.written - 1)]
        text, stopped = row.writer.add(token)
        if stopped:
            return [Piece(name, text), self._end(row, Finish.STOP, row.written)]
        if row.written >= row.max_tokens:
            rest = Piece(name, text + row.writer.finish())
            return [rest, self._end(row, Finish.LENGTH, row.written)]
        return [Piece(name, text)]

    def _read_chunk(self, row: Row, most: int) -> None:
        if not self.last_read and row.is_short:
            most = SHORT
        if chunk := row.unread[: self._boundary(row, most)]:
            assert row.kv is not None, "only rows that are being written are in the pack"
            self.model(mx.array([chunk]), cache=row.kv.caches)
            # With nobody writing nothing else waits for the device: do not let work pile up.
            compute = mx.async_eval if self._rows else mx.eval
            compute(row.kv.arrays)
            row.read += len(chunk)
            self.last_read += len(chunk)
        if row.read == row.request.pinned and row.read:
            self._pin(row)

    def _begin(self, row: Row) -> None:
        """The prompt is read: from the next step on the answer is written."""
        last = mx.array(row.request.tokens[-1:])
        at = len(self._rows)
        if self._batched and row.kv and row.read and self._pack.accepts(row.read):
            at = len(self._pack)
            self._pack.join(row.kv.caches)
            row.kv = None
            mx.eval(self._pack.arrays)
        others = self._inputs if self._rows else last[:0]
        self._inputs = mx.concatenate([others[:at], last, others[at:]])
        self._rows.insert(at, row)

    def _boundary(self, row: Row, most: int) -> int:
        """How far to read, but not past the end of the persona's prefix."""
        left = row.request.pinned - row.read
        return min(most, left) if left > 0 else most

    def _pin(self, row: Row) -> None:
        prefix = tuple(row.tokens[: row.read])
        if row.kv and not self._cache.is_pinned(self.digest, prefix):
            self._cache.pin(self.digest, prefix, row.kv.copy())

    def _keep(self, stay: list[int]) -> None:
        """Let all rows but these go; in the pack the last one takes the place of one that goes."""
        order, packed = list(range(len(self._rows))), len(self._pack)
        for index in sorted(set(order) - set(stay), reverse=True):
            if index < packed:
                packed -= 1
                self._pack.remove(index)
                order[index] = order[packed]
                del order[packed]
            else:
                order.remove(index)
        self._rows = [self._rows[i] for i in order]
        self._inputs = self._inputs[mx.array(order)] if order else None

    def _end(self, row: Row, finish: Finish, written: int) -> Ended:
        if row.read:
            # Ahead, the cache may hold one token more than is known: it is cut off when used again.
            kv = row.kv or unpack(self._pack, self._rows.index(row))
            mx.eval(kv.arrays)
            entry = Entry(tuple(row.tokens[: row.read]), kv)
            self._cache.put(self.digest, row.request.conversation, entry)
        return Ended(row.request.id, finish, self.revision, max(0, written), row.cached)

    def _everyone(self) -> list[Row]:
        return [*self._reading, *self._rows]
