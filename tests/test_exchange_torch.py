"""Exported adapters in transformers, PEFT and llama.cpp themselves, and PEFT's own in MLX.

PEFT and MLX compute in float32 on the CPU. Logits of the embedded model are numbers up to about 40;
they differ by the order in which 30 blocks add up: 0.0004 was measured.
"""

from __future__ import annotations

import gc
import json

import mlx.core as mx
import numpy as np
import pytest

from engine import lora, models, plan
from engine.embedded import find_gguf
from engine.models import LoadedModel
from tests.exchanged import commit, random_adapter, run_guide
from tests.servers.need import need_module
from training.exchange import fused, gguf
from training.exchange.exporting import Format, export
from training.exchange.importing import import_peft
from training.guide import FILE
from training.recipe import LINEAR
from training.revisions import Revisions

pytestmark = [
    pytest.mark.torch,
    # PEFT 0.21 asks transformers 5 for a property under its old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

TOKENS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]]
LOGITS = 1e-3
HALVED = 0.6  # weights rounded to float16: 0.11 to 0.35 was measured, of logits up to 40
TINY = 1e-5  # of the greatest logit


@pytest.fixture(scope="module", autouse=True)
def parts():
    """The real libraries, quiet; in CI they have to be there."""
    for name in ("torch", "peft", "xllamacpp"):
        need_module(name, "`make torch` installs it, `make test` shows it to these tests")
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(2)
    with torch.inference_mode(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")  # PEFT would ask the hub about the base
        yield


def far(one, other):
    """The greatest difference of two arrays of logits."""
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


def unlike(one, other):
    """The same as a part of the greatest logit."""
    return far(one, other) / max(1.0, float(np.abs(other).max()))


def in_torch(base, adapter=None, dtype="float32"):
    """Logits of transformers, with PEFT on top where there is an adapter."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    logits = model.eval()(torch.tensor(TOKENS)).logits.float().numpy()
    del model
    gc.collect()
    return logits


def in_mlx(loaded, adapter):
    """Logits of what we serve."""
    model = lora.with_adapter(loaded, adapter.config, adapter.tensors)
    return np.array(model(mx.array(TOKENS)).astype(mx.float32))


@pytest.fixture(scope="module")
def loaded(embedded_model):
    return models.load(embedded_model, plan.prepare(plan.detect()))


@pytest.fixture(scope="module")
def unpacked(embedded_model, tmp_path_factory):
    """The embedded model's int4 values as a float32 folder for transformers."""
    folder = tmp_path_factory.mktemp("unpacked")
    fused.write_fused(embedded_model, folder, None, "float32")
    return folder


def exported(embedded_model, tmp_path, form, **how):
    adapter = random_adapter(embedded_model, **how)
    revision = commit(Revisions(tmp_path / "revisions"), adapter, embedded_model)
    return adapter, export(revision, form, tmp_path / form, embedded_model)


@pytest.mark.model
@pytest.mark.parametrize(
    "how",
    [
        {"layers": 30, "keys": LINEAR},
        {"layers": 3, "scale": 4.0},
        {"layers": 3, "kind": "dora", "keys": LINEAR},
    ],
    ids=["all", "the last three", "dora"],
)
def test_peft_computes_our_logits_on_the_unpacked_base(
    embedded_model, loaded, unpacked, tmp_path, how
):
    adapter, folder = exported(embedded_model, tmp_path, Format.PEFT, size=0.02, **how)
    ours, plain = in_mlx(loaded, adapter), loaded.model(mx.array(TOKENS))

    theirs = in_torch(unpacked, folder)

    assert far(ours, plain) > 1
    assert far(ours, theirs) < LOGITS


@pytest.mark.model
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_fused_model_loads_in_transformers(embedded_model, loaded, tmp_path, kind):
    adapter, folder = exported(embedded_model, tmp_path, Format.FUSED, layers=4, kind=kind)
    ours = in_mlx(loaded, adapter)

    theirs = in_torch(folder)

    assert far(ours, theirs) < HALVED
    assert np.array_equal(ours.argmax(-1), theirs.argmax(-1))
    import torch
    from transformers import AutoModelForCausalLM

    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float16


@pytest.mark.model
@pytest.mark.parametrize("form", [Format.PEFT, Format.FUSED])
def test_the_commands_of_the_guide_work(embedded_model, unpacked, tmp_path, form):
    _, folder = exported(embedded_model, tmp_path, form, layers=2, size=0.01)
    said = run_guide((folder / FILE).read_text(), unpacked, folder)
    assert len(said) == (1 if form is Format.PEFT else 2)
    assert all(answer.strip() for answer in said)


# llama.cpp


def in_llama_cpp(model, adapter, tokens):
    """The likeliest next tokens as llama.cpp computes them: log-probability by token."""
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path = str(model)
    asked.n_ctx, asked.n_parallel, asked.n_gpu_layers = 256, 1, 0
    asked.verbosity, asked.warmup = -1, False
    if adapter is not None:
        asked.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    answer = xllamacpp.Server(asked).handle_completions(
        {"prompt": tokens, "max_tokens": 1, "logprobs": 30, "temperature": 0}
    )
    (first,) = answer["choices"][0]["logprobs"]["content"]
    return {token["id"]: token["logprob"] for token in first["top_logprobs"]}


def apart(found, logits):
    """Mean difference of log-probabilities."""
    logits = logits[0, -1].astype(np.float64)
    sure = logits - np.log(np.exp(logits).sum())
    return np.mean([abs(value - sure[token]) for token, value in found.items()])


@pytest.mark.model
def test_llama_cpp_computes_with_the_gguf_adapter_what_we_do(embedded_model, loaded, tmp_path):
    """It multiplies in 8 bits: alone, the base is 0.08 off, and 0.08 with the adapter.

    With the rows of q and k in another order it would be 0.68.
    """
    keys = ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
    how = {"layers": 30, "keys": keys, "size": 0.3}
    adapter, folder = exported(embedded_model, tmp_path, Format.GGUF, **how)
    tokens = loaded.tokenizer.encode("The first football club of the Algarve was founded in")
    plain = np.array(loaded.model(mx.array([tokens])))
    served = lora.with_adapter(loaded, adapter.config, adapter.tensors)
    ours = np.array(served(mx.array([tokens])))

    alone = in_llama_cpp(find_gguf(), None, tokens)
    found = in_llama_cpp(find_gguf(), folder / gguf.FILE, tokens)

    assert apart(alone, plain) < 0.2
    assert apart(found, ours) < 0.2
    assert apart(found, plain) > 0.5


# Adapters that PEFT made


ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3"]


def tiny(kind, folder):
    """A random model of an architecture, written by transformers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    config = AutoConfig.for_model(
        kind, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=60, max_position_embeddings=128,
        tie_word_embeddings=False, pad_token_id=None, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for value in model.parameters():
        value.mul_(5)  # else all logits are about zero
    model.save_pretrained(folder)
    # Published models of these kinds say it so, and mlx-lm's qwen2 reads it nowhere else.
    written = json.loads((folder / "config.json").read_text())
    written["rope_theta"] = written["rope_parameters"]["rope_theta"]
    (folder / "config.json").write_text(json.dumps(written))
    return model.eval()


def made_by_peft(model, folder, **settings):
    """A LoRA as PEFT itself makes and saves one, with random B; returns its logits."""
    import torch
    from peft import LoraConfig, get_peft_model

    wanted = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **wanted | settings)
    model = get_peft_model(model, config)
    for name, value in model.named_parameters():
        if "lora_magnitude" in name:
            value.mul_(1.1)
    model.eval()
    model.save_pretrained(folder)
    return model(torch.tensor(TOKENS)).logits.numpy()


def mlx_model(folder):
    model, config = models.mlx_lm_utils().load_model(folder)
    return LoadedModel(folder.name, folder, model, None, config, "print", 128, 60)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"layers_to_transform": [1, 2]},
        {"target_modules": "all-linear"},
        {"rank_pattern": {"q_proj": 4}},
    ],
    ids=lambda settings: ", ".join(settings) or "plain",
)
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_adapter_that_peft_made_gives_its_logits_in_mlx(tmp_path, kind, settings):
    base = tmp_path / "base"
    theirs = made_by_peft(tiny(kind, base), tmp_path / "peft", **settings)

    adapter = import_peft(tmp_path / "peft", base)

    ours = mlx_model(base)
    assert far(ours.model(mx.array(TOKENS)), theirs) > 1e-2
    assert unlike(in_mlx(ours, adapter), theirs) < TINY


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("form", [Format.PEFT, Format.FUSED])
def test_each_architecture_that_we_export_computes_the_same_there(tmp_path, kind, form):
    base = tmp_path / "base"
    tiny(kind, base)
    adapter = random_adapter(base)
    revision = commit(Revisions(tmp_path / "revisions"), adapter, base)
    folder = export(revision, form, tmp_path / form, base)

    ours = in_mlx(mlx_model(base), adapter)

    if form is Format.PEFT:
        assert unlike(in_torch(base, folder), ours) < TINY
    else:
        assert unlike(in_torch(folder), ours) < 0.02


# PEFT itself remarks on settings of this kind.
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`:UserWarning")
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.filterwarnings("ignore:Adapter 'default'. 9 LoRA tensor")
@pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")
@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
        ({"layers_to_transform": [0, 2]}, "import_layers"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "import_tensor"),
    ],
)
def test_what_mlx_lm_cannot_express_is_refused_as_peft_writes_it(tmp_path, settings, said):
    from bot.errors import ModelError

    made_by_peft(tiny("qwen2", tmp_path / "base"), tmp_path / "peft", **settings)
    with pytest.raises(ModelError, match=said):
        import_peft(tmp_path / "peft", tmp_path / "base")


@pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning")
def test_peft_keeps_what_we_wrote(tmp_path):
    """Loaded and saved again by PEFT, an export is the same adapter."""
    from peft import PeftModel

    model = tiny("llama", tmp_path / "base")
    revision = commit(
        Revisions(tmp_path / "revisions"), random_adapter(tmp_path / "base"), tmp_path / "base"
    )
    folder = export(revision, Format.PEFT, tmp_path / "one", None)
    PeftModel.from_pretrained(model, folder).save_pretrained(tmp_path / "other")

    one, other = (import_peft(tmp_path / name, tmp_path / "base") for name in ("one", "other"))
    assert one.config == other.config
    assert all(np.array_equal(other.tensors[name], one.tensors[name]) for name in one.tensors)
    assert one.tensors.keys() == other.tensors.keys()
