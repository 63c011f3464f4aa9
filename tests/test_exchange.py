"""Revisions leave for other programs and come back: the same numbers, whole folders."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from pathlib import Path
from typing import NamedTuple

import gguf
import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx_lm.utils import save_config, save_model
from rich.console import Console
from safetensors.numpy import load_file, save_file

from bot.errors import ModelError
from config.settings import load_settings
from config.texts import catalogue, text
from engine import embedded, lora, models, plan, weights
from farense_bot.interchange import export_revision, import_revision
from tests.exchanged import NOW, commit, random_adapter, run_guide
from tests.tiny import tiny_model
from training.exchange import exporting, fused
from training.exchange import gguf as ours
from training.exchange.adapter import Adapter
from training.exchange.exporting import Format, export
from training.exchange.importing import bring_in, import_peft, shapes
from training.guide import FILE
from training.revisions import Revisions

TOKENS = mx.array([[3, 1, 4, 1, 5, 9, 2, 6]])
LAYERS = 3
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "vocab_size": 60, "tie_word_embeddings": True,
}  # fmt: skip


class Base(NamedTuple):
    name: str
    folder: Path
    fingerprint: str


def tiny_folder(folder, *, quantised=True):
    """A tiny model on disk; the first block is rounded more coarsely than the others."""
    model, config = tiny_model(layers=LAYERS, inner=64), dict(CONFIG)
    if quantised:
        odd = {"group_size": 32, "bits": 8}
        nn.quantize(
            model,
            group_size=32,
            bits=4,
            class_predicate=lambda name, part: (
                hasattr(part, "to_quantized")
                and (odd if name == "model.layers.0.mlp.up_proj" else True)
            ),
        )
        config["quantization"] = {"group_size": 32, "bits": 4, "model.layers.0.mlp.up_proj": odd}
    folder.mkdir()
    save_model(folder, model)
    save_config(config, folder / "config.json")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "modeling_evil.py").write_text("")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def revisions(tmp_path):
    return Revisions(tmp_path / "revisions")


def base_of(folder):
    config, files = weights.read_config(folder), weights.check(folder)
    return Base(folder.name, folder, weights.fingerprint(config, files))


def load(folder):
    """A model in float32, without its tokenizer."""
    model, config = models.mlx_lm_utils().load_model(folder)
    model.set_dtype(mx.float32)
    model = models.mlx_lm_utils().dequantize_model(model)
    return models.LoadedModel(folder.name, folder, model, None, config, "print", 64, 60)


def logits_with(loaded, adapter):
    return np.array(lora.with_adapter(loaded, adapter.config, adapter.tensors)(TOKENS))


def far(one, other):
    return float(np.abs(np.array(one) - np.array(other)).max())


def sentence(fault):
    """What a person reads, in both languages; one line each."""
    error = fault.value
    assert error.key in catalogue()
    lines = [text(error.key, language, **error.values) for language in ("pt", "en")]
    assert not any("\n" in line for line in lines)
    return lines[1]


# There and back


@pytest.mark.parametrize(
    ("kind", "layers"), [("lora", LAYERS), ("lora", 1), ("dora", 2), ("dora", LAYERS)]
)
def test_what_was_exported_to_peft_comes_back_as_it_was(tiny, revisions, tmp_path, kind, layers):
    first = commit(revisions, random_adapter(tiny, kind=kind, layers=layers), tiny)
    one = export(first, Format.PEFT, tmp_path / "one", None)

    second = bring_in(revisions, one, base_of(tiny), NOW)
    other = export(second, Format.PEFT, tmp_path / "other", None)

    was, now = (json.loads((one.folder / lora.CONFIG).read_bytes()) for one in (first, second))
    assert now == was
    assert (first.folder / lora.WEIGHTS).read_bytes() == (second.folder / lora.WEIGHTS).read_bytes()
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (one / file).read_bytes() == (other / file).read_bytes()


def test_what_was_imported_is_a_revision_that_no_gate_has_seen(tiny, revisions, tmp_path):
    first = commit(revisions, random_adapter(tiny), tiny)
    folder = export(first, Format.PEFT, tmp_path / "peft", None)

    revision = bring_in(revisions, folder, base_of(tiny), NOW)

    assert revision.id == "20261124-033000-import"
    assert not revision.promoted
    assert (revision.metadata["parent"], revision.metadata["rows"]) == ("import", [])
    assert revisions.verify(revision.id, base_of(tiny).fingerprint) == revision
    assert revisions.current == "base"
    assert "no gate has tested it" in (revision.folder / FILE).read_text()
    with pytest.raises(ModelError, match="exists"):
        bring_in(revisions, folder, base_of(tiny), NOW)
    assert not list(revisions.folder.glob(".draft*"))


def test_the_peft_folder_says_what_peft_wants_to_know(tiny, revisions, tmp_path):
    adapter = random_adapter(tiny, layers=2, scale=3.5)
    folder = export(commit(revisions, adapter, tiny), Format.PEFT, tmp_path / "peft", None)

    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        FILE,
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    wanted = {
        "peft_type": "LORA", "base_model_name_or_path": "tiny", "r": 4, "lora_alpha": 14,
        "use_rslora": False, "use_dora": False, "layers_to_transform": [1, 2],
        "target_modules": ["down_proj", "k_proj", "q_proj", "v_proj"],
    }  # fmt: skip
    assert wanted.items() <= config.items()
    held = load_file(folder / "adapter_model.safetensors")
    name = "base_model.model.model.layers.2.self_attn.k_proj.lora_B.weight"
    assert held[name].shape == (16, 4)
    assert np.array_equal(held[name].T, adapter.tensors["model.layers.2.self_attn.k_proj.lora_b"])


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_16_bit_adapters_are_taken_exactly(tiny, tmp_path, kind):
    folder, wanted = tmp_path / "peft", random_adapter(tiny)
    write_peft(folder, wanted)
    held = {name: mx.array(value) for name, value in load_file(folder / WEIGHTS).items()}
    number = {"F16": mx.float16, "BF16": mx.bfloat16}[kind]
    halved = {name: value.astype(number) for name, value in held.items()}
    mx.save_safetensors(str(folder / WEIGHTS), halved)

    found = import_peft(folder, tiny)
    for name, value in wanted.tensors.items():
        exact = np.array(mx.array(value).astype(number).astype(mx.float32))
        assert np.array_equal(found.tensors[name], exact)


@pytest.mark.parametrize(("rslora", "alpha", "scale"), [(False, 6, 1.5), (True, 6, 3.0)])
def test_the_scale_is_the_effective_one(tiny, tmp_path, rslora, alpha, scale):
    write_peft(tmp_path / "peft", random_adapter(tiny), use_rslora=rslora, lora_alpha=alpha)
    found = import_peft(tmp_path / "peft", tiny)
    assert found.config["lora_parameters"]["scale"] == scale


# What is refused

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model.model.layers."


def write_peft(folder, adapter, **settings):
    from training.exchange.peft import to_peft

    folder.mkdir()
    for name, data in to_peft(adapter, "tiny").items():
        (folder / name).write_bytes(data)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"rank_pattern": [8]}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"r": 0}, "lora_alpha"),
        ({"r": 8}, "lora_a is 64×4 and should be 64×8"),
        ({"use_dora": True}, ".m is missing"),
    ],
)  # fmt: skip
def test_settings_that_mlx_lm_has_no_layers_for_are_refused(tiny, tmp_path, settings, said):
    write_peft(tmp_path / "peft", random_adapter(tiny), **settings)
    with pytest.raises(ModelError) as fault:
        import_peft(tmp_path / "peft", tiny)
    assert said in sentence(fault)


def nan(tensors):
    tensors[f"{PREFIX}1.self_attn.q_proj.lora_A.weight"][0, 0] = np.nan


def lacking(tensors):
    del tensors[f"{PREFIX}1.self_attn.q_proj.lora_B.weight"]


def uneven(tensors):
    for side in "AB":
        del tensors[f"{PREFIX}1.self_attn.q_proj.lora_{side}.weight"]


def gap(tensors):
    for name in [name for name in tensors if name.startswith(f"{PREFIX}2.")]:
        tensors[name.replace("layers.2.", "layers.0.")] = tensors.pop(name)


def embedding(tensors):
    tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = np.ones((4, 60), np.float32)


def head(tensors):
    tensors["base_model.model.lm_head.lora_A.weight"] = np.ones((4, 32), np.float32)


def whole_module(tensors):
    tensors["base_model.model.lm_head.weight"] = np.ones((60, 32), np.float32)


def other_shape(tensors):
    name = f"{PREFIX}1.self_attn.q_proj.lora_A.weight"
    tensors[name] = np.ones((4, 64), np.float32)


def other_rank(tensors):
    for side, shape in (("A", (2, 32)), ("B", (32, 2))):
        tensors[f"{PREFIX}1.self_attn.q_proj.lora_{side}.weight"] = np.ones(shape, np.float32)


def no_such_module(tensors):
    for layer in (1, 2):
        for side, shape in (("A", (4, 32)), ("B", (32, 4))):
            tensors[f"{PREFIX}{layer}.attn.c_attn.lora_{side}.weight"] = np.ones(shape, np.float32)


def a_norm(tensors):
    for layer in (1, 2):
        for side, shape in (("A", (4, 32)), ("B", (32, 4))):
            name = f"{PREFIX}{layer}.input_layernorm.lora_{side}.weight"
            tensors[name] = np.ones(shape, np.float32)


def integers(tensors):
    tensors[f"{PREFIX}1.self_attn.q_proj.lora_A.weight"] = np.ones((4, 32), np.int32)


def nothing(tensors):
    tensors.clear()


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (nan, "not finite"),
        (lacking, "q_proj.lora_b is missing"),
        (uneven, "last blocks"),
        (gap, "last blocks"),
        (embedding, "lora_embedding_A is missing"),
        (head, "The layer lm_head"),
        (whole_module, "lm_head.weight is missing"),
        (other_shape, "lora_a is 64×4 and should be 32×4"),
        (other_rank, "lora_a is 32×2 and should be 32×4"),
        (no_such_module, "attn.c_attn"),
        (a_norm, "input_layernorm"),
        (integers, "a kind that is not known"),
        (nothing, "last blocks"),
    ],
)
def test_tensors_that_do_not_fit_the_base_are_refused(tiny, revisions, tmp_path, harm, said):
    folder = tmp_path / "peft"
    write_peft(folder, random_adapter(tiny))
    tensors = load_file(folder / WEIGHTS)
    harm(tensors)
    save_file(tensors, folder / WEIGHTS)

    with pytest.raises(ModelError) as fault:
        bring_in(revisions, folder, base_of(tiny), NOW)
    assert said in sentence(fault)
    assert not revisions.folder.exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "no PEFT adapter"),
        ({"adapter_config.json": b"{}", "adapter_model.bin": b"\x80"}, "pickled"),
        (
            {"adapter_config.json": b'{"peft_type": "LORA"}', WEIGHTS: b"\x00" * 16},
            "cannot be read",
        ),
        ({WEIGHTS: b"\x02\0\0\0\0\0\0\0{}"}, "cannot be read"),
        ({"adapter_config.json": b"[]", WEIGHTS: b"\x02\0\0\0\0\0\0\0{}"}, "cannot be read"),
    ],
)
def test_what_is_no_peft_folder_is_refused(tiny, tmp_path, files, said):
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ModelError) as fault:
        import_peft(tmp_path, tiny)
    assert said in sentence(fault)


@pytest.mark.parametrize("form", Format)
def test_a_target_that_is_there_is_left_as_it_is(tiny, revisions, tmp_path, form):
    revision = commit(revisions, random_adapter(tiny), tiny)
    target = tmp_path / "there"
    target.mkdir()
    with pytest.raises(ModelError) as fault:
        export(revision, form, target, tiny)
    assert "exists already" in sentence(fault)
    assert not list(target.iterdir())


@pytest.mark.parametrize("form", Format)
def test_too_little_disk_is_told_before_anything_is_written(
    tiny, revisions, tmp_path, monkeypatch, form
):
    revision = commit(revisions, random_adapter(tiny), tiny)
    usage = shutil.disk_usage(tmp_path)._replace(free=exporting.SPARE)
    monkeypatch.setattr(exporting.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelError) as fault:
        export(revision, form, tmp_path / "out" / "x", tiny)
    assert "of disk" in sentence(fault)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("form", Format)
def test_a_write_that_dies_leaves_nothing(tiny, revisions, tmp_path, monkeypatch, form):
    revision = commit(revisions, random_adapter(tiny), tiny)

    def die(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "integration_guide", die)
    with pytest.raises(ModelError) as fault:
        export(revision, form, tmp_path / "out" / "x", tiny)
    assert "No space left" in sentence(fault)
    assert not list((tmp_path / "out").iterdir())


def test_dora_has_no_place_in_llama_cpp(tiny, revisions, tmp_path):
    revision = commit(revisions, random_adapter(tiny, kind="dora"), tiny)
    with pytest.raises(ModelError) as fault:
        export(revision, Format.GGUF, tmp_path / "out", tiny)
    assert "DoRA" in sentence(fault)
    assert "--format gguf" not in (revision.folder / FILE).read_text()


@pytest.mark.parametrize("form", [Format.GGUF, Format.FUSED])
def test_architectures_whose_names_we_do_not_know_are_refused(tiny, revisions, tmp_path, form):
    revision = commit(revisions, random_adapter(tiny), tiny)
    base = shutil.copytree(tiny, tmp_path / "base")
    save_config(CONFIG | {"model_type": "phi3"}, base / "config.json")
    with pytest.raises(ModelError) as fault:
        export(revision, form, tmp_path / "out", base)
    assert "phi3" in sentence(fault)


# mlx-lm


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_mlx_folder_gives_our_logits_in_stock_mlx_lm(tiny, revisions, tmp_path, kind):
    from mlx_lm.utils import load_adapters

    adapter = random_adapter(tiny, kind=kind)
    folder = export(commit(revisions, adapter, tiny), Format.MLX, tmp_path / "mlx", None)
    stock = load_adapters(load(tiny).model, str(folder))
    stock.eval()
    assert np.array_equal(np.array(stock(TOKENS)), logits_with(load(tiny), adapter))
    assert far(stock(TOKENS), load(tiny).model(TOKENS)) > 1e-2


# Fused


@pytest.mark.parametrize("quantised", [True, False])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_fused_model_computes_what_base_and_adapter_do(tmp_path, kind, quantised):
    base = tiny_folder(tmp_path / "base", quantised=quantised)
    adapter, target = random_adapter(base, kind=kind), tmp_path / "fused"
    target.mkdir()

    fused.write_fused(base, target, adapter, "float32")

    assert far(load(target).model(TOKENS), logits_with(load(base), adapter)) < 1e-5


def test_a_fused_folder_is_a_plain_16_bit_model(tiny, revisions, tmp_path):
    adapter = random_adapter(tiny)
    target = export(commit(revisions, adapter, tiny), Format.FUSED, tmp_path / "fused", tiny)

    config = json.loads((target / "config.json").read_text())
    assert not any(key.startswith("quantization") for key in config)
    assert config["torch_dtype"] == "float16"
    names = {path.name for path in target.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", FILE}
    assert not any(name.endswith((".py", ".bin")) for name in names)
    held = mx.load(str(target / "model.safetensors"))
    assert {value.dtype for value in held.values()} == {mx.float16}
    assert {name: value.shape for name, value in held.items()} == {
        name: shape for name, shape in shapes(tiny).items() if name.endswith("weight")
    }
    assert far(load(target).model(TOKENS), logits_with(load(tiny), adapter)) < 5e-3


def test_a_model_in_several_files_is_written_file_by_file(tiny, tmp_path, monkeypatch):
    utils = models.mlx_lm_utils()
    monkeypatch.setattr(utils, "make_shards", partial(utils.make_shards, max_file_size_gb=0))
    target, adapter = tmp_path / "fused", random_adapter(tiny)
    target.mkdir()
    fused.write_fused(tiny, target, adapter, "float32")

    index = json.loads((target / weights.INDEX).read_text())["weight_map"]
    assert len(set(index.values())) == len(index) == len(list(target.glob("model-*.safetensors")))
    assert far(load(target).model(TOKENS), logits_with(load(tiny), adapter)) < 1e-5


def test_numbers_too_large_for_float16_stay_bfloat16(tmp_path):
    base = tiny_folder(tmp_path / "base", quantised=False)
    model, _ = models.mlx_lm_utils().load_model(base)
    model.set_dtype(mx.bfloat16)
    save_model(base, model)
    target = tmp_path / "fused"
    target.mkdir()
    fused.write_fused(base, target, random_adapter(base))
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert mx.load(str(target / "model.safetensors"))["model.norm.weight"].dtype == mx.bfloat16


# GGUF


def from_gguf(tensors, config, model):
    """An adapter from llama.cpp's names and order of rows: how a reader would take it back."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, model["num_hidden_layers"])
    back = {}
    for layer in range(model["num_hidden_layers"]):
        for key in config["lora_parameters"]["keys"]:
            module = f"model.layers.{layer}.{key}"
            back[names.get_name(module)] = module
    heads = {"q_proj": model["num_attention_heads"], "k_proj": model["num_key_value_heads"]}
    found = {}
    for name, value in tensors.items():
        theirs, _, side = name.partition(".weight.")
        module = back[theirs]
        own = heads.get(module.rpartition(".")[2])
        rows = value
        if side == "lora_b" and own:
            paired = value.reshape(own, len(value) // own // 2, 2, -1)
            rows = paired.swapaxes(1, 2).reshape(value.shape)
        found[f"{module}.{side}"] = rows.T
    return Adapter(config, found)


def test_a_gguf_adapter_reads_back_with_its_own_package_and_with_mlx(tiny, revisions, tmp_path):
    adapter = random_adapter(tiny, scale=1.5)
    folder = export(commit(revisions, adapter, tiny), Format.GGUF, tmp_path / "gguf", tiny)

    reader = gguf.GGUFReader(folder / ours.FILE)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    wanted = {
        "general.architecture": "llama", "general.type": "adapter", "adapter.type": "lora",
        "adapter.lora.alpha": 6.0,
    }  # fmt: skip
    assert wanted.items() <= fields.items()
    read = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    assert read["blk.2.attn_k.weight.lora_a"].shape == (4, 32)
    assert read["blk.2.attn_k.weight.lora_b"].shape == (16, 4)
    by_mlx = {name: np.array(value) for name, value in mx.load(str(folder / ours.FILE)).items()}
    model = weights.read_config(tiny)
    for held in (read, by_mlx):
        found = from_gguf(held, adapter.config, model)
        assert found.tensors.keys() == adapter.tensors.keys()
        assert all(np.array_equal(found.tensors[k], v) for k, v in adapter.tensors.items())
    swapped = read["blk.2.attn_q.weight.lora_b"].T
    assert not np.array_equal(swapped, adapter.tensors["model.layers.2.self_attn.q_proj.lora_b"])


# The real model


@pytest.fixture(scope="module")
def real(embedded_model, tmp_path_factory):
    """The embedded model with a revision, and what they say of some tokens in float32."""
    found = Revisions(tmp_path_factory.mktemp("real") / "revisions")
    adapter = random_adapter(embedded_model, layers=4)
    revision = commit(found, adapter, embedded_model)
    loaded = models.load(embedded_model, plan.prepare(plan.detect()))
    return embedded_model, revision, adapter, logits_with(loaded, adapter)


@pytest.mark.model
def test_the_real_model_takes_the_gguf_in_llama_cpps_own_order(real, tmp_path):
    """The delta is added to the rows as the model's own GGUF file keeps them, then loaded."""
    base, revision, adapter, expected = real
    folder = export(revision, Format.GGUF, tmp_path / "gguf", base)
    reader = gguf.GGUFReader(folder / ours.FILE)
    held = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    scale = reader.get_field("adapter.lora.alpha").contents() / adapter.rank

    loaded = models.load(base, plan.prepare(plan.detect()))
    tensors, metadata = mx.load(str(embedded.find_gguf()), return_metadata=True)
    meta = {key: embedded._plain(value) for key, value in metadata.items()}
    for name in sorted(held):
        stem, _, side = name.rpartition(".weight.")
        if side == "lora_b":
            packed = [tensors[f"{stem}.{part}"] for part in ("weight", "scales", "biases")]
            packed[1:] = [part.astype(mx.float32) for part in packed[1:]]
            weight = mx.dequantize(*packed, group_size=32, bits=4)
            delta = mx.array(scale * held[name] @ held[f"{stem}.weight.lora_a"])
            whole = embedded._as_mlx(f"{stem}.weight", weight + delta, meta)
            loaded.model.load_weights([(embedded._rename(f"{stem}.weight"), whole)], strict=False)
    assert far(loaded.model(TOKENS), expected) < 2e-3


@pytest.mark.model
def test_the_real_model_fused_says_nearly_the_same(real, tmp_path):
    base, revision, _, expected = real
    folder = export(revision, Format.FUSED, tmp_path / "fused", base)
    from mlx_lm import load as stock

    model, tokenizer = stock(str(folder))
    model.set_dtype(mx.float32)
    assert tokenizer.has_chat_template
    assert far(model(TOKENS), expected) < 0.15  # each weight was rounded; 0.07 of 30 was measured
    found, wanted = np.array(model(TOKENS)).argmax(-1), expected.argmax(-1)
    assert np.array_equal(found, wanted)


@pytest.mark.model
def test_the_real_model_gives_our_logits_in_stock_mlx_lm(real, tmp_path):
    base, revision, _, expected = real
    adapter = export(revision, Format.MLX, tmp_path / "mlx", None)
    from mlx_lm import load as stock

    plain = tmp_path / "base"
    plain.mkdir()
    fused.write_fused(base, plain, None, "float32")
    model, _ = stock(str(plain), adapter_path=str(adapter))
    assert far(model(TOKENS), expected) < 1e-3


@pytest.mark.model
def test_the_commands_for_mlx_lm_work(real, tmp_path):
    base, revision, _, _ = real
    folder = export(revision, Format.MLX, tmp_path / "mlx", None)
    said = run_guide((folder / FILE).read_text(), base, folder)
    assert len(said) == 2
    assert said[0].strip() in said[1]  # from Python and from a shell
    assert "transformers" not in (folder / FILE).read_text()


def test_the_commands_for_the_gguf_package_work(tiny, revisions, tmp_path):
    revision = commit(revisions, random_adapter(tiny), tiny)
    folder = export(revision, Format.GGUF, tmp_path / "gguf", tiny)
    (said,) = run_guide((folder / FILE).read_text(), "", folder, without=["llama_cpp"])
    assert said.startswith("lora 8.0\nblk.1.ffn_down.weight.lora_a [64, 4]")


@pytest.mark.model
def test_llama_cpp_takes_the_adapter(real, tmp_path):
    pytest.importorskip(
        "llama_cpp", reason="llama-cpp-python compiles for ten minutes: try it by hand"
    )
    base, revision, _, _ = real
    folder = export(revision, Format.GGUF, tmp_path / "gguf", base)
    guide = (folder / FILE).read_text().replace("PATH/TO/THE/BASE.gguf", str(embedded.find_gguf()))
    assert run_guide(guide, base, folder)[-1].strip()


def test_the_guide_of_a_revision_names_the_commands_that_export_it(tiny, revisions):
    revision = commit(revisions, random_adapter(tiny), tiny)
    guide = (revision.folder / FILE).read_text()
    for form in Format:
        assert f"farense-bot revisions export {revision.id} --format {form}" in guide


def test_the_commands_work_from_end_to_end(tiny, tmp_path):
    settings = load_settings(tmp_path / "home", engine={"model": str(tiny)})
    found = Revisions(settings.revisions)
    revision = commit(found, random_adapter(tiny), tiny)
    out, err = (Console(file=io.StringIO(), soft_wrap=True, width=200) for _ in range(2))
    for form in Format:
        export_revision(settings, revision.id, form, tmp_path / form, console=err, out=out)
    import_revision(settings, tmp_path / "peft", err, out)

    lines = out.file.getvalue().splitlines()
    assert lines[:4] == [str(tmp_path / form) for form in Format]
    assert found.get(lines[4]).metadata["parent"] == "import"
    assert lines[4] in err.file.getvalue()
    with pytest.raises(ModelError, match="missing"):
        export_revision(settings, "nada", Format.MLX, None, console=err, out=out)


def test_a_revision_of_another_base_is_not_put_on_this_one(tiny, tmp_path):
    other = tiny_folder(tmp_path / "other", quantised=False)
    settings = load_settings(tmp_path / "home", engine={"model": str(other)})
    revision = commit(Revisions(settings.revisions), random_adapter(tiny), tiny)
    with pytest.raises(ModelError, match="revision_base"):
        export_revision(settings, revision.id, Format.GGUF, None, console=Console(), out=Console())
