"""The training loop: SFT on answers, then KTO on votes, resumable at every step.

What a step does follows from base, data, recipe and step number alone, so a run that was killed
ends with the very weights of one that was not. A run that meets its deadline still counts when its
best weights so far beat the base on the held-out answers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from mlx.optimizers import AdamW
from mlx.utils import tree_unflatten

from engine.lora import random_state
from training import losses
from training.batches import Batch, Row, in_order, mismatched
from training.checkpoint import Checkpoints, Saved
from training.job import Progress
from training.network import Network
from training.recipe import Recipe
from training.schedule import Clock, Groups, learning_rate

Stage = Literal["sft", "kto"]
Reason = Literal["nan", "exploding", "deadline", "dataset"]
Weights = dict[str, Any]

SURGE = 2.0  # nats over the first loss, as a mean of so many steps: it explodes
SURGE_STEPS = 5
NORM_LIMIT = 1e4  # of a gradient
KEPT = ("stage", "step", "best_loss", "worse", "curve", "tokens", "seconds", "stopped")


class Stop(Exception):
    """The run ends without a result."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Data:
    """The rows of a run."""

    train: Sequence[Row]
    held_out: Sequence[Row] = ()
    preferences: Sequence[Row] = ()


@dataclass(slots=True)
class State:
    """Where a run stands: all that a checkpoint holds."""

    weights: Weights
    optimizer: AdamW
    stage: Stage = "sft"
    step: int = 0
    best: Weights | None = None
    best_loss: float | None = None
    worse: int = 0  # looks since the best one
    reference: tuple[Any, Any] | None = None  # log-probs of preferences, and of mismatched pairs
    curve: dict[str, list[dict[str, float]]] = field(default_factory=lambda: {"sft": [], "kto": []})
    tokens: int = 0
    seconds: float = 0.0
    stopped: str = ""  # why SFT or all ended early


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run ends with; `stopped` says if that was early: `held_out` or `deadline`."""

    weights: Mapping[str, np.ndarray[Any, Any]]
    curve: dict[str, list[dict[str, float]]]
    tokens: int
    seconds: float
    stopped: str


class Trainer:
    """One run on a network whose model has its LoRA layers on."""

    def __init__(
        self,
        network: Network,
        weights: Weights,
        data: Data,
        recipe: Recipe,
        *,
        checkpoints: Checkpoints,
        clock: Clock,
        report: Callable[[Progress], None],
    ) -> None:
        self._network = network
        self._data = data
        self._recipe = recipe
        self._checkpoints = checkpoints
        self._clock = clock
        self._report = report
        self._mismatched = mismatched(data.preferences)
        self._settings = [
            recipe.beta,
            *losses.balance(
                sum(row.liked for row in data.preferences),
                sum(not row.liked for row in data.preferences),
            ),
        ]
        # Without a C++ compiler MLX computes the same on a CPU, an eighth slower.
        self._log_probs = mx.compile(self._by_weights)
        self._sft_gradient = mx.compile(mx.value_and_grad(self._sft_loss))
        self._kto_gradient = mx.compile(mx.value_and_grad(self._kto_loss))
        self.state = State(weights, self._optimizer(weights))

    def run(self) -> Outcome:
        """Train to the end, from the last checkpoint if there is one. Raises Stop, OSError."""
        saved = self._checkpoints.newest()
        if saved:
            self._restore(saved)
        try:
            if self.state.stage == "sft":
                self._sft()
                self._turn_to_kto()
            self._kto()
        except Stop as stop:
            if stop.reason != "deadline" or not self._usable():
                raise
            self.state.stopped = "deadline"
        state = self.state
        final = state.best if state.stopped == "deadline" and state.best else state.weights
        return Outcome(to_numpy(final), state.curve, state.tokens, state.seconds, state.stopped)

    def _sft(self) -> None:
        state, recipe = self.state, self._recipe
        groups = Groups(self._data.train, recipe.sft, recipe.seed, recipe.rehearsal)
        if not state.curve["sft"] and self._data.held_out:
            state.curve["sft"].append({"step": 0, "held_out": self._held_out()})
        while state.step < groups.steps and state.worse < recipe.patience:
            group = groups.at(state.step)
            tokens = sum(len(row.completion) for rows in group for row in rows)
            loss, gradients = 0.0, None
            for rows in group:
                part, more = self._sft_gradient(
                    state.weights, self._arrays(rows), mx.array(1 / tokens)
                )
                loss, gradients = loss + part, _add(gradients, more)
            self._finish("sft", groups, loss, gradients)
        if state.worse >= recipe.patience:
            state.stopped = "held_out"

    def _turn_to_kto(self) -> None:
        """From the best weights on, with a fresh optimizer; they are the reference."""
        state = self.state
        state.weights = state.best or state.weights
        state.best = state.weights
        state.optimizer = self._optimizer(state.weights)
        state.stage, state.step = "kto", 0
        if not self._data.preferences or not self._recipe.kto.epochs:
            return
        first = self._by_row(self._data.preferences, "reference")
        second = self._by_row(self._mismatched, "reference")
        state.reference = first, second
        self._save()

    def _kto(self) -> None:
        state, recipe = self.state, self._recipe
        if state.reference is None:
            return
        groups = Groups(self._data.preferences, recipe.kto, recipe.seed)
        gold = Groups(self._data.train, recipe.kto, recipe.seed)
        while state.step < groups.steps:
            indices = groups.indices(state.step)
            count = sum(map(len, indices))
            loss, gradients = 0.0, None
            for some in indices:
                part, more = self._kto_gradient(
                    state.weights,
                    self._arrays([self._data.preferences[i] for i in some]),
                    state.reference[0][mx.array(list(some))],
                    self._divergence(some),
                    mx.array(self._settings),
                    mx.array(1 / count),
                )
                loss, gradients = loss + part, _add(gradients, more)
            if recipe.gold and gold.steps:
                rows = gold.at(state.step % gold.steps)[0]
                scale = recipe.gold / sum(len(row.completion) for row in rows)
                _, more = self._sft_gradient(state.weights, self._arrays(rows), mx.array(scale))
                gradients = _add(gradients, more)
            self._finish("kto", groups, loss, gradients)

    def _finish(self, stage: Stage, groups: Groups, loss: Any, gradients: Any) -> None:
        """Take the step, look at what it did, and save when it is time."""
        state, recipe = self.state, self._recipe
        plan = recipe.sft if stage == "sft" else recipe.kto
        rate = learning_rate(state.step, groups.steps, plan)
        norm = self._apply(gradients, rate)
        point = {"step": state.step + 1, "loss": float(loss), "norm": norm, "rate": rate}
        state.step += 1
        state.curve[stage].append(point)
        self._check(stage)
        last = state.step == groups.steps
        if last or state.step % recipe.look_every == 0:
            self._look(stage, point)
        read = sum(len(row) for rows in groups.at(state.step - 1) for row in rows)
        took = self._clock.tick()
        state.tokens += read
        state.seconds += took
        self._report(
            Progress(
                stage=stage,
                step=state.step,
                steps=groups.steps,
                loss=point["loss"],
                held_out=point.get("held_out"),
                tokens_per_second=read / took if took else None,
                seconds=took,
            )
        )
        if last or state.step % recipe.save_every == 0:
            self._save()
        if self._clock.over(state.seconds) and not last:
            raise Stop("deadline", f"{stage} {state.step}/{groups.steps}")

    def _apply(self, gradients: Weights, rate: float) -> float:
        state = self.state
        norm = mx.sqrt(mx.stack([mx.square(part).sum() for part in gradients.values()]).sum())
        shrink = mx.minimum(self._recipe.clip / (norm + 1e-6), 1.0)
        state.optimizer.learning_rate = rate
        clipped = {name: part * shrink for name, part in gradients.items()}
        state.weights = state.optimizer.apply_gradients(clipped, state.weights)
        mx.eval(state.weights, state.optimizer.state, norm)
        return float(norm)

    def _check(self, stage: Stage) -> None:
        """Raise Stop where this leads nowhere."""
        points = [point for point in self.state.curve[stage] if "loss" in point]
        loss, norm = points[-1]["loss"], points[-1]["norm"]
        where = f"{stage} {self.state.step}: loss {loss:.4g}, gradient {norm:.4g}"
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise Stop("nan", where)
        recent = [point["loss"] for point in points[-SURGE_STEPS:]]
        surge = len(points) > SURGE_STEPS and statistics.mean(recent) > points[0]["loss"] + SURGE
        if norm > NORM_LIMIT or surge:
            raise Stop("exploding", where)

    def _look(self, stage: Stage, point: dict[str, float]) -> None:
        """The loss on the held-out rows; in SFT the best weights are kept by it."""
        if not self._data.held_out:
            return
        state = self.state
        point["held_out"] = loss = self._held_out()
        if not math.isfinite(loss):
            raise Stop("nan", f"{stage} {state.step}: held-out loss {loss}")
        if stage == "kto":
            return
        if state.best_loss is None or loss < state.best_loss:
            state.best, state.best_loss, state.worse = state.weights, loss, 0
        else:
            state.worse += 1

    def _held_out(self) -> float:
        """The mean loss of a held-out completion token, always over the same batches."""
        rows = self._data.held_out
        total = 0.0
        for some in in_order([len(row) for row in rows], self._recipe.sft.batch):
            arrays = self._arrays([rows[index] for index in some])
            total += float(losses.sft(self._log_probs(self.state.weights, arrays), arrays))
        return total / sum(len(row.completion) for row in rows)

    def _usable(self) -> bool:
        """Whether the best weights so far are worth the gate's time."""
        if self.state.stage == "kto":
            return True
        first = self.state.curve["sft"][0].get("held_out")
        best = self.state.best_loss
        return first is not None and best is not None and best < first

    def _by_row(self, rows: Sequence[Row], stage: Literal["reference"]) -> Any:
        """Log-probs of completions under the present weights, in the rows' order."""
        values = np.zeros(len(rows), np.float32)
        batches = in_order([len(row) for row in rows], self._recipe.kto.batch)
        for number, some in enumerate(batches, start=1):
            arrays = self._arrays([rows[index] for index in some])
            logs = self._log_probs(self.state.weights, arrays)
            values[some] = np.array(losses.by_row(logs, arrays))
            self._report(Progress(stage=stage, step=number, steps=len(batches)))
        return mx.array(values)

    def _divergence(self, some: Sequence[int]) -> Any:
        """KTO's z0 for a batch, before its gradient is taken."""
        if not self._mismatched or len(some) < 2 or self.state.reference is None:  # noqa: PLR2004
            return mx.array(0.0)
        arrays = self._arrays([self._mismatched[index] for index in some])
        policy = losses.by_row(self._log_probs(self.state.weights, arrays), arrays)
        z0 = losses.divergence(policy, self.state.reference[1][mx.array(list(some))])
        mx.eval(z0)
        return z0

    def _by_weights(self, weights: Weights, batch: losses.Arrays) -> Any:
        self._network.model.update(tree_unflatten(list(weights.items())))
        return self._network.log_probs(batch)

    def _sft_loss(self, weights: Weights, batch: losses.Arrays, scale: Any) -> Any:
        return scale * losses.sft(self._by_weights(weights, batch), batch)

    def _kto_loss(
        self, weights: Weights, batch: losses.Arrays, reference: Any, z0: Any, *more: Any
    ) -> Any:
        settings, scale = more
        policy = losses.by_row(self._by_weights(weights, batch), batch)
        return scale * losses.kto(policy, reference, batch, z0, settings)

    def _arrays(self, rows: Sequence[Row]) -> losses.Arrays:
        return to_arrays(Batch.of(rows, self._network.prefix))

    def _optimizer(self, weights: Weights) -> AdamW:
        made = AdamW(0.0, weight_decay=self._recipe.weight_decay, bias_correction=True)
        made.init(weights)
        return made

    def _save(self) -> None:
        state = self.state
        tensors: dict[str, Any] = {f"weights.{name}": one for name, one in state.weights.items()}
        for name in state.weights:
            for part, one in state.optimizer.state[name].items():
                tensors[f"optimizer.{part}.{name}"] = one
        tensors |= {f"best.{name}": one for name, one in (state.best or {}).items()}
        if state.reference:
            tensors |= {"reference.0": state.reference[0], "reference.1": state.reference[1]}
        number = sum(map(len, state.curve.values())) + (state.stage == "kto")
        facts = {name: getattr(state, name) for name in KEPT} | {"random": random_state()}
        self._checkpoints.save(number, Saved(to_numpy(tensors), facts))

    def _restore(self, saved: Saved) -> None:
        state = self.state
        groups: dict[str, Weights] = {}
        for name, value in saved.tensors.items():
            group, _, rest = name.partition(".")
            groups.setdefault(group, {})[rest] = mx.array(value)
        mx.random.seed(saved.state["random"])
        for name in KEPT:
            setattr(state, name, saved.state[name])
        names = list(state.weights)  # in this order: the last bits of sums depend on it
        state.weights = {name: groups["weights"][name] for name in names}
        state.best = {name: groups["best"][name] for name in names} if "best" in groups else None
        state.optimizer = self._optimizer(state.weights)
        state.optimizer.state["step"] = mx.array(state.step, mx.uint64)
        for name, value in groups["optimizer"].items():
            part, _, rest = name.partition(".")
            state.optimizer.state[rest][part] = value
        if "reference" in groups:
            state.reference = groups["reference"]["0"], groups["reference"]["1"]


def to_arrays(batch: Batch) -> losses.Arrays:
    """What the losses and the network need of a batch."""
    names = ("tokens", "places", "where", "targets", "weights", "owner", "liked")
    return {name: mx.array(getattr(batch, name)) for name in names}


def to_numpy(tensors: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """MLX arrays as numpy's."""
    return {name: np.array(value) for name, value in tensors.items()}


def _add(total: Weights | None, more: Weights) -> Weights:
    """Computed at once: two passes' activations would not fit together."""
    added = more if total is None else {name: total[name] + part for name, part in more.items()}
    mx.eval(added)
    return added
