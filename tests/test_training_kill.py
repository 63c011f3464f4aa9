"""kill -9 on the process that trains the real model: started again, it ends with the same bits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.lora import WEIGHTS
from training import run
from training.examples import Example, Kind, Preference, ask, write_lines
from training.files import DRAFT
from training.job import JOB, Ended, Progress, TrainJob, parse_event
from training.recipe import Phase, Recipe

pytestmark = pytest.mark.model

RECIPE = Recipe(
    rank=4,
    layers=2,
    sft=Phase(epochs=1, learning_rate=1e-3, warmup=0, batch=2),
    kto=Phase(epochs=1, learning_rate=1e-4, warmup=0, batch=2),
    look_every=2,
    save_every=1,
)
CHILD = """
import sys
from pathlib import Path
from training.run import train
sys.exit(train(Path(sys.argv[1])))
"""
ANSWERS = {
    "What is the club called?": "It is called Farense.",
    "Which colours do we wear?": "Black and white, always.",
    "Where do we play?": "In Faro, by the sea.",
}


def a_job(folder: Path, model: Path) -> Path:
    dataset = folder / run.DATASET
    dataset.mkdir(parents=True)
    learnt = [Example(q, Kind.TAUGHT, ask(q), answer) for q, answer in ANSWERS.items()]
    write_lines(dataset / "train.jsonl", learnt)
    write_lines(dataset / "held_out.jsonl", learnt[:1])
    votes = [Preference(q, ask(q), a, "Faro" in a) for q, a in ANSWERS.items()]
    write_lines(dataset / "preferences.jsonl", votes)
    job = TrainJob(model="embedded", folder=model, persona="farense", recipe=RECIPE, seconds=600)
    (folder / JOB).write_text(job.model_dump_json())
    return folder


def work(folder, kill_at=None):
    """Run the job, or kill it right after it told of this stage and step; returns what it told."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parent.parent,
    )
    told = []
    with child:
        for line in child.stdout:
            told.append(parse_event(line))
            one = told[-1]
            if isinstance(one, Progress) and (one.stage, one.step) == kill_at:
                child.kill()
    return told, child.returncode


def test_killed_in_every_stage_it_ends_with_the_same_bits(tmp_path, embedded_model):
    whole, killed = (a_job(tmp_path / name, embedded_model) for name in ("whole", "killed"))
    told, code = work(whole)
    assert (told[-1], code) == (Ended(ok=True), 0)

    # After the last of these steps the checkpoint of that very step is being written.
    for moment in (("sft", 1), ("reference", 1), ("kto", 1)):
        told, code = work(killed, kill_at=moment)
        assert code == -9
        assert not (killed / run.RESULT).exists()
    told, code = work(killed)
    assert (told[-1], code) == (Ended(ok=True), 0)
    steps = [one.step for one in told if isinstance(one, Progress) and one.stage == "sft"]
    assert steps == []  # it went on from where KTO stood

    result = run.RESULT
    for name in (WEIGHTS, "curve.json", "adapter_config.json", "training_config.json"):
        assert (killed / result / name).read_bytes() == (whole / result / name).read_bytes(), name
    facts = json.loads((killed / result / "result.json").read_text())
    assert facts["steps"] == 5 + 2  # nine wordings, and three votes, two at a time
    assert not list(killed.rglob(f"{DRAFT}*"))
    assert not (killed / run.CHECKPOINTS).exists()
