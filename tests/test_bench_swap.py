"""The figures of a swap and of a training beside the fans: what is held against the targets."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from bench import beside, swap
from bench.__main__ import GROUPS
from bench.swap import Round, Wait
from engine.lora import read_adapter, with_adapter
from tests.tiny import tiny_model
from training.job import Ended, Progress, TrainJob, read_job
from training.recipe import Recipe


def named(figures):
    return {one.name: one for one in figures}


def a_round(held, *, ended=16):
    usual, swapped = Wait(0.2, 1.0, "old"), Wait(0.2 + held, 1.5, "new")
    return Round(usual, swapped, swap=held, ended=ended)


def test_both_groups_are_measured_by_make_bench():
    assert (GROUPS["swap"], GROUPS["beside"]) == (swap.swap, beside.beside)


def test_a_swap_is_held_against_fifty_milliseconds():
    found = named(swap.report([a_round(0.030), a_round(0.040), a_round(0.020)]))
    assert found["the swap in the engine's thread"].value == pytest.approx(30)
    assert found["the same, the longest"].value == pytest.approx(40)
    assert found["a new request, until it is taken up, difference"].value == pytest.approx(30)
    assert found["a new request, first token, difference"].value == pytest.approx(500)
    assert [one.holds for one in found.values() if one.target] == [True] * 4


def test_one_slow_swap_and_one_lost_answer_do_not_hold():
    slow = named(swap.report([a_round(0.030), a_round(0.060), a_round(0.020)]))
    assert slow["the same, the longest"].holds is False
    lost = swap.report([a_round(0.03, ended=15)])
    assert [one.value for one in lost if one.holds is False] == [15]


async def test_a_look_into_the_thread_gives_what_it_saw():
    async def order(_revision, _digest, build):
        build("the model")

    ours = SimpleNamespace(engine=SimpleNamespace(swap=order))
    assert await swap.look(ours, str.upper) == "THE MODEL"


def test_a_made_revision_is_one_that_serves_and_says_something_else(tmp_path):
    import mlx.core as mx

    base = SimpleNamespace(model=tiny_model())
    swap._make(base, folder=tmp_path, seed=1)
    served = with_adapter(base, *read_adapter(tmp_path))
    said = [np.array(model(mx.array([[1, 2, 3]]))) for model in (base.model, served)]
    assert np.isfinite(said[1]).all()
    assert not np.array_equal(*said)


def test_twice_the_wait_of_an_idle_engine_is_allowed_at_p95():
    idle = [[0.2] * 20, [0.2] * 20]
    for late, holds in ((0.4, True), (0.5, False)):
        busy = [[0.2] * 18 + [late, 9.0]] * 2  # one in twenty is beyond p95
        found = named(beside.report(idle, busy, [7, 9]))
        assert found["p95, training / idle"].holds is holds
        assert found["p50, a training at work"].value == 0.2
        assert found["steps that the training made meanwhile"].value == 8


@pytest.fixture
def ours(tmp_path, monkeypatch):
    monkeypatch.setattr(beside, "recipe_of", lambda *_: Recipe())
    status = SimpleNamespace(running=0, waiting=0)
    return SimpleNamespace(folder=tmp_path, engine=SimpleNamespace(status=status))


async def test_the_fans_are_asked_once_the_training_learns_and_it_is_ended_after_them(
    ours, monkeypatch
):
    seen = []

    async def run_job(folder, on_event, hold):
        job = read_job(folder)
        assert isinstance(job, TrainJob)
        lines = (folder / "dataset" / "train.jsonl").read_text("utf-8").splitlines()
        seen.extend([len(lines), hold()])
        ours.engine.status.waiting = 1
        seen.append(hold())
        on_event(Progress(stage="load", step=1, steps=1))
        on_event(Progress(stage="sft", step=3, steps=9))
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("ended")

    monkeypatch.setattr(beside, "run_job", run_job)
    async with beside._training(ours) as work:
        assert work.steps == 3
        assert seen == [16, False, True]
    assert seen[-1] == "ended"


async def test_a_training_that_ends_by_itself_is_no_figure(ours, monkeypatch):
    async def run_job(_folder, _on_event, _hold):
        return Ended(ok=False, reason="memory")

    monkeypatch.setattr(beside, "run_job", run_job)
    with pytest.raises(RuntimeError, match="memory"):
        async with beside._training(ours):
            pytest.fail("there is no training to measure beside")
