"""Training learns, stops for a reason, and goes on after a kill as if nothing had happened."""

from __future__ import annotations

import errno
import itertools
import json
from contextlib import contextmanager, nullcontext
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from bot.errors import ModelError
from engine import lora
from engine.plan import Backend, ComputePlan
from tests.tiny import tiny_model
from training import checkpoint, files, memory, run
from training.batches import Row, shared_prefix
from training.checkpoint import Checkpoints, Saved
from training.examples import Example, Kind, Preference, ask, write_lines
from training.job import JOB, Ended, Estimate, Progress, TrainJob
from training.network import training_on
from training.recipe import Phase, Recipe
from training.schedule import Clock, Groups, learning_rate
from training.trainer import Data, Stop, Trainer

END = 5
TARGETS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
RECIPE = Recipe(
    rank=4,
    targets=TARGETS,
    sft=Phase(epochs=3, learning_rate=0.02, warmup=2, batch=2, accumulation=2),
    kto=Phase(epochs=2, learning_rate=0.01, warmup=1, batch=2),
    look_every=2,
    save_every=1,
    patience=9,
)


def rows(count, first=0):
    return [
        Row(str(i), (1, 2, 3, 10 + i, 30 - i), (*(20 + i, 21 + i % 3, 22)[: 1 + i % 3], END))
        for i in range(first, first + count)
    ]


def votes(count):
    return [
        Row(f"v{i}", (1, 2, 3, 10 + i % 6), (40 + i % 2, 42, 43, END), liked=i % 2 == 0)
        for i in range(count)
    ]


DATA = Data(rows(7), rows(3, first=4), votes(5))


@contextmanager
def training(
    folder, recipe=RECIPE, data=DATA, *, report=lambda _: None, seconds=1e9, now=None, run_name="r"
):
    model = tiny_model()
    mx.random.seed(recipe.seed)
    lora.attach(model, run.adapter_config(recipe, 2))
    prefix = shared_prefix([*data.train, *data.held_out, *data.preferences])
    with training_on(model, prefix, checkpoint=recipe.checkpoint_gradients) as network:
        yield Trainer(
            network,
            lora.weights_of(model),
            data,
            recipe,
            checkpoints=Checkpoints(folder, run_name),
            clock=Clock(now or itertools.count().__next__, seconds),
            report=report,
        )


def train(folder, recipe=RECIPE, data=DATA, **more):
    with training(folder, recipe, data, **more) as trainer:
        return trainer.run()


def same(one, other):
    return (
        one.curve == other.curve
        and one.weights.keys() == other.weights.keys()
        and all(np.array_equal(value, other.weights[name]) for name, value in one.weights.items())
    )


