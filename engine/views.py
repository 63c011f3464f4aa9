"""One revision of the model at work: its running answers, read and written step by step.

Lives in the engine's thread. A step computes one token of every answer and reads a bounded piece of
the waiting prompts, in one pass: a long prompt never stalls those who are being answered.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from bot.domain import Finish, Request
from bot.errors import GenerationFailed
from engine.attention import on_cpu
from engine.cache import Entry, PrefixCache
from engine.desk import Ended, Failed, Piece, Report
from engine.pack import Pack
from engine.rows import FAULTS, Network, RowKv, can_batch, forward, forward_in_turn, new_row, unpack
from engine.sampling import PENALTY_WINDOW, Chooser, choose
from engine.stops import Writer

FLOOD = 2  # times a chunk that is read at once while nobody writes, when it ends the last prompt


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
    def recent(self) -> list[int]:
        """The last tokens that were read."""
        return self.tokens[max(0, self.read - PENALTY_WINDOW) : self.read]

    @property
    def written(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.tokens)


Prompt = tuple[Row, list[int]]  # whose prompt, and which of its tokens are read next


class View:
    """A model under a revision's name, with the answers that run on it."""

    def __init__(
        self,
        revision: str,
        digest: str,
        model: Any,
        tokenizer: Any,
        cache: PrefixCache[RowKv],
        *,
        kin: View | None = None,
    ) -> None:
        self.revision = revision
        self.digest = digest
        self.model = model
        self._tokenizer = tokenizer
        self._ends = frozenset(tokenizer.eos_token_ids)
        self._cache = cache
        # Of the same base: what was found out by probing holds here too, and a swap is quick.
        self._network = Network(model, apart=kin.network.apart if kin else None)
        self._batched = kin.batched if kin else can_batch(self._network, model)
        self._reading: deque[Row] = deque()
        self._pack = Pack()
        self._rows: list[Row] = []  # those in the pack first, in its order
        self._inputs = _nobody()  # (rows,): what each row reads next, perhaps not computed yet
        # A GPU computes the next step while the last one's tokens are passed on. On a CPU there is
        # nobody to compute meanwhile: being ahead would only make each token late by a step.
        self.ahead = not on_cpu()
        self.last_read = 0  # prompt tokens read in the last step

    @property
    def network(self) -> Network:
        """The model as passes see it."""
        return self._network

    @property
    def batched(self) -> bool:
        """Whether answers share a pass here."""
        return self._batched

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
        ) or Entry((), new_row(self.model))
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
        self._rows, self._inputs, self._pack = [], _nobody(), Pack()
        self._cache.forget(self.digest)
        return reports

    def step(self, budget: int) -> list[Report]:
        """One more token of every answer, and up to `budget` tokens of the prompts that came first.

        A prompt that trips over something fails alone.
        """
        for row in [row for row in self._reading if not row.unread]:
            self._begin(row)
        prompts = self._next_prompts(budget)
        together, apart = (prompts, []) if self._batched else ([], prompts)
        try:
            logits = self._forward(together)
        except FAULTS:
            if not together:
                raise
            self._rewind(together)
            together, apart = [], together  # each on its own will tell which of them is bad
            logits = self._forward([])
        reports = self._write(logits, together)
        sound, faults = self._read_apart(apart)
        self.last_read = 0
        for row, chunk in [*together, *sound]:
            self._note_read(row, len(chunk))
        return reports + faults

    def _next_prompts(self, budget: int) -> list[Prompt]:
        """Which prompts to read next, and how far each; the persona's prefix is read by itself."""
        if not self._rows and sum(len(row.unread) for row in self._reading) <= FLOOD * budget:
            budget *= FLOOD
        prompts: list[Prompt] = []
        for row in self._reading:
            chunk = row.unread[: self._boundary(row, budget)]
            prompts.append((row, chunk))
            budget -= len(chunk)
            if budget <= 0 or not self._batched:
                break
        return prompts

    def _forward(self, prompts: Sequence[Prompt]) -> Any:
        """The pass of a step: logits of the answers' next tokens, not computed yet."""
        if not self._rows and not prompts:
            return None
        alone = [row.kv for row in self._rows if row.kv]
        if not self._batched:
            return forward_in_turn(self._network, alone, self._inputs)
        pieces = [(row.kv, chunk) for row, chunk in prompts if row.kv]
        return forward(self._network, self._pack, alone, self._inputs, pieces)

    def _write(self, logits: Any, prompts: Sequence[Prompt]) -> list[Report]:
        """Compute the pass, and say what the answers' new tokens mean."""
        read = [row.kv.arrays for row, _ in prompts if row.kv]
        rows, inputs = self._rows, self._inputs
        if not rows:
            mx.eval(read)  # with nobody writing nothing else waits: do not let work pile up
            return []
        chosen = choose(logits, [row.chooser for row in rows], [row.recent for row in rows], inputs)
        mx.async_eval(chosen, read)  # type: ignore[no-untyped-call]  # mlx's stub
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

    def _rewind(self, prompts: Sequence[Prompt]) -> None:
        """Undo a pass that could not be built, in whatever layer it stopped."""
        for row in [*self._rows, *(row for row, _ in prompts)]:
            if row.kv:
                row.kv.rewind(row.read)
        self._pack.rewind([row.read for row in self._rows if not row.kv])

    def _read_apart(self, prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Report]]:
        """Read prompts one by one: which went well, and the ends of those that did not."""
        sound: list[Prompt] = []
        faults: list[Report] = []
        for row, chunk in prompts:
            assert row.kv is not None, "only rows that are being written are in the pack"
            try:
                self._network(mx.array([chunk]), row.kv.caches, 1)
                mx.eval(row.kv.arrays)
            except FAULTS:
                self._reading.remove(row)
                faults.append(Failed(row.request.id, GenerationFailed()))
            else:
                sound.append((row, chunk))
        return sound, faults

    def _note_read(self, row: Row, count: int) -> None:
        row.read += count
        self.last_read += count
        if row.read == row.request.pinned:
            self._pin(row)
        if not row.unread:
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

    def _begin(self, row: Row) -> None:
        """The prompt is read: from the next step on the answer is written."""
        self._reading.remove(row)
        last = mx.array(row.request.tokens[-1:])
        at = len(self._rows)
        if self._batched and row.kv and row.read and self._pack.accepts(row.read):
            at = len(self._pack)
            self._pack.join(row.kv.caches)
            row.kv = None
            mx.eval(self._pack.arrays)
        self._inputs = mx.concatenate([self._inputs[:at], last, self._inputs[at:]])
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
        self._inputs = self._inputs[mx.array(order)] if order else _nobody()

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


def _nobody() -> Any:
    return mx.array([], dtype=mx.uint32)
