"""`plan` and `compare --plan`: what a person reads, and that what it advises is true."""

from __future__ import annotations

import dataclasses
import io
import re

import pytest
from rich.console import Console

from bot.errors import ConfigError, FarenseError, ModelError
from config.profiles import profiles, with_profile
from config.settings import load_settings
from config.texts import catalogue
from farense_bot.planning import print_derived, print_plan
from tests.test_texts import BRAZILIAN
from training import derived, planned
from training.recipe import Recipe, named_recipe

MISTRAL = "mistral-7b"
LLAMA = "mlx-community/Llama-3.2-3B-Instruct-4bit"
GIB = 2**30


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No setting of the machine that runs the tests."""
    import os

    for name in os.environ:
        if name.startswith("FARENSE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plan(tmp_path):
    """The plan of a profile that is not this machine's, unless `room` says what there is."""

    def make(profile, model=None, room=None, **learning):
        chosen = profiles()[profile]
        given = {"engine": {"model": model}} if model else {}
        settings = with_profile(load_settings(tmp_path, learning=learning, **given), chosen)
        machine = planned.machine_of(chosen)
        if room:
            machine = dataclasses.replace(machine, room=int(room * GIB))
        return planned.make_plan(settings, machine), settings

    return make


def shown(call, *args):
    out = io.StringIO()
    code = call(*args, Console(file=out, width=80, highlight=False))
    return code, out.getvalue()


@pytest.mark.parametrize("profile", sorted(profiles()))
@pytest.mark.parametrize("language", ["pt", "en"])
@pytest.mark.parametrize("model", sorted(derived.known()))
def test_what_is_printed_fits_and_is_in_the_language(tmp_path, profile, language, model):
    settings = load_settings(tmp_path, engine={"model": model}, conversation={"language": language})
    _, table = shown(print_derived, model, profile, language)
    _, said = shown(print_plan, settings, profile)
    for output in (table, said):
        assert max(map(len, output.splitlines())) <= 80
        assert ("derivado" in output) == (language == "pt")
        assert ("derived" in output) == (language == "en")
        if language == "pt":
            assert not BRAZILIAN.search(output)
            assert not re.search(r"\d\.\d+ (GiB|GB|MB)", output)


def test_every_line_of_the_derived_table_says_that_it_is(tmp_path):
    _, table = shown(print_derived, MISTRAL, "m1-pro-16gb", "pt")
    lines = [line for line in table.splitlines() if re.search(r"\d,\d.* {2,}\S+ *$", line)]
    assert len(lines) == 10
    assert all("derivado" in line for line in lines)
    for figure in ("7248,0 M", "28,99 GB", "14,50 GB", "4,08 GB", "18,9 MB", "13,6 MB", "49,1"):
        assert figure in table


def test_an_8_gb_mac_pauses_and_has_a_model_that_fits(plan, tmp_path):
    found, settings = plan("m1-8gb")
    assert found.subject.name == LLAMA
    assert found.pauses
    assert found.fits
    assert not planned.remedies(found, settings)
    code, said = shown(print_plan, load_settings(tmp_path), "m1-8gb")
    assert code == 0
    assert "⏸" in said


def test_an_8_gb_mac_cannot_test_seven_billion_and_is_told_a_model_that_it_can(plan, tmp_path):
    found, settings = plan("m1-8gb", MISTRAL)
    assert found.serves
    assert not found.learns
    assert found.testing.total > found.training.total
    (remedy,) = planned.remedies(found, settings)
    assert remedy.values == {"name": LLAMA}
    assert plan("m1-8gb", LLAMA)[0].fits
    code, said = shown(print_plan, settings, "m1-8gb")
    assert code == 1
    assert LLAMA in said


def test_16_gb_learn_beside_and_less_room_pauses(plan):
    assert not plan("m1-pro-16gb")[0].pauses
    assert plan("m1-pro-16gb")[0].fits
    assert plan("m1-pro-16gb", room=8)[0].pauses
    assert plan("m1-pro-16gb", room=8)[0].fits
    assert plan("m1-pro-16gb", pause="always")[0].pauses


