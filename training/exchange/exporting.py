"""A revision as a folder for another program, with the guide that says how to load it there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Any

from bot.errors import ModelError
from engine import weights
from engine.folders import whole
from engine.lora import CONFIG, WEIGHTS
from engine.quantize import check_disk
from training.exchange.adapter import Adapter, ExchangeError
from training.exchange.peft import to_peft
from training.guide import FILE, integration_guide
from training.revisions import Revision

SPARE = 64 * 2**20  # bytes of disk to leave free
HALF, FLOAT = 2, 4  # bytes of a number


class Format(StrEnum):
    """What a revision can be exported as."""

    PEFT = "peft"
    MLX = "mlx"
    GGUF = "gguf"
    FUSED = "fused-16bit"

    @property
    def needs_base(self) -> bool:
        """Whether the base model has to be looked at."""
        return self in {Format.GGUF, Format.FUSED}


def export(revision: Revision, form: Format, target: Path, base: Path | None) -> Path:
    """Write a verified revision to `target`, which must not be there; it is whole or not there.

    `base` is the folder of its base model, for the formats that need one. `engine.plan.prepare`
    comes first for a fused model. Raises ModelError.
    """
    if target.exists():
        raise ExchangeError("error.model_exists", path=target)
    try:
        adapter = Adapter.read(revision.folder)
        write, size = _plan(revision, adapter, form, base)
        target.parent.mkdir(parents=True, exist_ok=True)
        check_disk(size + SPARE, target.parent)
        with whole(target) as draft:
            write(draft)
            guide = integration_guide(revision.id, revision.metadata, form)
            (draft / FILE).write_text(guide, "utf-8")
    except OSError as fault:
        raise ModelError("error.model_unwritable", path=target, detail=fault) from fault
    return target


def _plan(
    revision: Revision, adapter: Adapter, form: Format, base: Path | None
) -> tuple[Callable[[Path], None], int]:
    """What writes the format into a folder, and the bytes that it will take."""
    size = (revision.folder / WEIGHTS).stat().st_size
    if form is Format.PEFT:
        name = revision.metadata["base"]["name"]
        return (lambda draft: _write_all(draft, to_peft(adapter, name))), size
    if form is Format.MLX:
        return (lambda draft: _copy(revision, draft)), size
    if base is None:
        raise ExchangeError("error.revision_base", name=revision.id)
    model = weights.read_config(base)
    if form is Format.GGUF:
        from training.exchange import gguf

        gguf.check(adapter, model)
        return (lambda draft: gguf.write_gguf(draft / gguf.FILE, adapter, model, revision.id)), size
    from training.exchange import fused

    fused.check(model)
    return (lambda draft: fused.write_fused(base, draft, adapter)), _unpacked(base, model)


def _unpacked(base: Path, model: dict[str, Any]) -> int:
    return weights.memory_needed(model, weights.check(base), dequantise=True) * HALF // FLOAT


def _write_all(draft: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (draft / name).write_bytes(data)


def _copy(revision: Revision, draft: Path) -> None:
    for name in (WEIGHTS, CONFIG):
        shutil.copyfile(revision.folder / name, draft / name)