class Kill(BaseException):
    """The process is gone: nothing catches this."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"))


def test_it_learns_the_answers_and_then_the_votes(uninterrupted):
    sft, kto = uninterrupted.curve["sft"], uninterrupted.curve["kto"]

    assert sft[-1]["loss"] < sft[1]["loss"] - 1
    assert kto[0]["loss"] == pytest.approx(0.5, abs=0.15)  # times the weight of a vote
    assert kto[-1]["loss"] < kto[0]["loss"]
    assert [point["step"] for point in sft if "held_out" in point] == [0, 2, 4, 6]
    assert uninterrupted.stopped == ""


STEPS = 6 + 6  # SFT: 7 rows in 4 batches, two a step, 3 epochs; KTO: 5 rows in 3 batches, 2 epochs


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("killed", range(1, STEPS + 1))
def test_killed_at_any_step_it_ends_with_the_same_bits(tmp_path, uninterrupted, killed, kind):
    recipe = RECIPE.model_copy(update={"kind": kind, "save_every": 2})
    left = iter(range(killed))

    def report(progress):
        if progress.stage in {"sft", "kto"} and next(left) == killed - 1:
            raise Kill

    with pytest.raises(Kill):
        train(tmp_path, recipe, report=report)
    whole = uninterrupted if kind == "lora" else train(tmp_path / "whole", recipe)
    resumed = []
    assert same(train(tmp_path, recipe, report=resumed.append), whole)
    assert len([one for one in resumed if one.stage in {"sft", "kto"}]) <= STEPS - killed + 2


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("which", [1, 2, 6, 8])
def test_killed_while_a_checkpoint_is_written_too(
    tmp_path, uninterrupted, which, moment, monkeypatch
):
    replace, count = files.os.replace, itertools.count(1)

    def dying(source, target):
        last = next(count) == which
        if not last or moment == "after":
            replace(source, target)
        if last:
            raise Kill

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", dying)
        patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # as nobody cleans up
        with pytest.raises(Kill):
            train(tmp_path)
    assert bool(list(tmp_path.glob(f"{files.DRAFT}*"))) == (moment == "before")

    assert same(train(tmp_path), uninterrupted)
    assert not list(tmp_path.glob(f"{files.DRAFT}*"))
    assert len(list(tmp_path.iterdir())) == 2


def test_checkpointing_gradients_changes_no_bit(tmp_path, uninterrupted):
    assert same(
        train(tmp_path, RECIPE.model_copy(update={"checkpoint_gradients": True})), uninterrupted
    )


def test_accumulation_is_weighted_by_tokens(tmp_path):
    """Two passes of one row each are the step that one pass of both is."""
    step = RECIPE.sft.model_copy(update={"epochs": 1})
    together = step.model_copy(update={"batch": 2, "accumulation": 1})
    apart = step.model_copy(update={"batch": 1, "accumulation": 2})
    data = Data([rows(1)[0], rows(3)[2]])
    one, other = (
        train(tmp_path / name, RECIPE.model_copy(update={"sft": plan}), data)
        for name, plan in (("one", together), ("other", apart))
    )
    assert one.curve["sft"][0]["loss"] == pytest.approx(other.curve["sft"][0]["loss"], rel=1e-5)
    assert one.curve["sft"][0]["norm"] == pytest.approx(other.curve["sft"][0]["norm"], rel=1e-4)


def test_a_set_smaller_than_a_batch_is_learnt(tmp_path):
    assert len(train(tmp_path, data=Data(rows(1))).curve["sft"]) == 3


def test_it_stops_when_the_held_out_loss_only_rises_and_keeps_the_best(tmp_path):
    """Held out are the same questions with other answers: the better one is learnt, the worse."""
    against = [Row(row.id, row.prompt, (50, 51, END)) for row in rows(4)]
    plan = RECIPE.sft.model_copy(update={"epochs": 60, "learning_rate": 0.05})
    recipe = RECIPE.model_copy(update={"sft": plan, "look_every": 3, "patience": 2})
    outcome = train(tmp_path, recipe, Data(rows(4), against))

    looks = [point["held_out"] for point in outcome.curve["sft"][1:] if "held_out" in point]
    assert outcome.stopped == "held_out"
    assert looks[-1] > min(looks)
    assert looks.index(min(looks)) == len(looks) - 3
    with training(tmp_path / "again", recipe, Data(rows(4), against)) as trainer:
        trainer.state.weights = {name: mx.array(one) for name, one in outcome.weights.items()}
        assert trainer._held_out() == pytest.approx(min(looks), rel=1e-6)


def test_the_policy_leaves_the_reference_and_what_was_disliked_saturates(tmp_path):
    plan = Phase(epochs=60, learning_rate=0.01, warmup=1, batch=4)
    sft = RECIPE.sft.model_copy(update={"epochs": 1})
    recipe = RECIPE.model_copy(update={"kto": plan, "sft": sft, "save_every": 1000})
    data = Data(rows(4), (), votes(8))
    seen = {True: [], False: []}

    with training(tmp_path, recipe, data) as trainer:

        def report(progress):
            if progress.stage == "kto" and progress.step % 10 == 0:
                now = np.array(trainer._by_row(data.preferences, "reference"))
                ahead = now - np.array(trainer.state.reference[0])
                for liked, means in seen.items():
                    which = [row.liked == liked for row in data.preferences]
                    means.append(float(ahead[which].mean()))

        trainer._report = report
        outcome = trainer.run()

    assert len(outcome.curve["kto"]) == 120
    assert outcome.curve["kto"][0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert outcome.curve["kto"][0]["norm"] > 0
    assert seen[True][-1] > 1
    assert seen[False][-1] < -5
    falls = [before - after for before, after in itertools.pairwise(seen[False])]
    assert max(falls[-4:]) < 0.5 * max(falls)  # ever slower: it saturates
    assert seen[False][-1] > -300


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_it(tmp_path, broken):
    with training(tmp_path) as trainer:
        trainer.state.weights = {
            name: one + broken if name.endswith("lora_a") else one
            for name, one in trainer.state.weights.items()
        }
        with pytest.raises(Stop) as caught:
            trainer.run()
    assert caught.value.reason == "nan"
    assert not tmp_path.exists() or not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("later", "norm", "reason"),
    [([5.5] * 5, 1.0, "exploding"), ([3.0], 1e5, "exploding"), ([9, 4, 4, 4, 4], 1.0, None)],
)
def test_a_run_that_explodes_is_stopped_and_one_that_jumps_is_not(tmp_path, later, norm, reason):
    with training(tmp_path) as trainer:
        losses = [3.0, *later]
        trainer.state.curve["sft"] = [{"step": 0, "held_out": 1.0}] + [
            {"step": step, "loss": loss, "norm": norm} for step, loss in enumerate(losses, start=1)
        ]
        if reason is None:
            trainer._check("sft")
            return
        with pytest.raises(Stop) as caught:
            trainer._check("sft")
    assert caught.value.reason == reason


def test_at_the_deadline_better_weights_than_the_bases_are_used(tmp_path):
    outcome = train(tmp_path, seconds=3)
    assert outcome.stopped == "deadline"
    assert len(outcome.curve["sft"]) == 4  # the first look, and three steps of a second each

    with pytest.raises(Stop, match="deadline"):
        train(tmp_path / "blind", data=Data(rows(7)), seconds=3)


def test_time_in_which_the_run_was_held_does_not_count():
    times = iter([0, 1, 2, 3, 4, 1004, 1005])
    clock = Clock(times.__next__, 20)
    took = [clock.tick() for _ in range(6)]
    assert took == [1, 1, 1, 1, 10, 1]
    assert not clock.over(sum(took))
    assert clock.over(20)


def test_another_runs_checkpoint_is_not_gone_on_with(tmp_path, uninterrupted):
    train(tmp_path, RECIPE.model_copy(update={"seed": 8}), run_name="other")
    assert same(train(tmp_path), uninterrupted)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path):
    kept = Checkpoints(tmp_path, "r")
    for number in (1, 2, 3):
        kept.save(number, Saved({"a": np.array([number])}, {"step": number}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000002", "00000003"]
    assert kept.newest().state == {"step": 3}

    whole = (tmp_path / "00000003" / checkpoint.TENSORS).read_bytes()
    (tmp_path / "00000003" / checkpoint.TENSORS).write_bytes(whole[:-1] + b"\x09")
    found = kept.newest()
    assert (found.state, found.tensors["a"].tolist()) == ({"step": 2}, [2])
    kept.save(3, Saved({"a": np.array([4])}, {"step": 3}))
    assert kept.newest().tensors["a"].tolist() == [4]


def test_a_full_disk_leaves_nothing_half_written(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        train(tmp_path / "checkpoints")
    assert not list((tmp_path / "checkpoints").iterdir())


def test_the_learning_rate_rises_and_falls():
    plan = Phase(epochs=1, learning_rate=1.0, warmup=4)
    rates = [learning_rate(step, 40, plan) for step in range(40)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.1 <= rates[-1] < 0.11


def test_each_step_of_an_epoch_has_its_own_batches():
    groups = Groups(rows(7), RECIPE.sft, 7)
    assert groups.steps == 6
    for epoch in range(3):
        seen = [row.id for step in (0, 1) for some in groups.at(2 * epoch + step) for row in some]
        assert sorted(seen) == sorted(row.id for row in rows(7))


def an_epoch(groups, epoch, plan):
    steps = groups.steps // plan.epochs
    return [
        row for step in range(steps) for some in groups.at(steps * epoch + step) for row in some
    ]


def test_an_epoch_sees_all_that_was_taught_and_the_next_part_of_what_is_known():
    plan = Phase(epochs=8, learning_rate=1.0, batch=8)
    taught = [Row(f"lesson:{i}", (1,) * (9 + i % 5), (2,)) for i in range(40)]
    facts = [Row(f"fact:{i}", (1,) * (9 + i % 7), (3,), kind=Kind.FACT) for i in range(60)]
    talk = [Row(f"talk:{i}", (1,) * (9 + i % 7), (3,), kind=Kind.REPLAY) for i in range(100)]
    groups = Groups([*taught, *facts, *talk], plan, 7, rehearsal=2.0)
    epochs = [an_epoch(groups, epoch, plan) for epoch in range(plan.epochs)]
    for rows_seen in epochs:
        names = [row.id for row in rows_seen]
        assert len(names) == len(set(names)) == 40 + 16 + 38
        assert {row.id for row in taught} < set(names)
    first_four = {row.id for rows_seen in epochs[:4] for row in rows_seen}
    assert first_four == {row.id for row in (*taught, *facts, *talk)}


def test_little_that_was_taught_still_comes_with_some_of_what_is_known():
    plan = Phase(epochs=1, learning_rate=1.0, batch=4)
    rows_given = [Row("lesson:1", (1, 1), (2,))]
    rows_given += [Row(f"talk:{i}", (1, 1), (3,), kind=Kind.REPLAY) for i in range(200)]
    assert len(an_epoch(Groups(rows_given, plan, 7, rehearsal=2.0), 0, plan)) == 1 + 30
    assert len(an_epoch(Groups(rows_given, plan, 7, rehearsal=None), 0, plan)) == 201


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Stop("exploding", "sft 3"), "exploding"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (MemoryError("std::bad_alloc"), "memory"),
        (RuntimeError("[malloc] Unable to allocate 9 bytes."), "memory"),
        (ModelError("error.model_memory", needed="9", free="1"), "memory"),
        (ModelError("error.model_truncated", file="x"), "model"),
        (KeyError("hidden_size"), "fault"),
    ],
)
def test_every_fault_has_a_reason(fault, reason):
    ended = run.explain(fault)
    assert (ended.ok, ended.reason) == (False, reason)
    assert ended.detail


CONFIG = {
    "num_hidden_layers": 30, "hidden_size": 576, "num_attention_heads": 9,
    "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152,
}  # fmt: skip


def test_memory_is_counted_by_part_and_fits_or_not():
    largest = memory.Pass(rows=4, shared=177, length=80, targets=144)
    plain = memory.estimate(CONFIG, Recipe(), largest, 538_060_032)
    assert plain.total == sum(plain.parts.values())
    assert plain.parts["adapter"] == 30 * 4 * 16 * (
        2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)
    )
    saving = memory.estimate(CONFIG, Recipe(checkpoint_gradients=True), largest, 538_060_032)
    assert saving.parts["activations"] < 0.15 * plain.parts["activations"]
    half = memory.estimate(CONFIG, Recipe(), largest, 80_000_000, half=True)
    assert half.parts["activations"] < plain.parts["activations"]
    assert (
        memory.estimate(CONFIG, Recipe(kind="dora"), largest, 0).total > plain.total - 538_060_032
    )

    assert memory.fits(plain, int(1.2 * plain.total))
    assert not memory.fits(plain, plain.total)


@pytest.mark.model
def test_what_is_foretold_from_the_files_is_on_the_safe_side(embedded_model):
    fast = ComputePlan(Backend.CPU, "blas", dequantise=True, why="tests")
    slow = ComputePlan(Backend.CPU, None, dequantise=False, why="tests")
    foretold = memory.forecast(embedded_model, fast, Recipe(), shared=177, longest=258)
    known = memory.estimate(CONFIG, Recipe(), memory.Pass(8, 177, 80, 288), 538_060_032)

    assert known.total < foretold.total < 1.2 * known.total
    assert memory.forecast(embedded_model, fast, Recipe()).total > foretold.total
    assert memory.forecast(embedded_model, slow, Recipe()).parts["weights"] < 0.2 * 538_060_032


def test_the_largest_pass_is_that_of_the_longest_rows():
    some = rows(7)
    assert memory.largest(some, 2, 3) == memory.Pass(rows=2, shared=3, length=8, targets=16)
    assert memory.largest([], 2, 3).tokens == 0


def a_job(folder: Path, model: Path, recipe: Recipe, **more) -> Path:
    dataset = folder / run.DATASET
    dataset.mkdir(parents=True)
    answers = {
        "What is the club called?": "It is called Farense.",
        "Which colours do we wear?": "Black and white, always.",
        "Where do we play?": "In Faro, by the sea.",
    }
    learnt = [Example(q, Kind.TAUGHT, ask(q), answer) for q, answer in answers.items()]
    write_lines(dataset / "train.jsonl", learnt)
    write_lines(dataset / "held_out.jsonl", learnt[:1])
    liked = [
        Preference(q, ask(q), text, text != "No.") for q, text in (*answers.items(), ("", "No."))
    ]
    write_lines(dataset / "preferences.jsonl", [one for one in liked if one.turns[0].text])
    job = TrainJob(
        model="embedded", folder=model, persona="farense", recipe=recipe, seconds=600, **more
    )
    (folder / JOB).write_text(job.model_dump_json())
    return folder


@pytest.fixture
def told(monkeypatch):
    events = []
    monkeypatch.setattr(run, "emit", events.append)
    monkeypatch.setattr(run, "quietly", nullcontext)
    return events


def test_without_a_model_the_job_says_so_and_leaves_nothing(tmp_path, told):
    folder = a_job(tmp_path / "job", tmp_path / "nowhere", Recipe())
    (folder / run.CHECKPOINTS).mkdir()

    assert run.train(folder) == 1
    assert (told[-1].ok, told[-1].reason) == (False, "model")
    assert {path.name for path in folder.iterdir()} == {JOB, run.DATASET}


SHORT = Recipe(
    rank=4,
    layers=2,
    sft=Phase(epochs=2, learning_rate=1e-3, warmup=0, batch=2),
    kto=Phase(epochs=1, learning_rate=1e-5, warmup=0, batch=2),
    look_every=2,
)


@pytest.mark.model
def test_a_job_with_the_real_model_gives_a_result_that_stock_mlx_lm_serves(
    tmp_path, told, embedded_model
):
    folder = a_job(tmp_path / "job", embedded_model, SHORT)
    assert run.train(folder) == 0, told[-1]
    assert told[-1] == Ended(ok=True)
    assert {path.name for path in folder.iterdir()} == {JOB, run.DATASET, run.RESULT}
    stages = list(dict.fromkeys(event.stage for event in told if isinstance(event, Progress)))
    assert stages == ["load", "sft", "reference", "kto"]
    assert len([event for event in told if isinstance(event, Estimate)]) == 1

    result = folder / run.RESULT
    assert {path.name for path in result.iterdir()} == {
        "adapter_config.json", "adapters.safetensors", "training_config.json", "curve.json",
        "result.json",
    }  # fmt: skip
    facts = json.loads((result / "result.json").read_text())
    assert facts["steps"] == 12  # each question is there in looser wordings too
    held_out = facts["stages"]["sft"]["held_out"]
    assert held_out["last"] < held_out["first"]
    assert facts["peak_memory"]["mlx"] == pytest.approx(facts["estimate"]["total"], rel=0.15)
    assert facts["stages"]["kto"]["loss"]["first"] == pytest.approx(0.5, abs=1e-3)

    from mlx_lm.utils import load

    model, _ = load(str(embedded_model), adapter_path=str(result))
    assert mx.isfinite(model(mx.array([[3, 4, 5]]))).all().item()
    before = len(told)
    assert run.train(folder) == 0
    assert told[before:] == [Ended(ok=True)]


@pytest.mark.model
def test_a_job_without_a_usable_row_says_so(tmp_path, told, embedded_model):
    folder = a_job(tmp_path / "job", embedded_model, SHORT.model_copy(update={"max_length": 16}))
    assert run.train(folder) == 1
    assert told[-1].reason == "dataset"
    assert "long" in told[-1].detail
