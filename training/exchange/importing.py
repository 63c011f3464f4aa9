"""A PEFT LoRA as an adapter of ours: looked at until nothing can go wrong when it is loaded.

The base is known from its headers alone; no MLX is needed.
"""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from bot.errors import ModelError
from engine import weights
from engine.lora import CONFIG, WEIGHTS
from training.exchange import peft
from training.exchange.adapter import IN_A_BLOCK, Adapter, Array, ExchangeError, place
from training.files import to_json
from training.guide import FILE as GUIDE
from training.guide import integration_guide
from training.revisions import Revision, Revisions
from training.serving import Base

IMPORTED = "import"  # the parent of what came from elsewhere

# What changes more than low-rank products of linear layers, or changes the base beneath them.
FOREIGN = (
    "modules_to_save",
    "lora_bias",
    "fan_in_fan_out",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # these leave the base as it is


def import_peft(folder: Path, base: Path) -> Adapter:
    """The LoRA or DoRA in a PEFT folder, for the model in `base`. Raises ModelError."""
    config = peft.read_config(folder)
    _check_settings(config)
    tensors, held = peft.read_tensors(folder), shapes(base)
    found = Adapter(_config(config, tensors, held), tensors)
    _check_tensors(found, held)
    return found


def shapes(base: Path) -> dict[str, tuple[int, ...]]:
    """The shape (out, in) of each of a model's weights, unpacked where it is quantised."""
    packed = weights.read_config(base).get("quantization", {})
    held = {
        name: tuple(tensor["shape"])
        for file in weights.check(base)
        for name, tensor in file.tensors.items()
    }

    def unpacked(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        stem = name.removesuffix(".weight")
        scales = held.get(f"{stem}.scales")
        if scales is None or stem == name:
            return shape
        own = packed.get(stem)
        group = (own if isinstance(own, dict) else packed).get("group_size", weights.GROUP_SIZE)
        return *scales[:-1], scales[-1] * group

    return {name: unpacked(name, shape) for name, shape in held.items()}


def _check_settings(config: Mapping[str, Any]) -> None:
    """Whether mlx-lm has layers for what the config asks. Raises ExchangeError."""
    if config.get("peft_type") != "LORA":
        raise ExchangeError("error.import_kind", kind=config.get("peft_type"))
    for name in FOREIGN:
        if config.get(name):
            raise ExchangeError("error.import_setting", name=name)
    if config.get("bias", "none") != "none":
        raise ExchangeError("error.import_setting", name="bias")
    if config.get("init_lora_weights") not in PLAIN_STARTS:
        raise ExchangeError("error.import_setting", name="init_lora_weights")
    for name, usual in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha")):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or any(v != config.get(usual) for v in pattern.values()):
            raise ExchangeError("error.import_setting", name=name)


def _config(
    config: Mapping[str, Any], tensors: Mapping[str, Array], held: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """mlx-lm's adapter_config.json. Raises ExchangeError where it could not say the same."""
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as fault:
        raise ExchangeError("error.import_setting", name="r, lora_alpha") from fault
    if not (math.isfinite(scale) and scale > 0):
        raise ExchangeError("error.import_setting", name="lora_alpha")
    return {
        "fine_tune_type": "dora" if config.get("use_dora") else "lora",
        **_reach(tensors, _depth(held), rank, scale),
    }


def _depth(held: Mapping[str, tuple[int, ...]]) -> int:
    """How many blocks a model has, by the names of its weights."""
    found = (IN_A_BLOCK.fullmatch(name) for name in held)
    return 1 + max((int(block[1]) for block in found if block), default=-1)


def _reach(tensors: Mapping[str, Array], depth: int, rank: int, scale: float) -> dict[str, Any]:
    """Which blocks and modules: mlx-lm knows the same modules of each of the last n blocks."""
    by_layer: dict[int, set[str]] = {}
    for name in tensors:
        layer, key = place(name.rpartition(".")[0])
        by_layer.setdefault(layer, set()).add(key)
    layers = sorted(by_layer)
    keys = by_layer[layers[-1]] if layers else set()
    last = list(range(depth - len(layers), depth))
    if not layers or layers != last or any(each != keys for each in by_layer.values()):
        raise ExchangeError("error.import_layers")
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": sorted(keys)}
    return {"num_layers": len(layers), "lora_parameters": parameters}


def _check_tensors(adapter: Adapter, held: Mapping[str, tuple[int, ...]]) -> None:
    """Every tensor of every module, in the base's shape, and finite. Raises ExchangeError."""
    expected: dict[str, tuple[int, ...]] = {}
    for module in adapter.modules:
        shape = held.get(f"{module}.weight", ())
        if len(shape) != 2:  # noqa: PLR2004 (a matrix)
            raise ExchangeError("error.exchange_module", name=module)
        expected[f"{module}.lora_a"] = (shape[1], adapter.rank)
        expected[f"{module}.lora_b"] = (adapter.rank, shape[0])
        if adapter.dora:
            expected[f"{module}.m"] = (shape[0],)
    if odd := sorted(expected.keys() ^ adapter.tensors.keys()):
        raise ExchangeError("error.import_tensor", name=odd[0])
    for name, wanted in expected.items():
        value = adapter.tensors[name]
        if value.shape != wanted:
            raise ExchangeError(
                "error.import_shape",
                name=name,
                given=_as_text(value.shape),
                wanted=_as_text(wanted),
            )
        if not np.isfinite(value).all():
            raise ExchangeError("error.import_values", name=name)


def _as_text(shape: tuple[int, ...]) -> str:
    return "×".join(str(size) for size in shape)


def bring_in(revisions: Revisions, folder: Path, base: Base, now: datetime) -> Revision:
    """Make a PEFT folder a revision, which no gate has seen and nothing was trained for here.

    Raises ModelError; nothing is left half-written.
    """
    adapter = import_peft(folder, base.folder)
    name, described = f"{now:%Y%m%d-%H%M%S}-import", _described(adapter, folder, base, now)
    draft = revisions.draft(name)
    try:
        (draft / WEIGHTS).write_bytes(save(dict(adapter.tensors), {"format": "mlx"}))
        (draft / CONFIG).write_bytes(to_json(adapter.config))
        (draft / GUIDE).write_text(integration_guide(name, described), "utf-8")
        revision = revisions.commit(name, draft, described)
    except OSError as fault:
        raise ModelError("error.model_unwritable", path=draft, detail=fault) from fault
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return revisions.verify(revision.id, base.fingerprint)


def _described(adapter: Adapter, folder: Path, base: Base, now: datetime) -> dict[str, Any]:
    wanted = adapter.config["lora_parameters"]
    return {
        "created_at": now.isoformat(),
        "promoted": False,
        "parent": IMPORTED,
        "base": {"name": base.name, "fingerprint": base.fingerprint},
        "dataset": "",
        "rows": [],
        "recipe": {
            "kind": adapter.config["fine_tune_type"],
            "rank": adapter.rank,
            "scale": wanted["scale"],
            "layers": adapter.config["num_layers"],
            "targets": wanted["keys"],
        },
        "seed": None,
        "training": {"stages": {}},
        "imported": folder.resolve().name,
        "figures": [],
        "python": platform.python_version(),
    }
