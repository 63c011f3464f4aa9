"""Evaluation: the child's work, with the real embedded model where it is asked."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bot.errors import ModelError
from bot.prompts import Persona
from engine import lora, models, plan, prompting
from training import child, evaluation, suites
from training.asking import Spoken
from training.batches import Writer
from training.evaluate import DatasetError, evaluate, judge, reason_of
from training.evaluation import Known, Reply, SuiteResult
from training.examples import Example, Kind, ask, write_lines
from training.gate import judge as decide
from training.job import JOB, Ended, EvaluateJob, Progress, parse_event

ROOT = Path(__file__).resolve().parent.parent
ASKED = ("opposite", "capital-france", "sum")


def result(text="sim"):
    reply = Reply(id="a", question="?", text=text, passed=True, score=1, tokens=1, seconds=0)
    return SuiteResult(version="1", replies=(reply,), losses={"a": 0.5})


def test_known_results_outlive_the_process_and_the_oldest_go(tmp_path):
    path = tmp_path / "gate" / "known.json"
    known = Known(path)
    for number in range(evaluation.KNOWN_LIMIT + 5):
        known.put(str(number), result(str(number)))
    known.save()
    again = Known(path)
    assert again.get("4") is None
    assert again.get("5") == result("5")


def test_a_damaged_store_of_results_only_means_asking_again(tmp_path):
    path = tmp_path / "known.json"
    path.write_text('{"a": {"version"')
    known = Known(path)
    assert known.get("a") is None
    known.put("a", result())
    known.save()
    assert Known(path).get("a") == result()


def test_without_a_place_nothing_is_written():
    known = Known(None)
    known.put("a", result())
    known.save()
    assert known.get("a") == result()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (DatasetError("x"), "dataset"),
        (OSError(errno.ENOSPC, "full"), "disk"),
        (MemoryError(), "memory"),
        (RuntimeError("[malloc] Unable to allocate 5 bytes"), "memory"),
        (FloatingPointError("nan"), "nan"),
        (ModelError(), "model"),
        (ValueError("tensors missing"), "model"),
        (FileNotFoundError("adapter_config.json"), "model"),
        (RuntimeError("other"), "fault"),
    ],
)
def test_every_fault_has_the_name_of_a_text(fault, reason):
    assert reason_of(fault) == reason
    assert Ended(ok=False, reason=reason_of(fault)).reason == reason


def test_a_lesson_is_judged_by_what_was_taught(tmp_path):
    path = tmp_path / "lessons.jsonl"
    write_lines(path, [Example("lesson:1", Kind.TAUGHT, ask("Quem toca?"), "É a Dulce Marreiros.")])
    suite = suites.taught(suites.LESSONS, path)
    right, half = (
        judge(suite, suite.cases[0], Spoken(0.0, text, tokens=5))
        for text in ("Quem toca é a Dulce Marreiros!", "Quem toca é a Dulce.")
    )
    assert right.passed
    assert (half.passed, half.score) == (False, 0.5)
    assert right.chrf > half.chrf


def run(place, monkeypatch, capsys, **job):
    """Do a job in this process, which must not become a slow one."""
    monkeypatch.setattr(child, "quietly", nullcontext)
    place.mkdir(exist_ok=True)
    (place / JOB).write_text(EvaluateJob(**job).model_dump_json())
    code = evaluate(place)
    return code, [parse_event(line) for line in capsys.readouterr().out.splitlines()]


def test_unreadable_lessons_end_the_job_with_a_reason(tmp_path, monkeypatch, capsys):
    broken = tmp_path / "lessons.jsonl"
    broken.write_text("{}\n")
    job = {"model": "m", "folder": tmp_path, "persona": "farense", "revisions": {"base": None}}
    code, events = run(tmp_path / "job", monkeypatch, capsys, **job, lessons=broken)
    assert code == 1
    assert (events[-1].ok, events[-1].reason) == (False, "dataset")
    assert not (tmp_path / "job" / evaluation.FILE).exists()


def test_a_child_works_at_low_priority():
    code = "import os; from training.child import quietly\nwith quietly(): print(os.nice(0))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) >= 10


def adapter(folder, loaded, fill):
    """A rank 2 adapter on the last block; with `fill` 0 it changes nothing."""
    config = {
        "fine_tune_type": "lora",
        "num_layers": 1,
        "lora_parameters": {"rank": 2, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]},
    }
    width = loaded.config["hidden_size"]
    name = f"model.layers.{len(loaded.model.layers) - 1}.self_attn.q_proj"
    chance = np.random.default_rng(1)
    weights = {
        f"{name}.lora_a": chance.normal(size=(width, 2)).astype(np.float32),
        f"{name}.lora_b": np.full((2, width), fill, np.float32),
    }
    folder.mkdir()
    (folder / lora.CONFIG).write_text(json.dumps(config))
    save_file(weights, folder / lora.WEIGHTS)
    return folder


@pytest.fixture(scope="module")
def loaded(embedded_model):
    return models.load(embedded_model, plan.prepare(plan.detect()), "embedded")


@pytest.fixture
def few(monkeypatch):
    """Three cases of one suite."""
    general = next(suite for suite in suites.load() if suite.name == "general")
    cases = tuple(case for case in general.cases if case.id in ASKED)
    monkeypatch.setattr(suites, "load", lambda: [replace(general, cases=cases)])


@pytest.fixture
def job(tmp_path, embedded_model, loaded, few):
    held_out = tmp_path / "held_out.jsonl"
    write_lines(held_out, [Example("fact:1", Kind.FACT, ask("Name a city."), "Faro is a city.")])
    return {
        "model": "embedded",
        "folder": embedded_model,
        "persona": "farense",
        "held_out": held_out,
        "known": tmp_path / "known.json",
        "revisions": {
            "champion": None,
            "same": adapter(tmp_path / "same", loaded, 0.0),
            "other": adapter(tmp_path / "other", loaded, 5.0),
        },
    }


@pytest.mark.model
def test_revisions_are_asked_side_by_side(tmp_path, monkeypatch, capsys, job):
    code, events = run(tmp_path / "job", monkeypatch, capsys, **job)
    assert code == 0, events[-1]
    assert [event.step for event in events if isinstance(event, Progress)] == [0, *[1, 2, 3] * 3]
    found = evaluation.read(tmp_path / "job")
    base, same, other = (found.revisions[name] for name in ("champion", "same", "other"))
    assert len({one.digest for one in found.revisions.values()}) == 3
    opposite = next(one for one in base.suites["general"].replies if one.id == "opposite")
    assert opposite.text == "The opposite of hot is cold."
    assert opposite.passed
    assert [one.text for one in same.suites["general"].replies] == [
        one.text for one in base.suites["general"].replies
    ]
    for suite in ("general", "held_out"):
        assert same.suites[suite].losses == pytest.approx(base.suites[suite].losses, abs=1e-3)
        assert other.suites[suite].losses != pytest.approx(base.suites[suite].losses, abs=1e-3)
    names = {"candidate": "same", "champion": "champion", "anchor": "champion"}
    assert not decide(found, **names).promoted


@pytest.mark.model
def test_what_is_known_is_not_asked_again(tmp_path, monkeypatch, capsys, job):
    _, first = run(tmp_path / "job", monkeypatch, capsys, **job)
    _, second = run(tmp_path / "again", monkeypatch, capsys, **job)
    assert {event.stage for event in second if isinstance(event, Progress)} == {"load"}
    assert len(second) < len(first)
    before, now = (evaluation.read(tmp_path / name) for name in ("job", "again"))
    assert [one.suites for one in now.revisions.values()] == [
        one.suites for one in before.revisions.values()
    ]


@pytest.mark.model
def test_a_loss_is_that_of_the_answer_alone(tmp_path, monkeypatch, capsys, job, loaded):
    import mlx.core as mx

    run(tmp_path / "job", monkeypatch, capsys, **(job | {"revisions": {"base": None}}))
    found = evaluation.read(tmp_path / "job").revisions["base"].suites["held_out"].losses
    persona = Persona.load("farense")
    writer = Writer.of(loaded.tokenizer, persona, 4096, 4096)
    example = Example("fact:1", Kind.FACT, ask("Name a city."), "Faro is a city.")
    row = writer.row(example)
    logits = loaded.model(mx.array([[*row.prompt, *row.completion]]))[0]
    log_probs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    begin = len(row.prompt) - 1
    picked = [log_probs[begin + i, token].item() for i, token in enumerate(row.completion)]
    assert found["fact:1"] == pytest.approx(-sum(picked) / len(picked), abs=1e-3)
    text = loaded.tokenizer.decode(list(row.completion), skip_special_tokens=True)
    assert text == "Faro is a city."
    encode = partial(prompting.encode, loaded.tokenizer)
    assert row.prompt == encode([persona.turn, *example.turns])


@pytest.mark.model
def test_a_revision_that_does_not_fit_ends_the_job(tmp_path, monkeypatch, capsys, job):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / lora.CONFIG).write_text((tmp_path / "same" / lora.CONFIG).read_text())
    save_file({"model.lora_a": np.zeros((2, 2), np.float32)}, broken / lora.WEIGHTS)
    job = job | {"revisions": {"broken": broken}}
    code, events = run(tmp_path / "job", monkeypatch, capsys, **job)
    assert code == 1
    assert events[-1].reason == "model"
    assert not (tmp_path / "job" / evaluation.FILE).exists()


@pytest.mark.model
def test_a_model_that_computes_no_numbers_is_not_judged(tmp_path, monkeypatch, capsys, job, loaded):
    bad = adapter(tmp_path / "nan", loaded, np.nan)
    code, events = run(tmp_path / "job", monkeypatch, capsys, **(job | {"revisions": {"bad": bad}}))
    assert (code, events[-1].reason) == (1, "nan")
