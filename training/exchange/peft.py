"""An adapter as PEFT, the library that transformers and vLLM load adapters with, keeps it.

The same numbers under other names: `lora_A.weight` is `lora_a` transposed, `lora_B.weight` is
`lora_b` transposed, a DoRA's `m` is `lora_magnitude_vector`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from training.exchange.adapter import Adapter, Array, ExchangeError, place
from training.files import to_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
LEAVES = {
    "lora_a": "lora_A.weight",
    "lora_b": "lora_B.weight",
    "m": "lora_magnitude_vector",
}
FLOATS = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


def to_peft(adapter: Adapter, base: str) -> dict[str, bytes]:
    """The files of a PEFT folder; `base` names the model that it is for."""
    tensors = {}
    for name, value in adapter.tensors.items():
        module, _, leaf = name.rpartition(".")
        tensors[f"{PREFIX}{module}.{LEAVES[leaf]}"] = np.ascontiguousarray(value.T)
    return {CONFIG: to_json(_config(adapter, base)), WEIGHTS: save(tensors, {"format": "pt"})}


def _config(adapter: Adapter, base: str) -> dict[str, Any]:
    alpha, layers = adapter.alpha, adapter.layers
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": adapter.rank,
        # Our scale is what the weights are multiplied by, whatever rule it came from: not rsLoRA's.
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "use_rslora": False,
        "use_dora": adapter.dora,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": sorted({module.rpartition(".")[2] for module in adapter.modules}),
        "layers_to_transform": layers if layers[0] else None,
        "layers_pattern": None,
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }


def read_config(folder: Path) -> dict[str, Any]:
    """A PEFT folder's config. Raises ExchangeError where it is none, or its weights are pickled."""
    if not (folder / WEIGHTS).is_file():
        pickled = any(folder.glob("*.bin"))
        key = "error.import_pickle" if pickled else "error.import_none"
        raise ExchangeError(key, path=folder)
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError) as fault:
        raise ExchangeError("error.import_unreadable", path=folder, detail=fault) from fault
    if not isinstance(config, dict):
        raise ExchangeError("error.import_unreadable", path=folder, detail=CONFIG)
    return config


def read_tensors(folder: Path) -> dict[str, Array]:
    """Its tensors in float32 under our names, not checked yet. Raises ExchangeError."""
    try:
        held = deserialize((folder / WEIGHTS).read_bytes())  # type: ignore[no-untyped-call] # no types in its stub
    except (OSError, SafetensorError) as fault:
        raise ExchangeError("error.import_unreadable", path=folder, detail=fault) from fault
    return {_our_name(name): _transposed(name, told) for name, told in held}


def _our_name(name: str) -> str:
    for ours, theirs in LEAVES.items():
        stem = name.removesuffix(f".{theirs}")
        if stem != name and stem.startswith(PREFIX):
            module = stem.removeprefix(PREFIX)
            place(module)
            return f"{module}.{ours}"
    raise ExchangeError("error.import_tensor", name=name)


def _transposed(name: str, told: dict[str, Any]) -> Array:
    """A tensor in float32; bfloat16 is the upper half of a float32, and numpy has none."""
    kind, data, shape = told["dtype"], bytes(told["data"]), told["shape"]
    if kind == "BF16":
        flat = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in FLOATS:
        flat = np.frombuffer(data, FLOATS[kind]).astype(np.float32)
    else:
        raise ExchangeError("error.import_tensor", name=name)
    return np.ascontiguousarray(flat.reshape(shape).T)
