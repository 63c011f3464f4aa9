"""An adapter as a GGUF file, for llama.cpp and what is built on it.

Keys and shapes are those that llama.cpp's `convert_lora_to_gguf.py` writes and its loader checks:
`lora_a` (rank, in), `lora_b` (out, rank), and in llama's own architecture the rows of q and k
interleaved as its rotary embedding wants them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from training.exchange.adapter import Adapter, Array, ExchangeError

FILE = "adapter.gguf"
SIDES = ("lora_a", "lora_b")


@dataclass(frozen=True, slots=True)
class Kind:
    """What llama.cpp calls a Hugging Face architecture, and whether it interleaves q and k."""

    name: gguf.MODEL_ARCH
    interleaved: bool


KINDS = {
    "llama": Kind(gguf.MODEL_ARCH.LLAMA, interleaved=True),
    "mistral": Kind(gguf.MODEL_ARCH.LLAMA, interleaved=True),
    "qwen2": Kind(gguf.MODEL_ARCH.QWEN2, interleaved=False),
    "qwen3": Kind(gguf.MODEL_ARCH.QWEN3, interleaved=False),
}


def check(adapter: Adapter, model: Mapping[str, Any]) -> None:
    """Whether llama.cpp could load it; `model` is the base's config.json. Raises ExchangeError."""
    if adapter.dora:
        raise ExchangeError("error.export_dora")
    kind = model.get("model_type")
    if kind not in KINDS:
        raise ExchangeError("error.export_kind", kind=kind, known=", ".join(KINDS))


def write_gguf(path: Path, adapter: Adapter, model: Mapping[str, Any], name: str) -> None:
    """Write the file, once `check` has found nothing. Raises OSError or ExchangeError."""
    kind = KINDS[model["model_type"]]
    names = gguf.get_tensor_name_map(kind.name, model["num_hidden_layers"])
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[kind.name])
    try:
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.alpha)
        writer.add_name(name)
        writer.add_file_type(gguf.LlamaFileType.ALL_F32)
        for module in adapter.modules:
            theirs = names.get_name(module)
            if theirs is None:
                raise ExchangeError("error.exchange_module", name=module)
            for side in SIDES:
                value = adapter.tensors[f"{module}.{side}"].T.astype(np.float32)
                if side == "lora_b" and kind.interleaved and (heads := _heads(theirs, model)):
                    value = interleave(value, heads)
                writer.add_tensor(f"{theirs}.weight.{side}", np.ascontiguousarray(value))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def interleave(value: Array, heads: int) -> Array:
    """The rows of each head's halves in turn."""
    rows, *rest = value.shape
    halves = value.reshape(heads, 2, rows // heads // 2, *rest)
    return halves.swapaxes(1, 2).reshape(value.shape)


def _heads(theirs: str, model: Mapping[str, Any]) -> int | None:
    """Heads of the rows of q and k, None for other modules."""
    queries = int(model["num_attention_heads"])
    return {
        "attn_q": queries,
        "attn_k": int(model.get("num_key_value_heads") or queries),
    }.get(theirs.rpartition(".")[2])
