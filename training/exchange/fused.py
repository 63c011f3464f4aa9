"""A model with an adapter added to its weights for good: a 16-bit Hugging Face folder.

For what knows no adapters. The base is unpacked and the adapter added in float32, then rounded to
16 bits once; into four bits it would mostly be lost. MLX computes each file of weights only when it
is saved, so that no more than one (5 GB) is in memory. Uses MLX in this thread.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import shutil
from pathlib import Path
from typing import Any, Literal

from bot.errors import ModelError
from engine import lora, models, weights
from engine.quantize import KEPT, OWN
from training.exchange.adapter import Adapter, ExchangeError

# Whose tensors mlx-lm leaves under Hugging Face's names.
SAME_NAMES = ("llama", "mistral", "qwen2", "qwen3")
Number = Literal["float32", "float16", "bfloat16"]


def check(config: dict[str, Any]) -> None:
    """Whether transformers would know the tensors by mlx-lm's names. Raises ExchangeError."""
    kind = config.get("model_type")
    if kind not in SAME_NAMES:
        raise ExchangeError("error.export_kind", kind=kind, known=", ".join(SAME_NAMES))


def write_fused(
    base: Path, draft: Path, adapter: Adapter | None, number: Number | None = None
) -> None:
    """Write a model's folder into an empty one; numbers are of the base's own 16-bit type.

    Without an adapter it is the base itself, unpacked. Raises ModelError or OSError.
    """
    utils: Any = models.mlx_lm_utils()
    with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm's remarks
        try:
            model, config = utils.load_model(base, lazy=True)
        except Exception as fault:  # anything may come out of a foreign folder
            detail = (str(fault).strip() or repr(fault)).splitlines()[0]
            raise ModelError("error.model_broken", path=base, detail=detail) from fault
        chosen = number or _number(base)
        model = utils.dequantize_model(_in(model, "float32"))
        if adapter is not None:
            _add(model, adapter)
        utils.save_model(draft, _in(model, chosen), donate_model=True)
        plain = {k: v for k, v in config.items() if not k.startswith("quantization")}
        utils.save_config(plain | {"torch_dtype": chosen}, draft / "config.json")
    for path in base.iterdir():
        if path.name not in OWN and any(fnmatch.fnmatch(path.name, each) for each in KEPT):
            shutil.copyfile(path, draft / path.name)
    weights.check(draft)


def _add(model: Any, adapter: Adapter) -> None:
    """Put an adapter on a model and merge it in, by mlx-lm's own layers."""
    import mlx.core as mx
    from mlx.utils import tree_unflatten

    lora.attach(model, adapter.config)
    given = [(name, mx.array(value)) for name, value in adapter.tensors.items()]
    model.load_weights(given, strict=False)
    changed = set(adapter.modules)
    merged = [(name, part.fuse()) for name, part in model.named_modules() if name in changed]
    model.update_modules(tree_unflatten(merged))


def _in(model: Any, number: Number) -> Any:
    import mlx.core as mx

    model.set_dtype(getattr(mx, number))
    return model


def _number(base: Path) -> Number:
    """bfloat16 where the base has any: its numbers may be too large for float16."""
    kinds = {tensor["dtype"] for file in weights.check(base) for tensor in file.tensors.values()}
    return "bfloat16" if "BF16" in kinds else "float16"
