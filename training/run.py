"""The child process that trains: from a job's folder to the `result` in it.

Whatever goes wrong is said in the last event; nothing half-written stays. Only a kill leaves the
checkpoints, and the next start goes on from them.
"""

from __future__ import annotations

import errno
import hashlib
import platform
import resource
import shutil
import sys
import time
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.numpy import save

from bot.errors import ConfigError, ModelError
from bot.prompts import Persona
from engine.lora import CONFIG, WEIGHTS
from engine.plan import detect, prepare
from training import memory
from training.batches import Writer, shared_prefix
from training.checkpoint import Checkpoints
from training.child import quietly
from training.examples import Example, Preference, read_lines
from training.files import commit, sweep, to_json
from training.job import Ended, Estimate, Progress, TrainJob, emit, read_job
from training.recipe import Recipe
from training.schedule import Clock, Groups
from training.wordings import loosened

if TYPE_CHECKING:
    from engine.models import LoadedModel
    from training.trainer import Data, Outcome

RESULT, CHECKPOINTS, DATASET = "result", "checkpoints", "dataset"
CACHE_LIMIT = 256 * 2**20  # of freed memory that MLX keeps for itself
VERSIONS = ("mlx", "mlx-lm", "numpy", "safetensors")
NO_ROOM = "error.model_memory"
NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}


def train(folder: Path) -> int:
    """Do the job in `folder`; 0 when there is a result. Everything is told as events."""
    try:
        with quietly():
            ended = _train(folder)
    except Exception as fault:  # noqa: BLE001 (a person reads a reason, whatever happened)
        ended = explain(fault)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    sweep(folder)
    emit(ended)
    return 0 if ended.ok else 1


def _train(folder: Path) -> Ended:
    job = read_job(folder)
    if not isinstance(job, TrainJob):
        raise TypeError(job.task)
    if (folder / RESULT).is_dir():
        return Ended(ok=True)
    emit(Progress(stage="load", step=0, steps=1))
    plan = prepare(detect())
    import mlx.core as mx

    from engine import models

    mx.set_cache_limit(CACHE_LIMIT)
    loaded = models.load(job.folder, plan, job.model)
    mx.reset_peak_memory()
    emit(Progress(stage="load", step=1, steps=1))
    result = _learn(folder, job, loaded)
    commit(folder / RESULT, result)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return Ended(ok=True)


def _learn(folder: Path, job: TrainJob, loaded: LoadedModel) -> dict[str, bytes]:
    """Train, and give the files of the result."""
    import mlx.core as mx

    from engine import lora
    from training import trainer
    from training.network import can_share, training_on

    recipe = job.recipe
    data, dropped = read_data(folder / DATASET, job, loaded.tokenizer)
    config = adapter_config(recipe, len(loaded.model.layers))
    mx.random.seed(recipe.seed)
    everything = [*data.train, *data.held_out, *data.preferences]
    prefix = shared_prefix(everything) if can_share(loaded.model) else 0
    lora.attach(loaded.model, config)
    loaded.model.eval()  # nothing is dropped at random
    weights = lora.weights_of(loaded.model)
    mx.eval(weights)
    estimate = _estimate(loaded, recipe, data, prefix)
    emit(estimate)
    with training_on(loaded.model, prefix, checkpoint=recipe.checkpoint_gradients) as network:
        run = trainer.Trainer(
            network,
            weights,
            data,
            recipe,
            checkpoints=Checkpoints(folder / CHECKPOINTS, _run_name(folder, job, loaded)),
            clock=Clock(time.monotonic, job.seconds),
            report=emit,
        )
        outcome = run.run()
    facts = summary(outcome, recipe, dropped) | {
        "estimate": estimate.model_dump(include={"total", "parts"}),
        "peak_memory": {"mlx": mx.get_peak_memory(), "process": process_peak()},
    }
    described = {"recipe": recipe.model_dump(mode="json"), "versions": versions()}
    return {
        WEIGHTS: save(dict(outcome.weights), {"format": "mlx"}),
        CONFIG: to_json(config),
        "training_config.json": to_json(described),
        "curve.json": to_json(outcome.curve),
        "result.json": to_json(facts),
    }


def read_data(dataset: Path, job: TrainJob, tokenizer: Any) -> tuple[Data, Counter[str]]:
    """The job's examples as rows, and how many gave none, by reason. Raises Stop without any."""
    from training.trainer import Data, Stop

    writer = Writer.of(tokenizer, Persona.load(job.persona), job.context, job.recipe.max_length)
    try:
        given = read_lines(dataset / "train.jsonl", Example)
        looser = [other for example in given for other in loosened(example)]
        train = writer.rows([*given, *looser])
        held_out = writer.rows(read_lines(dataset / "held_out.jsonl", Example))
        votes = writer.rows(read_lines(dataset / "preferences.jsonl", Preference))
    except (OSError, ValueError) as fault:
        raise Stop("dataset", str(fault).splitlines()[0]) from fault
    dropped = train.dropped + held_out.dropped + votes.dropped
    if not train.rows:
        raise Stop("dataset", f"no row left of train.jsonl: {dict(dropped)}")
    return Data(train.rows, held_out.rows, votes.rows), dropped


