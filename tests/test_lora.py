"""An adapter serves on top of the base, as stock mlx-lm would serve it, and is read anywhere."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import save_file

from engine import lora, models, plan
from engine.models import LoadedModel
from tests.tiny import tiny_model

TARGETS = ["self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"]
TOKENS = mx.array([[3, 1, 4, 1, 5]])


def tiny():
    model = tiny_model(48, seed=1, layers=3, width=16, inner=32)
    return LoadedModel("tiny", Path(), model, None, {}, "print", 64, 48)


def config(kind="lora", layers=3, scale=2.0):
    parameters = {"rank": 4, "scale": scale, "dropout": 0.0, "keys": TARGETS}
    return {"fine_tune_type": kind, "num_layers": layers, "lora_parameters": parameters}


def trained(loaded, wanted):
    """Weights as a training run could leave them."""
    model = lora.with_adapter(loaded, wanted, first(loaded, wanted))
    model.unfreeze(keys=["lora_a", "lora_b", "m"])
    mx.random.seed(2)
    return {
        name: np.array(value + 0.1 * mx.random.normal(value.shape))
        for name, value in lora.weights_of(model).items()
    }


def first(loaded, wanted):
    import copy

    model = copy.deepcopy(loaded.model)
    lora.attach(model, wanted)
    return lora.weights_of(model)


def write(folder, wanted, weights):
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / lora.WEIGHTS)
    (folder / lora.CONFIG).write_text(json.dumps(wanted))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_only_the_new_layers_are_trained(kind):
    loaded = tiny()
    lora.attach(loaded.model, config(kind, layers=2))

    names = lora.weights_of(loaded.model)
    assert {name.rsplit(".", 1)[1] for name in names} == (
        {"lora_a", "lora_b", "m"} if kind == "dora" else {"lora_a", "lora_b"}
    )
    assert {name.split(".")[2] for name in names} == {"1", "2"}  # the last two
    assert all(".".join(name.split(".")[3:5]) in TARGETS for name in names)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_stock_mlx_lm_computes_the_same_from_the_files(tmp_path, kind):
    from mlx_lm.utils import load_adapters

    loaded = tiny()
    write(tmp_path, config(kind), trained(loaded, config(kind)))

    ours = lora.with_adapter(loaded, *lora.read_adapter(tmp_path))
    stock = load_adapters(tiny().model, str(tmp_path))
    stock.eval()
    assert mx.array_equal(ours(TOKENS), stock(TOKENS)).item()
    assert not mx.allclose(ours(TOKENS), loaded.model(TOKENS), atol=1e-3).item()


def test_the_base_stays_as_it_is_and_is_not_copied():
    loaded = tiny()
    before = loaded.model(TOKENS)
    weights = trained(loaded, config())
    mx.eval(before)
    held = mx.get_active_memory()

    model = lora.with_adapter(loaded, config(), weights)

    mx.eval(model.parameters())
    added = sum(value.nbytes for value in weights.values())
    assert mx.get_active_memory() - held <= 2 * added
    assert mx.array_equal(loaded.model(TOKENS), before).item()
    assert not tree_flatten(model.trainable_parameters())
    assert not any(part.training for _, part in model.named_modules())


def test_two_adapters_serve_side_by_side():
    loaded = tiny()
    weights = trained(loaded, config())
    one = lora.with_adapter(loaded, config(scale=1.0), weights)
    other = lora.with_adapter(loaded, config(scale=3.0), weights)
    alone = lora.with_adapter(tiny(), config(scale=1.0), weights)(TOKENS)

    assert not mx.allclose(one(TOKENS), other(TOKENS), atol=1e-3).item()
    assert mx.array_equal(one(TOKENS), alone).item()


def test_putting_one_on_draws_no_random_number():
    loaded = tiny()
    weights = trained(loaded, config())
    mx.random.seed(5)
    expected = mx.random.uniform(shape=(3,)).tolist()

    mx.random.seed(5)
    lora.with_adapter(loaded, config(), weights)
    assert mx.random.uniform(shape=(3,)).tolist() == expected


@pytest.mark.parametrize("harm", ["missing", "more", "shape"])
def test_tensors_that_do_not_fit_are_refused(harm):
    loaded = tiny()
    weights = trained(loaded, config())
    name = min(weights)
    if harm == "missing":
        del weights[name]
    elif harm == "more":
        weights["model.layers.0.mlp.up_proj.lora_a"] = weights[name]
    else:
        weights[name] = weights[name][:-1]

    with pytest.raises(ValueError, match=r"missing or too many|is \(\d+"):
        lora.with_adapter(loaded, config(), weights)


def test_files_are_read_in_any_thread(tmp_path):
    loaded = tiny()
    weights = trained(loaded, config())
    write(tmp_path, config(), weights)
    found = []

    thread = threading.Thread(target=lambda: found.append(lora.read_adapter(tmp_path)))
    thread.start()
    thread.join()

    ((read_config, read),) = found
    assert read_config == config()
    assert all(np.array_equal(read[name], value) for name, value in weights.items())
    assert read.keys() == weights.keys()


@pytest.mark.model
def test_the_real_model_serves_it_as_stock_mlx_lm_does(embedded_model, tmp_path):
    from mlx_lm.utils import load_adapters

    ready = plan.prepare(plan.detect())
    loaded = models.load(embedded_model, ready)
    wanted = config(layers=30)
    write(tmp_path, wanted, trained(replace(loaded), wanted))

    ours = lora.with_adapter(loaded, *lora.read_adapter(tmp_path))
    expected = ours(TOKENS)
    stock = load_adapters(loaded.model, str(tmp_path))
    stock.eval()
    assert mx.array_equal(expected, stock(TOKENS)).item()
