"""What is derived of models and machines that are not here, held against what others published."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.errors import ConfigError
from config.profiles import profiles
from engine import weights
from training import derived, memory
from training.recipe import LINEAR, Recipe, named_recipe

MISTRAL = derived.find("mistral-7b")
M1, PRO, MAX = (profiles()[name] for name in ("m1-8gb", "m1-pro-16gb", "m1-max-32gb"))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mistral-7b", 7_248_023_552),
        ("qwen2.5-7b", 7_615_616_512),
        ("llama-3.2-3b", 3_212_749_824),
        ("qwen2.5-3b", 3_085_938_688),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_parameters_are_those_of_the_model_cards(name, parameters):
    assert derived.find(name).parameters == parameters


def test_mistral_of_before_had_fewer_words():
    older = MISTRAL.model_copy(update={"config": MISTRAL.config | {"vocab_size": 32000}})
    assert older.parameters == 7_241_732_096
    sizes = [older.size(precision) / 1e9 for precision in ("float32", "bfloat16", "int4")]
    assert sizes == pytest.approx([28.97, 14.48, 4.07], abs=0.005)


def test_int4_of_llama_is_the_download_that_others_report():
    assert derived.find("llama-3.2-3b").size("int4") / 1e9 == pytest.approx(1.8, abs=0.05)


@pytest.mark.model
def test_what_is_derived_of_the_embedded_model_is_what_its_files_have(embedded_model):
    files, config = weights.check(embedded_model), weights.read_config(embedded_model)
    model = derived.find("embedded")
    assert model.size("int4") == pytest.approx(sum(file.size for file in files), rel=0.002)
    assert model.size("float32") == weights.memory_needed(config, files, dequantise=True)
    assert {key: config[key] for key in model.config} == model.config


@pytest.mark.parametrize(
    ("name", "parameters", "megabytes"),
    [("qlora-m1-pro", 4.72e6, 18.9), ("lora-m1-pro", 3.41e6, 13.6)],
)
def test_adapters_of_the_document(name, parameters, megabytes):
    found = memory.adapter_bytes(memory.Model.of(MISTRAL.config), named_recipe(name))
    assert found / 4 == pytest.approx(parameters, rel=0.005)
    assert found / 1e6 == pytest.approx(megabytes, abs=0.05)


@pytest.mark.parametrize(("profile", "rate"), [(M1, 17), (PRO, 49), (MAX, 98)])
def test_ceilings_of_int4(profile, rate):
    assert round(derived.table(MISTRAL, profile).value("rate.one", "qlora")) == rate


def test_a_long_prompt_takes_what_others_measured():
    """9.111 GB for 33898 tokens in Mistral 7B 4-bit: ml-explore/mlx-lm, pull request 40."""
    caches = 33_898 * derived.cache_bytes(MISTRAL.config, half=True)
    assert (MISTRAL.size("int4") + caches) / 1e9 == pytest.approx(9.111, rel=0.1)


def test_training_is_near_what_was_measured_elsewhere():
    """MLX, 7B in 4 bit, batch 2, 16 layers: 6.1 GB; texts of a common length, all kept."""
    recipe = named_recipe("qlora").model_copy(
        update={"checkpoint_gradients": False, "max_length": 256}
    )
    found = derived.training(MISTRAL, recipe, "qlora", "metal").total / 1e9
    assert found == pytest.approx(6.1, rel=0.1)


def test_the_documents_training_does_not_fit_where_it_says():
    found = derived.table(MISTRAL, PRO)
    document = next(row for row in found.rows if row.key == "training.document")
    assert document.fits == {"lora": False, "qlora": False}
    assert document.values["lora"] > 10e9  # it claims 8 to 10
    assert document.values["qlora"] > 6e9  # it claims 4 to 6
    ours = next(row for row in found.rows if row.key == "training.ours")
    assert ours.fits == {"lora": False, "qlora": True}


def test_a_cpu_computes_both_in_float32():
    found = derived.table(MISTRAL, profiles()["cpu"])
    assert found.value("rate.one", "lora") == found.value("rate.one", "qlora")
    assert found.value("serving", "qlora") > MISTRAL.size("float32")


def test_models_go_by_their_ids_too_and_unknown_ones_are_refused():
    assert derived.find("mistralai/Mistral-7B-Instruct-v0.3") is MISTRAL
    assert derived.find("MLX-community/mistral-7b-instruct-v0.3-4bit") is MISTRAL
    assert derived.method_of("mistralai/Mistral-7B-Instruct-v0.3", MISTRAL) == "lora"
    assert derived.method_of("mistral-7b", MISTRAL) == "qlora"
    with pytest.raises(ConfigError) as refused:
        derived.find("gpt-9")
    assert "mistral-7b" in str(refused.value.values["known"])


RECIPES = st.builds(
    lambda rank, layers, length, targets, checkpoint: Recipe(
        rank=rank,
        layers=layers,
        max_length=length,
        targets=targets,
        checkpoint_gradients=checkpoint,
    ),
    st.integers(1, 64),
    st.integers(1, 31),
    st.integers(16, 4096),
    st.lists(st.sampled_from(LINEAR), min_size=1, unique=True).map(tuple),
    st.booleans(),
)


@given(RECIPES, st.sampled_from(["rank", "layers", "max_length"]))
def test_more_never_takes_less(recipe, field):
    more = recipe.model_copy(update={field: getattr(recipe, field) + 1})
    before, after = (derived.training(MISTRAL, one, "qlora", "metal") for one in (recipe, more))
    assert after.total >= before.total


@given(RECIPES)
def test_sixteen_bits_take_more_than_four_and_keeping_more_than_computing_again(recipe):
    lora, qlora = (derived.training(MISTRAL, recipe, one, "metal") for one in ("lora", "qlora"))
    assert lora.total - qlora.total == MISTRAL.size("bfloat16") - MISTRAL.size("int4")
    kept, again = (
        derived.training(
            MISTRAL, recipe.model_copy(update={"checkpoint_gradients": on}), "qlora", "metal"
        )
        for on in (False, True)
    )
    assert kept.total >= again.total or recipe.layers == 1
