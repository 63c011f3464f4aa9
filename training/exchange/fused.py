"""A model with an adapter added to its weights for good: a 16-bit Hugging Face folder.

For what knows no adapters. The base is unpacked and the adapter added in float32, then rounded to
16 bits once; into four bits it would mostly be lost. Uses MLX in this thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from engine import lora, models, weights
from engine.quantize import write_model
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
    chosen = number or _number(base)

    def convert(model: Any, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        model = models.mlx_lm_utils().dequantize_model(_in(model, "float32"))
        if adapter is not None:
            _add(model, adapter)
        plain = {k: v for k, v in config.items() if not k.startswith("quantization")}
        return _in(model, chosen), plain | {"torch_dtype": chosen}

    write_model(base, draft, convert)


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
