"""Asking a model as the engine would: the same prompts, the same view, greedily and many at once.

Imports MLX: only to be imported after `engine.plan.prepare`.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx
import numpy as np

from bot.domain import Request, Sampling, Turn
from bot.prompts import Persona, build
from engine import prompting
from engine.cache import PrefixCache
from engine.desk import Ended, Failed, Piece, Report
from engine.models import LoadedModel
from engine.rows import RowKv, bytes_per_token
from engine.views import View
from training.batches import Batch, Row, Writer, in_order, shared_prefix
from training.evaluation import Speed
from training.examples import Example
from training.network import can_share, training_on

ROWS = 16  # answers at once, where memory allows
ROOM = 256 * 2**20  # bytes that their caches may take
LONG = 320  # tokens of a usual prompt with its answer
CHUNK = 128  # prompt tokens read in a step
BATCH = 8  # texts in one pass for losses
PROBE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to ask, under a name that no other has."""

    name: str
    turns: tuple[Turn, ...]
    max_tokens: int


@dataclass(slots=True)
class Spoken:
    """An answer as it came; `total` is in seconds from when it was begun."""

    began: float
    text: str = ""
    tokens: int = 0
    total: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step of answers that are written together: prompt tokens read, pieces written."""

    seconds: float
    read: int
    pieces: int


def until_first(steps: Iterable[Step]) -> float:
    """Seconds until the first piece of an answer came."""
    total = 0.0
    for step in steps:
        total += step.seconds
        if step.pieces:
            break
    return total


class Interviewer:
    """Asks one model."""

    def __init__(
        self,
        loaded: LoadedModel,
        model: Any,
        persona: Persona,
        context: int,
        digest: str,
    ) -> None:
        self._tokenizer = loaded.tokenizer
        self._model = model
        self._persona = persona
        self._context = min(context, loaded.context)
        self._digest = digest
        self._cache: PrefixCache[RowKv] = PrefixCache(0)
        self._view = View(digest, digest, model, loaded.tokenizer, self._cache)
        self._pinned = self._encode([persona.turn])
        self._most = max(2, min(ROWS, ROOM // max(1, LONG * bytes_per_token(model))))

    def ask(self, questions: Sequence[Question]) -> Iterator[tuple[str, Spoken]]:
        """Answer everything, in whatever order answers end."""
        waiting = deque(questions)
        running: dict[str, Spoken] = {}
        while waiting or running:
            while waiting and len(running) < self._room():
                question = waiting.popleft()
                self._view.admit(self._request(question), question.max_tokens)
                running[question.name] = Spoken(time.perf_counter())
            for report in self._view.step(CHUNK):
                self._note(running[report.id], report)
                if not isinstance(report, Piece):
                    yield report.id, running.pop(report.id)

    def speed(self, questions: Sequence[Question]) -> Speed:
        """How quickly these are answered together, by the usual step: a pause does no harm."""
        probes = [Question(f"speed:{one.name}", one.turns, PROBE_TOKENS) for one in questions]
        for _ in self.ask(probes[:1]):
            pass  # the persona is read by now, and the caches are warm
        steps = list(self.steps(probes))
        usual = statistics.median(step.seconds for step in steps)
        pieces = sum(step.pieces for step in steps)
        return Speed(
            first_token=until_first(steps), tokens_per_second=pieces / (usual * len(steps))
        )

    def steps(self, questions: Sequence[Question]) -> Iterator[Step]:
        """Answer all of them together, step by step."""
        for question in questions:
            self._view.admit(self._request(question), question.max_tokens)
        while not self._view.idle:
            began = time.perf_counter()
            reports = self._view.step(CHUNK)
            seconds = time.perf_counter() - began
            pieces = 0
            for report in reports:
                if isinstance(report, Failed):
                    raise report.error
                pieces += isinstance(report, Piece)
            yield Step(seconds, self._view.last_read, pieces)

    def losses(self, examples: Sequence[Example]) -> dict[str, float]:
        """Completion-only loss of each right answer, in nats a token; always in the same order."""
        writer = Writer.of(self._tokenizer, self._persona, self._context, self._context)
        rows = writer.rows(examples).rows
        prefix = shared_prefix(rows) if can_share(self._model) else 0
        found: dict[str, float] = {}
        with training_on(self._model, prefix, checkpoint=False) as network:
            for indices in in_order([len(row) for row in rows], BATCH):
                found |= _losses(network, [rows[index] for index in indices], prefix)
        mx.clear_cache()
        if not all(math.isfinite(loss) for loss in found.values()):
            raise FloatingPointError("a loss is not a number")
        return {row.id: found[row.id] for row in rows}

    def _room(self) -> int:
        """Answers at once; one until the persona has been read, for the others to begin after."""
        return self._most if self._cache.is_pinned(self._digest, self._pinned) else 1

    def _request(self, question: Question) -> Request:
        *history, last = question.turns
        budget = self._context - question.max_tokens
        prompt = build(self._encode, self._persona, history, last.text, budget)
        shared = prompt.tokens[: len(self._pinned)] == self._pinned
        return Request(
            id=question.name,
            fan="gate",
            conversation=question.name,
            tokens=prompt.tokens,
            pinned=len(self._pinned) if shared else 0,
            sampling=Sampling(temperature=0, max_tokens=question.max_tokens),
        )

    def _encode(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        return prompting.encode(self._tokenizer, turns)

    def _note(self, spoken: Spoken, report: Report) -> None:
        if isinstance(report, Piece):
            spoken.text += report.text
            return
        spoken.total = time.perf_counter() - spoken.began
        spoken.text = spoken.text.strip()
        if isinstance(report, Ended):
            spoken.tokens = report.completion_tokens
        elif isinstance(report, Failed):
            raise report.error  # a model that cannot answer is not judged


def _losses(network: Any, rows: Sequence[Row], prefix: int) -> dict[str, float]:
    batch = Batch.of(rows, prefix)
    arrays = {
        one.name: mx.array(value)
        for one in fields(batch)
        if isinstance(value := getattr(batch, one.name), np.ndarray)
    }
    log_probs = np.array(network.log_probs(arrays), np.float64) * batch.weights
    sums = np.bincount(batch.owner, -log_probs, len(rows))
    return {
        row.id: float(total) / len(row.completion) for row, total in zip(rows, sums, strict=True)
    }