def test_where_it_never_pauses_the_pause_is_advised(plan):
    found, settings = plan("m1-pro-16gb", room=8, pause="never")
    assert not found.fits
    first, *_ = planned.remedies(found, settings)
    assert first.key == "plan.lower.pause"
    assert plan("m1-pro-16gb", room=8)[0].fits


def test_sixteen_bits_that_do_not_fit_are_answered_with_four(plan):
    original = "mistralai/Mistral-7B-Instruct-v0.3"
    found, settings = plan("m1-pro-16gb", original)
    assert (found.subject.method, found.recipe) == ("lora", named_recipe("lora"))
    assert not found.serves
    *_, last = planned.remedies(found, settings)
    assert last.values == {"name": derived.find(MISTRAL).int4}


def test_what_to_lower_is_tried(plan):
    found, settings = plan("m1-max-32gb", "llama-3.2-3b", room=5)
    greedy = dataclasses.replace(found, recipe=Recipe(max_length=2048), caches=0)
    assert not greedy.learns
    lower = {remedy.key.split(".")[-1]: remedy for remedy in planned.remedies(greedy, settings)}
    assert {"checkpoint", "batch", "length", "layers", "together"} <= lower.keys()
    for remedy in lower.values():
        assert remedy.enough == (remedy.needed <= greedy.machine.room)
        assert remedy.key in catalogue()
    assert lower["together"].enough
    assert lower["checkpoint"].needed < greedy.learning
    assert lower["profile"].values == {"name": "m1-pro-16gb"}


def test_a_smaller_cache_is_advised_where_it_lets_it_answer(plan):
    found, settings = plan("m1-max-32gb", room=6)
    first, *_ = planned.remedies(found, settings)
    assert first.key == "plan.lower.cache"
    smaller = dataclasses.replace(found, caches=first.values["cache"] * 2**20)
    assert smaller.serves
    assert smaller.serving == first.needed


def test_nothing_helps_a_machine_that_is_too_small(plan):
    found, settings = plan("cpu", MISTRAL, room=0.1)
    assert not any(remedy.enough for remedy in planned.remedies(found, settings))


def test_the_profile_of_this_machine_looks_at_this_machine(tmp_path):
    here = planned.profile_for(load_settings(tmp_path))
    machine = planned.machine_of(here)
    assert machine.here
    assert planned.fitted(load_settings(tmp_path)).engine.cache_mb == here.cache_mb
    other = next(one for one in profiles().values() if one.backend != here.backend)
    assert planned.machine_of(other).total == other.total


@pytest.mark.model
def test_files_that_are_here_are_measured(tmp_path, embedded_model):
    settings = load_settings(tmp_path, engine={"model": str(embedded_model)})
    found = planned.make_plan(settings, planned.machine_of(profiles()["cpu"]))
    assert found.subject.here
    assert found.subject.disk == (embedded_model / "model.safetensors").stat().st_size
    assert found.subject.parameters == 134_515_008
    assert found.recipe == Recipe()
    _, said = shown(print_plan, settings, "cpu")
    assert re.search(r"modelo no disco +0,09 +medido", said)


@pytest.mark.parametrize(
    ("model", "profile", "key"),
    [
        ("org/unheard-of", "cpu", "error.model_unplanned"),
        (MISTRAL, "m9", "error.profile"),
        ("unheard-of", "cpu", "error.model_name"),
        ("./nowhere", "cpu", "error.model_missing"),
    ],
)
def test_what_is_unknown_is_one_clear_line(tmp_path, model, profile, key):
    settings = load_settings(tmp_path, engine={"model": model})
    with pytest.raises((ConfigError, ModelError)) as refused:
        print_plan(settings, profile, Console(file=io.StringIO()))
    assert refused.value.key == key


@pytest.mark.parametrize(("model", "profile"), [("gpt-9", "m1-8gb"), (MISTRAL, "m9")])
def test_the_derived_table_refuses_what_it_does_not_know(model, profile):
    with pytest.raises(FarenseError) as refused:
        print_derived(model, profile, "pt", Console(file=io.StringIO()))
    assert refused.value.values["known"]
