"""What a child process is asked to do, and what it says while it does it.

Training and evaluation run in processes of their own: whatever happens there, the bot serves on. A
job is a folder with `job.json` in it; the child writes lines of JSON to its standard output, one
event each, and its results into the folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from training.recipe import Recipe

JOB = "job.json"


class Value(BaseModel):
    """Base of what goes through JSON here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainJob(Value):
    """Train a candidate: `farense-bot work <folder>` does it, from the last checkpoint if any.

    The folder holds `dataset/` with train.jsonl, held_out.jsonl (Example) and preferences.jsonl
    (Preference), and gets `checkpoints/` and in the end `result/`: adapters.safetensors,
    adapter_config.json, training_config.json, curve.json and result.json (see training.trainer).
    """

    task: Literal["train"] = "train"
    model: str
    folder: Path  # of the base model
    persona: str  # its name in config/personas
    recipe: Recipe
    context: int = 4096  # tokens that a serving prompt may have: training prompts are cut alike
    seconds: float = Field(gt=0)  # that it may take, without the time in which it was held


class EvaluateJob(Value):
    """Evaluate revisions: each is a folder with an adapter, None for the base alone.

    The job's folder gets `evaluation.json` (see training.evaluate). Results for a revision and
    suite that `known` has already are taken from there.
    """

    task: Literal["evaluate"] = "evaluate"
    model: str
    folder: Path
    persona: str
    revisions: dict[str, Path | None]
    held_out: Path | None = None  # an Example file whose completion-only loss is taken
    lessons: Path | None = None  # an Example file whose questions are asked too
    regressions: Path | None = None  # an Example file of corrections: none may be lost again
    known: Path | None = None
    limit: int | None = Field(None, ge=1, description="Cases of each suite; null: all.")
    context: int = 4096


class ServeJob(Value):
    """Serve a base with an adapter on it as the engine does, and measure that.

    The job's folder gets `served.json` (see training.compare.serve). `probes` are asked for the
    time that answers take, `questions` for what is answered.
    """

    task: Literal["serve"] = "serve"
    model: str
    folder: Path
    adapter: Path | None
    persona: str
    probes: tuple[str, ...] = Field(min_length=1)
    rounds: int = Field(3, ge=1)
    questions: tuple[str, ...] = ()
    held_out: Path | None = None  # an Example file: its loss without the adapter and with it
    context: int = 4096


Job = TrainJob | EvaluateJob | ServeJob


class Progress(Value):
    """How far a child is. Losses are means over completion tokens, in nats."""

    event: Literal["progress"] = "progress"
    stage: Literal["load", "sft", "reference", "kto", "evaluate", "serve"]
    step: int
    steps: int
    loss: float | None = None
    held_out: float | None = None
    tokens_per_second: float | None = None
    seconds: float | None = None  # that the step took


class Estimate(Value):
    """What a training run will need, in bytes, before it begins."""

    event: Literal["estimate"] = "estimate"
    total: int
    parts: dict[str, int]


class Ended(Value):
    """The last event. `reason` names a text `night.reason.<reason>` when it did not go well."""

    event: Literal["ended"] = "ended"
    ok: bool
    reason: Literal[
        "", "nan", "exploding", "memory", "disk", "deadline", "dataset", "model", "fault"
    ] = ""
    detail: str = ""


Event = Progress | Estimate | Ended

_JOB: TypeAdapter[Job] = TypeAdapter(Job)
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def read_job(folder: Path) -> Job:
    """The job in a folder. Raises OSError or ValueError."""
    return _JOB.validate_json((folder / JOB).read_bytes())


def parse_event(line: str | bytes) -> Event:
    """One line of a child's output. Raises ValueError."""
    return _EVENT.validate_json(line)


def emit(event: Event) -> None:
    """Say something to whoever started this child."""
    sys.stdout.write(event.model_dump_json(exclude_none=True) + "\n")
    sys.stdout.flush()
