"""An int4 base from a 16-bit model, and the way back, by mlx-lm's own conversion.

A folder is written beside its place and renamed: it is whole or not there. Uses MLX in this thread.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.errors import ModelError
from engine import models, weights
from engine.folders import whole

BITS, GROUP_SIZE = 4, 64  # mlx-lm's own
BITS_KNOWN, GROUPS_KNOWN = (2, 3, 4, 5, 6, 8), (32, 64, 128)
MIXED = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")  # mlx-lm's recipes
# All that is no weight: tokenizer, chat template, generation defaults. Never code.
KEPT = ("*.json", "tokenizer.model", "*.tiktoken", "*.txt", "*.jinja")
OWN = ("config.json", weights.INDEX)
HALF = 2  # bytes of a 16-bit number
SPARE = 512 * 2**20  # bytes of disk to leave free
GIB = 2**30

Convert = Callable[[Any, dict[str, Any]], tuple[Any, dict[str, Any]]]  # a model and its config.json


@dataclass(frozen=True, slots=True)
class Scheme:
    """How weights are rounded: bits of each, in groups that share scale and bias."""

    bits: int = BITS
    group_size: int = GROUP_SIZE
    mixed: str | None = None  # more bits where it matters most; decides the bits by itself

    def __post_init__(self) -> None:
        if self.bits not in BITS_KNOWN:
            raise ModelError("error.quantise_bits", bits=self.bits, known=_listed(BITS_KNOWN))
        if self.group_size not in GROUPS_KNOWN:
            known = _listed(GROUPS_KNOWN)
            raise ModelError("error.quantise_group", group=self.group_size, known=known)
        if self.mixed is not None and self.mixed not in MIXED:
            raise ModelError("error.quantise_mixed", name=self.mixed, known=_listed(MIXED))

    @property
    def name(self) -> str:
        """Names a folder made so."""
        return f"{self.mixed or f'int{self.bits}'}-g{self.group_size}".replace("_", "-")

    @property
    def bits_per_weight(self) -> float:
        """Bits on disk with a 16-bit scale and bias for each group; of a mixture, the most."""
        return (int(self.mixed[-1]) if self.mixed else self.bits) + 32 / self.group_size


def is_quantised(folder: Path) -> bool:
    """Whether a model's weights are already rounded. Raises ModelError."""
    return bool(weights.read_config(folder).get("quantization"))


def bits_per_weight(folder: Path) -> float:
    """Bits on disk of a weight, scales and biases included. Raises ModelError."""
    files = weights.check(folder)
    return 8 * sum(file.size for file in files) / weights.parameters(folder)


def quantise(source: Path, target: Path, scheme: Scheme) -> Path:
    """Write `source` with rounded weights to `target`, which must not be there. Raises ModelError.

    Call `engine.plan.prepare` first.
    """
    if is_quantised(source):
        raise ModelError("error.quantise_twice", path=source)
    size = int(weights.parameters(source) * scheme.bits_per_weight / 8)

    def convert(model: Any, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        from mlx_lm.convert import mixed_quant_predicate_builder
        from mlx_lm.utils import quantize_model

        wanted = scheme.mixed and mixed_quant_predicate_builder(
            scheme.mixed, model, scheme.group_size
        )
        converted: tuple[Any, dict[str, Any]] = quantize_model(
            model, config, scheme.group_size, scheme.bits, quant_predicate=wanted or None
        )
        return converted

    return _convert(source, target, size, convert)


def dequantise(source: Path, target: Path) -> Path:
    """Write the rounded weights of `source` as 16-bit numbers to `target`, which must not be there.

    They are of the type of the scales, and equal to what int4 stands for but for their own
    rounding. Raises ModelError.
    """
    if not is_quantised(source):
        raise ModelError("error.dequantise_none", path=source)

    def convert(model: Any, config: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        from mlx_lm.utils import dequantize_model

        plain = {k: v for k, v in config.items() if not k.startswith("quantization")}
        return dequantize_model(model), plain

    return _convert(source, target, HALF * weights.parameters(source), convert)


def _convert(
    source: Path,
    target: Path,
    size: int,
    convert: Convert,
) -> Path:
    if target.exists():
        raise ModelError("error.model_exists", path=target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        check_disk(size + SPARE, target.parent)
        with whole(target) as draft:
            write_model(source, draft, convert)
    except OSError as fault:
        raise ModelError("error.model_unwritable", path=target, detail=fault) from fault
    return target


def write_model(source: Path, draft: Path, convert: Convert) -> None:
    """Write what `convert` makes of a model into an empty folder, with all that belongs to it.

    Tensors are read, converted and written a few at a time: MLX computes each file of weights (5 GB
    at most) when it is saved. Raises ModelError or OSError.
    """
    utils = models.mlx_lm_utils()
    with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm's remarks; a person sees our bar
        try:
            model, config = utils.load_model(source, lazy=True)
        except Exception as fault:  # anything may come out of a foreign folder
            detail = (str(fault).strip() or repr(fault)).splitlines()[0]
            raise ModelError("error.model_broken", path=source, detail=detail) from fault
        model, config = convert(model, config)
        utils.save_model(draft, model, donate_model=True)
        utils.save_config(config, draft / "config.json")
    for path in source.iterdir():
        if path.name not in OWN and any(fnmatch.fnmatch(path.name, each) for each in KEPT):
            shutil.copyfile(path, draft / path.name)
    weights.check(draft)


def check_disk(needed: int, folder: Path) -> None:
    """Whether so many bytes fit on a folder's disk. Raises ModelError."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        sizes = {"needed": round(needed / GIB, 1), "free": round(free / GIB, 1)}
        raise ModelError("error.convert_disk", **sizes)


def _listed(known: tuple[object, ...]) -> str:
    return ", ".join(str(one) for one in known)
