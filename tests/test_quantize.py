"""Rounding a model's weights: whole folders, real loading, and what it costs."""

from __future__ import annotations

import io
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from bot.errors import ModelError
from config.settings import load_settings
from engine import models, quantize, weights
from engine.plan import Backend, ComputePlan
from engine.quantize import Scheme, dequantise, quantise
from farense_bot.quantising import quantise_now
from tests.tiny import tiny_model

AS_IT_IS = ComputePlan(Backend.CPU, None, dequantise=False, why="tests")


@pytest.fixture
def half(tmp_path):
    """A 16-bit llama's folder, with files that go along and one that must not."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    folder = tmp_path / "half"
    folder.mkdir()
    model = tiny_model(words=64, width=64, inner=128)
    model.set_dtype(mx.bfloat16)
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), {"format": "mlx"}
    )
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling.py").write_text("raise SystemExit")
    return folder


def logits(folder):
    import mlx.core as mx

    model, _ = models.mlx_lm_utils().load_model(folder)
    return np.array(model(mx.array([[1, 5, 9, 2]])).astype(mx.float32))


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_an_int4_base_is_smaller_and_close_to_what_it_was_made_of(half, tmp_path):
    made = quantise(half, tmp_path / "int4", Scheme())
    before, after = (weights.check(folder)[0].size for folder in (half, made))
    assert after < before / 3
    assert weights.read_config(made)["quantization"]["bits"] == 4
    assert 4.5 < quantize.bits_per_weight(made) < 5.5
    assert np.corrcoef(logits(half).ravel(), logits(made).ravel())[0, 1] > 0.9


def test_everything_but_weights_and_code_goes_along(half, tmp_path):
    made = quantise(half, tmp_path / "int4", Scheme())
    assert names(made) == {
        "config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"
    }  # fmt: skip
    assert names(half) == names(half) | {"modeling.py"}


def test_the_way_back_has_the_numbers_that_int4_stood_for(half, tmp_path):
    made = quantise(half, tmp_path / "int4", Scheme(bits=8, group_size=32))
    back = dequantise(made, tmp_path / "back")
    assert not quantize.is_quantised(back)
    assert weights.parameters(back) == weights.parameters(half)
    np.testing.assert_allclose(logits(back), logits(made), atol=0.15)
    again = quantise(back, tmp_path / "again", Scheme(bits=8, group_size=32))
    np.testing.assert_allclose(logits(again), logits(made), atol=0.15)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_more_bits_are_closer(half, tmp_path, bits):
    wanted = logits(half)
    errors = [
        np.abs(logits(quantise(half, tmp_path / str(n), Scheme(bits=n))) - wanted).mean()
        for n in sorted({2, bits})
    ]
    assert errors == sorted(errors, reverse=True)


def test_a_mixture_spends_more_bits_where_it_matters(half, tmp_path):
    plain = quantise(half, tmp_path / "plain", Scheme(bits=4))
    mixed = quantise(half, tmp_path / "mixed", Scheme(mixed="mixed_4_6"))
    assert quantize.bits_per_weight(plain) < quantize.bits_per_weight(mixed)
    assert logits(mixed).shape == logits(plain).shape


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"bits": 7}, "error.quantise_bits"),
        ({"group_size": 48}, "error.quantise_group"),
        ({"mixed": "mixed_9"}, "error.quantise_mixed"),
    ],
)
def test_a_scheme_that_does_not_exist_is_refused_with_those_that_do(wrong, key):
    with pytest.raises(ModelError) as caught:
        Scheme(**wrong)
    assert caught.value.key == key
    assert caught.value.values["known"]


def test_twice_is_refused_and_so_is_a_way_back_from_nothing(half, tmp_path):
    made = quantise(half, tmp_path / "int4", Scheme())
    with pytest.raises(ModelError) as caught:
        quantise(made, tmp_path / "twice", Scheme())
    assert caught.value.key == "error.quantise_twice"
    with pytest.raises(ModelError) as caught:
        dequantise(half, tmp_path / "none")
    assert caught.value.key == "error.dequantise_none"
    assert names(tmp_path) == {"half", "int4"}


def test_nothing_that_is_there_is_written_over(half, tmp_path):
    with pytest.raises(ModelError) as caught:
        quantise(half, half, Scheme())
    assert caught.value.key == "error.model_exists"


def test_a_full_disk_is_told_before_anything_is_written(half, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(ModelError) as caught:
        quantise(half, tmp_path / "int4", Scheme())
    assert caught.value.key == "error.convert_disk"
    assert names(tmp_path) == {"half"}


def test_a_fault_in_the_middle_leaves_nothing_behind(half, tmp_path, monkeypatch):
    def fault(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models.mlx_lm_utils(), "save_model", fault)
    with pytest.raises(ModelError) as caught:
        quantise(half, tmp_path / "int4", Scheme())
    assert caught.value.key == "error.model_unwritable"
    assert names(tmp_path) == {"half"}


def test_weights_that_do_not_fit_their_config_are_told(half, tmp_path):
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError) as caught:
        quantise(half, tmp_path / "int4", Scheme())
    assert caught.value.key == "error.model_broken"
    assert names(tmp_path) == {"half"}


@pytest.mark.model
def test_the_embedded_model_in_16_bits_answers_as_in_int4(embedded_model, tmp_path):
    back = dequantise(embedded_model, tmp_path / "half")
    models.load(back, AS_IT_IS)
    wanted, found = logits(embedded_model), logits(back)
    assert np.array_equal(wanted.argmax(-1), found.argmax(-1))
    assert np.abs(wanted - found).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.model
def test_the_command_says_what_rounding_saves_and_what_it_costs(embedded_model, tmp_path):
    back = dequantise(embedded_model, tmp_path / "half")
    out = Console(file=io.StringIO(), width=100)
    settings = load_settings(tmp_path / "home", engine={"model": str(back)})
    quantise_now(settings, tmp_path / "int4", Scheme(), Console(file=io.StringIO()), out)
    said = out.file.getvalue()
    assert "269 MB" in said
    assert "4,5" in said
    losses = re.findall(r"\d,\d{3}\b", said)
    before, after = (float(one.replace(",", ".")) for one in losses)
    assert before < after < 2 * before
    assert weights.read_config(tmp_path / "int4")["quantization"]["group_size"] == 64
