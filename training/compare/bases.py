"""Both bases of a comparison: the model that is given, and the other one made from it.

What is made is a model like any other and takes minutes for large ones, so that it stays among the
models for the next comparison; the source's fingerprint in its name keeps it from being another's.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from filelock import FileLock

from bot.errors import ConfigError
from engine import quantize, weights
from engine.plan import detect, prepare
from training import derived
from training.compare.values import Base, Method

DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A base on this machine."""

    name: str
    folder: Path
    made: Literal["given", "dequantised", "quantised"]

    @property
    def fingerprint(self) -> str:
        """Names its weights. Raises ModelError."""
        return weights.fingerprint(weights.read_config(self.folder), weights.check(self.folder))

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return size_of(self.folder)

    def described(self, memory: str | None = None) -> Base:
        """In figures; `memory` is what it was seen to compute in. Raises ModelError."""
        return Base(
            name=self.name,
            parameters=weights.parameters(self.folder),
            bits=round(quantize.bits_per_weight(self.folder), 2),
            memory=memory or _expected(self.folder),
            made=self.made,
        )


def prepare_bases(
    name: str, folder: Path, models: Path, *, dequantise: bool
) -> dict[Method, Prepared]:
    """LoRA's 16-bit base and QLoRA's int4 one. Raises ConfigError, ModelError."""
    given = Prepared(name, folder, "given")
    mark = given.fingerprint[:8]
    if not quantize.is_quantised(folder):
        scheme = quantize.Scheme()
        target = models / f"{folder.name}-{scheme.name}-{mark}"
        if not target.is_dir():
            _make(target, lambda: quantize.quantise(folder, target, scheme))
        return {"lora": given, "qlora": Prepared(f"{name} {scheme.name}", target, "quantised")}
    if not dequantise:
        known = (one.original for one in derived.known().values() if one.int4 == name)
        if original := next(known, None):
            raise ConfigError("error.compare_fetch", model=name, original=original)
        raise ConfigError("error.compare_no_16bit", model=name)
    target = models / f"{folder.name}-16bit-{mark}"
    if not target.is_dir():
        _make(target, lambda: quantize.dequantise(folder, target))
    return {"lora": Prepared(f"{name} 16-bit", target, "dequantised"), "qlora": given}


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _make(target: Path, convert: Callable[[], Path]) -> None:
    """Convert in this process, and give the memory back: measuring comes next."""
    prepare(detect())
    import mlx.core as mx

    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f".{target.name}.lock"):
        if not target.is_dir():  # another process may have been quicker
            convert()
    gc.collect()
    mx.clear_cache()


def _expected(folder: Path) -> str:
    """What a base computes in by this machine's plan, where nobody saw it."""
    if detect().dequantise:
        return "float32"
    if quantization := weights.read_config(folder).get("quantization"):
        return f"int{quantization['bits']}"
    tensors = weights.check(folder)[0].tensors
    return DTYPES.get(next(iter(tensors.values()))["dtype"], "float32")