def adapter_config(recipe: Recipe, depth: int) -> dict[str, Any]:
    """The recipe's layers as mlx-lm's adapter_config.json; `depth` is the model's."""
    return {
        "fine_tune_type": recipe.kind,
        "num_layers": depth if recipe.layers < 0 else min(recipe.layers, depth),
        "lora_parameters": {
            "rank": recipe.rank,
            "scale": recipe.scale,
            "dropout": 0.0,
            "keys": list(recipe.targets),
        },
    }


def _estimate(loaded: LoadedModel, recipe: Recipe, data: Data, prefix: int) -> Estimate:
    """From what was loaded and the largest pass of all that the run will make."""
    from mlx.utils import tree_flatten

    held = dict(tree_flatten(loaded.model.parameters()))
    adapter = {name for name, _ in tree_flatten(loaded.model.trainable_parameters())}
    base = sum(one.nbytes for name, one in held.items() if name not in adapter)
    groups = (
        Groups(data.train, recipe.sft, recipe.seed, recipe.rehearsal),
        Groups(data.preferences, recipe.kto, recipe.seed),
    )
    passes = [
        memory.largest(rows, len(rows), prefix)
        for some in groups
        for step in range(some.steps)
        for rows in some.at(step)
    ]
    half = _dtype(loaded.model) != "float32"
    widest = max(passes, key=lambda one: one.tokens, default=memory.largest((), 0, prefix))
    return memory.estimate(loaded.config, recipe, widest, base, half=half)


def _dtype(model: Any) -> str:
    """What the model computes in: the type of its norms, which are never quantised."""
    return str(model.layers[0].input_layernorm.weight.dtype).removeprefix("mlx.core.")


def _run_name(folder: Path, job: TrainJob, loaded: LoadedModel) -> str:
    """What a checkpoint must have been made from to be gone on with."""
    digest = hashlib.sha256(loaded.fingerprint.encode())
    digest.update(f"{job.recipe.model_dump_json()}{job.persona}{job.context}".encode())
    for file in sorted((folder / DATASET).iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def summary(outcome: Outcome, recipe: Recipe, dropped: Counter[str]) -> dict[str, Any]:
    """The run in figures, for result.json."""
    stages: dict[str, Any] = {}
    for stage, points in outcome.curve.items():
        lost = [point["loss"] for point in points if "loss" in point]
        held = [point["held_out"] for point in points if "held_out" in point]
        if not lost:
            continue
        stages[stage] = {
            "steps": len(lost),
            "epochs": (recipe.sft if stage == "sft" else recipe.kto).epochs,
            "loss": {"first": lost[0], "last": lost[-1], "best": min(lost)},
        }
        if held:
            stages[stage]["held_out"] = {"first": held[0], "last": held[-1], "best": min(held)}
    return {
        "stages": stages,
        "steps": sum(stage["steps"] for stage in stages.values()),
        "seconds": round(outcome.seconds, 3),
        "tokens": outcome.tokens,
        "tokens_per_second": round(outcome.tokens / max(outcome.seconds, 1e-9), 1),
        "dropped": dict(dropped),
        "stopped": outcome.stopped,
    }


def explain(fault: Exception) -> Ended:
    """Why a run has no result."""
    from training.trainer import Stop

    if isinstance(fault, Stop):
        return Ended(ok=False, reason=fault.reason, detail=fault.detail)
    detail = (str(fault).strip() or repr(fault)).splitlines()[0]
    short = isinstance(fault, RuntimeError) and "alloc" in detail.lower()
    if isinstance(fault, MemoryError) or short or getattr(fault, "key", "") == NO_ROOM:
        return Ended(ok=False, reason="memory", detail=detail)
    if isinstance(fault, ModelError | ConfigError):
        return Ended(ok=False, reason="model", detail=detail)
    if isinstance(fault, OSError) and fault.errno in NO_SPACE:
        return Ended(ok=False, reason="disk", detail=detail)
    return Ended(ok=False, reason="fault", detail=f"{type(fault).__name__}: {detail}")


def process_peak() -> int:
    """The most memory that this process ever had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def versions() -> dict[str, str]:
    """What the weights were made with."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    return found | {name: metadata.version(name) for name in VERSIONS}
