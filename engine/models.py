"""From a name in the settings to a model in memory: which one, is it sound, does it fit.

Importable without MLX: it is first imported inside `load`, which therefore must run after
`engine.plan.prepare`, in the thread that will own the model.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from bot.errors import ModelError
from config.settings import EMBEDDED_MODEL
from engine import embedded, hub, weights
from engine.plan import Backend, ComputePlan

GIB = 2**30
METAL_SHARE = 0.65  # of all memory: macOS makes room by compressing what others hold
APPLE_MODEL = "mlx-community/Mistral-7B-Instruct-v0.3-4bit"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
DEFAULT_CONTEXT = 4096  # where a model's config does not say


class Kind(StrEnum):
    """Where a model comes from."""

    EMBEDDED = "embedded"
    FOLDER = "folder"
    HUB = "hub"


@dataclass(frozen=True, slots=True)
class Source:
    """A model that somebody named; `folder` is None while it is not on this machine yet."""

    kind: Kind
    name: str
    folder: Path | None


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to run; `model` and `tokenizer` belong to the thread that loaded it.

    `fingerprint` names the base weights on disk, whatever the plan made of them in memory.
    """

    name: str
    folder: Path
    model: Any  # mlx.nn.Module
    tokenizer: Any  # mlx_lm's TokenizerWrapper
    config: dict[str, Any]
    fingerprint: str
    context: int
    vocabulary: int


def default_name(system: str, machine: str) -> str:
    """The model for a machine where nobody has chosen one."""
    return APPLE_MODEL if (system, machine) == ("Darwin", "arm64") else EMBEDDED_MODEL


def resolve(name: str | None, models: Path) -> Source:
    """What a name stands for: `embedded`, a folder, or a hub id. Never asks the network.

    Raises ModelError for a name that is none of them.
    """
    chosen = name or default_name(platform.system(), platform.machine())
    if chosen == EMBEDDED_MODEL:
        folder = models / embedded.NAME
        return Source(Kind.EMBEDDED, chosen, folder if embedded.is_complete(folder) else None)
    folder = Path(chosen).expanduser()
    if folder.is_dir() or chosen.startswith((".", "/", "~")):
        return Source(Kind.FOLDER, folder.resolve().name, folder)
    if HUB_ID.fullmatch(chosen):
        return Source(Kind.HUB, chosen, hub.find(chosen, models))
    raise ModelError("error.model_name", name=chosen)


def install(source: Source, models: Path, progress: embedded.Progress | None = None) -> Path:
    """Bring a model onto this machine unless it is there and whole, and return its folder.

    Converting the embedded model uses MLX in this thread. Raises ModelError.
    """
    if source.kind is Kind.EMBEDDED:
        return embedded.install(models / embedded.NAME, progress)
    if source.folder is not None:
        try:
            weights.check(source.folder)
        except ModelError:
            if source.kind is Kind.FOLDER:
                raise
        else:
            return source.folder
    if progress:
        progress(source.name)
    return hub.download(source.name, models)


def inspect(path: Path, plan: ComputePlan) -> tuple[dict[str, Any], list[weights.WeightFile]]:
    """Find out, without loading it, whether a model could be loaded. Raises ModelError."""
    config = weights.read_config(path)
    files = weights.check(path)
    check_kind(config)
    check_memory(weights.memory_needed(config, files, dequantise=plan.dequantise), plan)
    return config, files


def load(path: Path, plan: ComputePlan, name: str | None = None) -> LoadedModel:
    """Load a model folder as the plan asks. Raises ModelError with what is wrong with it."""
    config, files = inspect(path, plan)
    model, tokenizer = _load(path, plan)
    if not tokenizer.has_chat_template:
        raise ModelError("error.model_no_template", path=path)
    return LoadedModel(
        name=name or path.name,
        folder=path,
        model=model,
        tokenizer=tokenizer,
        config=config,
        fingerprint=weights.fingerprint(config, files),
        context=context_length(config),
        vocabulary=len(tokenizer),
    )


def _load(path: Path, plan: ComputePlan) -> tuple[Any, Any]:
    """Load with mlx-lm, never running code from the folder."""
    import mlx.core as mx

    utils = mlx_lm_utils()

    try:
        model, tokenizer = utils.load(str(path), tokenizer_config={"trust_remote_code": False})
        if plan.dequantise:
            # Scales first: the products are then float32 too, as in the int4 kernels.
            model.set_dtype(mx.float32)
            model = utils.dequantize_model(model)
            mx.eval(model.parameters())
    except Exception as fault:
        # Anything may come out of a foreign folder: KeyError, ValueError, RuntimeError, OSError.
        detail = (str(fault).strip() or repr(fault)).splitlines()[0]
        raise ModelError("error.model_broken", path=path, detail=detail) from fault
    return model, tokenizer


def mlx_lm_utils() -> Any:
    """Import mlx-lm, without transformers' remark that there is no PyTorch: none is wanted."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    return importlib.import_module("mlx_lm.utils")


def check_kind(config: dict[str, Any]) -> None:
    """Whether mlx-lm knows this architecture. Raises ModelError."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or not re.fullmatch(r"[\w-]+", kind):
        raise ModelError("error.model_unknown", kind=kind)
    module = mlx_lm_utils().MODEL_REMAPPING.get(kind, kind)
    if importlib.util.find_spec(f"mlx_lm.models.{module}") is None:
        raise ModelError("error.model_unknown", kind=kind)


def check_memory(needed: int, plan: ComputePlan) -> None:
    """Whether the weights fit now, before the system finds out the hard way."""
    memory = psutil.virtual_memory()
    free = usable_memory(memory.available, memory.total, plan.backend)
    if needed > free:
        raise ModelError(
            "error.model_memory", needed=round(needed / GIB, 1), free=round(free / GIB, 1)
        )


def usable_memory(available: int, total: int, backend: Backend) -> int:
    """Bytes that a model may take."""
    if backend is Backend.METAL:
        return max(available, int(total * METAL_SHARE))
    return available


def context_length(config: dict[str, Any]) -> int:
    """The longest text the model was made for, in tokens."""
    inner = config.get("text_config", {})
    value = config.get("max_position_embeddings", inner.get("max_position_embeddings"))
    return value if isinstance(value, int) and value > 0 else DEFAULT_CONTEXT
