"""Where a training run stands, on disk: whole or not there, whenever the process is killed.

A checkpoint is a folder that is written under another name, brought to the disk, and renamed. Only
safetensors and JSON.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from training.files import commit

TENSORS, STATE = "tensors.safetensors", "state.json"
KEPT = 2

Tensors = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True, slots=True)
class Saved:
    """What a checkpoint holds."""

    tensors: Tensors
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run. `run` names it: what other runs left here is not its own."""

    def __init__(self, folder: Path, run: str) -> None:
        self._folder = folder
        self._run = run

    def save(self, number: int, saved: Saved) -> None:
        """Write a checkpoint; the last two stay. Raises OSError."""
        data = save(dict(saved.tensors))
        state = {"run": self._run, "sha256": hashlib.sha256(data).hexdigest(), **saved.state}
        target = self._folder / f"{number:08d}"
        if target.exists():  # a broken one: a whole one would have been read
            shutil.rmtree(target)
        commit(target, {TENSORS: data, STATE: json.dumps(state).encode()})
        for old in self._found()[KEPT:]:
            shutil.rmtree(old)

    def newest(self) -> Saved | None:
        """The last checkpoint of this run that is whole."""
        for folder in self._found():
            try:
                state = json.loads((folder / STATE).read_bytes())
                data = (folder / TENSORS).read_bytes()
                whole = state.pop("sha256") == hashlib.sha256(data).hexdigest()
                if whole and state.pop("run") == self._run:
                    return Saved(load(data), state)
            except (OSError, ValueError, KeyError, SafetensorError):
                continue
        return None

    def clear(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _found(self) -> list[Path]:
        """Newest first."""
        return sorted((path for path in self._folder.glob("[0-9]*") if path.is_dir()), reverse=True)
