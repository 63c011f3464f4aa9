"""The child that serves: how quickly a base with its adapter answers, how well, and what it takes.

Answers that are timed never end by themselves: all streams run for as long as they are watched.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot.prompts import Persona
from engine import lora, models, plan
from training import files
from training.child import told
from training.compare.energy import Meter
from training.compare.values import Answer, Key
from training.evaluate import reason_of
from training.examples import Example, ask, read_lines
from training.job import Progress, ServeJob, Value, emit
from training.metrics import mean
from training.run import process_peak

if TYPE_CHECKING:  # imports MLX, which must wait for the plan's BLAS
    from training.asking import Interviewer, Question

FILE = "served.json"
STREAMS = 8
TIMED = 32  # tokens of an answer that is timed
LONGEST = 48  # tokens of one that is read


class Served(Value):
    """What was found; `memory` says what the base computes in."""

    memory: str
    figures: dict[Key, float]
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds until a first token and for the whole, and tokens a second of the steady state."""

    first: float
    total: float
    rate: float


class Endless:
    """A tokenizer under which no answer ends by itself."""

    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def serve(folder: Path, job: ServeJob) -> int:
    """Do the job; what came of it is the last event, and 0 when it went well."""

    def work() -> None:
        files.write(folder / FILE, _measure(job).model_dump_json(indent=1).encode())

    return told(work, reason_of)


def read(folder: Path) -> Served:
    """What `serve` wrote. Raises OSError or ValueError."""
    return Served.model_validate_json((folder / FILE).read_bytes())


def _measure(job: ServeJob) -> Served:
    emit(Progress(stage="load", step=0, steps=1))
    began = time.perf_counter()
    compute = plan.prepare(plan.detect())
    import mlx.core as mx

    base = models.load(job.folder, compute, job.model)
    adapter = lora.read_adapter(job.adapter) if job.adapter else None
    model = lora.with_adapter(base, *adapter) if adapter else base.model
    figures = {Key.SERVE_LOAD: time.perf_counter() - began}
    emit(Progress(stage="load", step=1, steps=1))
    mx.reset_peak_memory()
    figures |= _speed(job, replace(base, tokenizer=Endless(base.tokenizer)), model)
    figures[Key.SERVE_PEAK_MLX] = mx.get_peak_memory()
    figures[Key.SERVE_PEAK_PROCESS] = process_peak()
    if job.held_out:
        figures |= _losses(job, base, model)
    answers = _answers(job, base, model) if job.questions else ()
    return Served(memory=computes_in(base.model), figures=figures, answers=answers)


def _speed(job: ServeJob, base: models.LoadedModel, model: Any) -> dict[Key, float]:
    """The first answer, from a view that is built for it, then the usual ones."""
    from training.asking import Question

    probes = [
        Question(f"probe:{number}", ask(text), TIMED)
        for number, text in enumerate(_up_to(job.probes, STREAMS))
    ]
    began = time.perf_counter()
    interviewer = _interviewer(job, base, model)
    _timed(interviewer, probes[:1])
    first = time.perf_counter() - began
    _timed(interviewer, probes)  # as many rows as this for the first time
    meter = Meter()
    one, many = [], []
    for number in range(1, job.rounds + 1):
        one.append(_timed(interviewer, probes[:1]))
        many.append(_timed(interviewer, probes))
        emit(Progress(stage="serve", step=number, steps=job.rounds))
    joules = meter.end()
    usual = statistics.median(timing.total for timing in one)
    figures = {
        Key.SERVE_WARMUP: max(0.0, first - usual),
        Key.SERVE_FIRST_TOKEN: statistics.median(timing.first for timing in one),
        Key.SERVE_RATE_1: statistics.median(timing.rate for timing in one),
        Key.SERVE_RATE_8: statistics.median(timing.rate for timing in many),
    }
    return figures if joules is None else {**figures, Key.SERVE_ENERGY: joules}


def _timed(interviewer: Interviewer, questions: Sequence[Question]) -> Timing:
    """Answer them together. Steady are the steps in which all write and none is read."""
    from training.asking import until_first

    steps = list(interviewer.steps(questions))
    count = len(questions)
    steady = [step.seconds for step in steps if step.pieces == count and not step.read]
    return Timing(
        first=until_first(steps),
        total=sum(step.seconds for step in steps),
        rate=count / statistics.median(steady or [step.seconds for step in steps]),
    )


def _losses(job: ServeJob, base: models.LoadedModel, model: Any) -> dict[Key, float]:
    """On the held-out answers, without the adapter and with it, in nats a token."""
    assert job.held_out is not None, "asked by the caller"
    held_out = read_lines(job.held_out, Example)
    found = {}
    for key, one in ((Key.LOSS_BEFORE, base.model), (Key.LOSS_AFTER, model)):
        found[key] = mean(_interviewer(job, base, one).losses(held_out).values())
    return found


def _answers(job: ServeJob, base: models.LoadedModel, model: Any) -> tuple[Answer, ...]:
    from training.asking import Question

    questions = [
        Question(str(number), ask(text), LONGEST) for number, text in enumerate(job.questions)
    ]
    said: dict[str, str] = {}
    for name, spoken in _interviewer(job, base, model).ask(questions):
        said[name] = spoken.text
        emit(Progress(stage="evaluate", step=len(said), steps=len(questions)))
    return tuple(
        Answer(question=text, text=said[str(number)]) for number, text in enumerate(job.questions)
    )


def _interviewer(job: ServeJob, base: models.LoadedModel, model: Any) -> Interviewer:
    from training.asking import Interviewer

    return Interviewer(base, model, Persona.load(job.persona), job.context, base.fingerprint)


def computes_in(model: Any) -> str:
    """What the base's numbers are while they are multiplied: int4, bfloat16, float32."""
    from mlx import nn

    for module in model.modules():
        if isinstance(module, nn.QuantizedLinear):
            return f"int{module.bits}"
    return str(model.layers[0].input_layernorm.weight.dtype).removeprefix("mlx.core.")


def _up_to(probes: Sequence[str], count: int) -> list[str]:
    """So many, from the beginning again where there are fewer."""
    return [probes[at % len(probes)] for at in range(count)]
