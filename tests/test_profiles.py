"""Profiles: which machine gets which, what they set and leave alone, and their recipes."""

from __future__ import annotations

from typing import get_args

import pytest
from pydantic import ValidationError

from bot.errors import ConfigError
from config.profiles import AUTO, GIB, Profile, detected, profiles, recipes, with_profile
from config.settings import Settings, load_settings
from training.recipe import (
    LINEAR,
    SMALL,
    Recipe,
    named_recipe,
    recipe_for,
    recipe_name,
)

BIG = 7_248_023_552
ALL = sorted(profiles())


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    """No setting of the machine that runs the tests."""
    import os

    for name in os.environ:
        if name.startswith("FARENSE_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("backend", "memory", "name"),
    [
        ("metal", 8, "m1-8gb"),
        ("metal", 4, "m1-8gb"),
        ("metal", 16, "m1-pro-16gb"),
        ("metal", 24, "m1-pro-16gb"),
        ("metal", 32, "m1-max-32gb"),
        ("metal", 128, "m1-max-32gb"),
        ("cpu", 2, "cpu"),
        ("cpu", 64, "cpu"),
        ("cuda", 62.7, "cuda"),
        ("metal", 15.6, "m1-pro-16gb"),
    ],
)
def test_each_machine_has_its_profile(backend, memory, name):
    assert detected(backend, int(memory * GIB)).name == name


def test_the_setting_knows_the_profiles_that_there_are(tmp_path, monkeypatch):
    field = Settings.model_fields["profile"]
    assert set(get_args(field.annotation)) == {AUTO, *profiles()}
    assert field.default == AUTO
    monkeypatch.setenv("FARENSE_PROFILE", "m1-8gb")
    assert load_settings(tmp_path).profile == "m1-8gb"
    monkeypatch.setenv("FARENSE_PROFILE", "m9")
    with pytest.raises(ValidationError, match="profile"):
        load_settings(tmp_path)


def test_a_profile_fills_what_nobody_has_set(tmp_path):
    settings = with_profile(load_settings(tmp_path), profiles()["m1-8gb"])
    assert settings.engine.model == "mlx-community/Llama-3.2-3B-Instruct-4bit"
    assert (settings.engine.concurrency, settings.engine.cache_mb) == (4, 512)
    assert settings.learning.pause == "always"
    assert settings.engine.context == load_settings(tmp_path).engine.context


def test_what_the_admin_has_set_wins_even_where_it_is_the_default(tmp_path, monkeypatch):
    (tmp_path / "farense.toml").write_text("[engine]\ncache_mb = 1024\n[learning]\npause = 'auto'")
    monkeypatch.setenv("FARENSE_ENGINE__CONCURRENCY", "2")
    given = load_settings(tmp_path, engine={"model": "org/mine"})
    settings = with_profile(given, profiles()["m1-8gb"])
    assert settings.engine == given.engine
    assert settings.learning == given.learning


def test_another_profile_may_take_the_place_of_one(tmp_path):
    plain = load_settings(tmp_path)
    first = with_profile(plain, profiles()["m1-8gb"])
    assert with_profile(first, profiles()["m1-max-32gb"]).engine.cache_mb == 4096
    assert with_profile(first, profiles()["cpu"]) == plain


def test_a_cpu_and_a_card_keep_the_model_that_comes_along(tmp_path):
    for name in ("cpu", "cuda"):
        assert with_profile(load_settings(tmp_path), profiles()[name]).engine.model is None


@pytest.mark.parametrize("name", ALL)
def test_both_methods_see_the_same_texts_in_the_same_steps(name):
    lora, qlora = (recipe_for(profiles()[name], method, BIG) for method in ("lora", "qlora"))
    assert lora.sft.batch * lora.sft.accumulation == qlora.sft.batch * qlora.sft.accumulation
    assert lora.kto.batch * lora.kto.accumulation == qlora.kto.batch * qlora.kto.accumulation
    assert lora.sft.epochs == qlora.sft.epochs
    assert lora.max_length == qlora.max_length
    assert lora.rehearsal == qlora.rehearsal


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_small_models_learn_as_measured(name, method):
    assert recipe_for(profiles()[name], method, 134_515_008) == Recipe()
    assert recipe_name(profiles()[name], method, SMALL) != "small"


def test_the_documents_settings_are_there_by_name():
    lora, qlora = named_recipe("lora-m1-pro"), named_recipe("qlora-m1-pro")
    assert lora.targets == ("self_attn.q_proj", "self_attn.v_proj")
    assert qlora.targets == ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    for recipe in (lora, qlora):
        assert (recipe.rank, recipe.scale * recipe.rank, recipe.layers) == (8, 16, -1)
        assert recipe.sft.epochs == 3
    assert (lora.sft.batch, lora.sft.accumulation, lora.max_length) == (1, 4, 256)
    assert (qlora.sft.batch, qlora.sft.accumulation, qlora.max_length) == (2, 2, 512)
    assert qlora.sft.warmup == 100


def test_every_recipe_can_be_made():
    for name in recipes():
        assert set(named_recipe(name).targets) <= set(LINEAR)


def test_an_unknown_recipe_is_refused_with_those_there_are():
    with pytest.raises(ConfigError) as refused:
        named_recipe("m9")
    assert refused.value.key == "error.recipe"
    assert "qlora-m1-pro" in str(refused.value.values["known"])


@pytest.mark.parametrize("change", [{"qlora": "m9"}, {"memory": 0}, {"speed": 1}, {"pause": 1}])
def test_a_profile_with_a_mistake_is_refused(change):
    good = profiles()["cpu"].model_dump()
    assert Profile.model_validate(good, context=recipes()) == profiles()["cpu"]
    with pytest.raises(ValidationError):
        Profile.model_validate(good | change, context=recipes())
