"""An adapter between formats: its config and numbers, under mlx-lm's names. Needs no MLX."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bot.errors import ModelError
from engine.lora import read_adapter

Array = np.ndarray[Any, np.dtype[Any]]

IN_A_BLOCK = re.compile(r"model\.layers\.(\d+)\.(.+)")


class ExchangeError(ModelError):
    """Something cannot be exported or imported; the text says why."""

    key = "error.exchange"


@dataclass(frozen=True, slots=True)
class Adapter:
    """mlx-lm's adapter_config.json and tensors: `lora_a` (in, rank), `lora_b` (rank, out), `m`."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Array]

    @classmethod
    def read(cls, folder: Path) -> Adapter:
        """The one in a revision's folder, which was verified. Raises OSError or ValueError."""
        return cls(*read_adapter(folder))

    @property
    def dora(self) -> bool:
        """Whether magnitudes are learnt apart."""
        return bool(self.config["fine_tune_type"] == "dora")

    @property
    def rank(self) -> int:
        """Of every module."""
        return int(self.config["lora_parameters"]["rank"])

    @property
    def alpha(self) -> float:
        """What others divide by the rank to get our scale."""
        return float(self.config["lora_parameters"]["scale"]) * self.rank

    @property
    def modules(self) -> list[str]:
        """Names of the modules that it changes, such as `model.layers.0.self_attn.q_proj`."""
        return sorted({name.rpartition(".")[0] for name in self.tensors}, key=_by_number)

    @property
    def layers(self) -> list[int]:
        """Numbers of the blocks that it changes."""
        return sorted({place(module)[0] for module in self.modules})


def place(module: str) -> tuple[int, str]:
    """The number of a module's block and its name within. Raises ExchangeError outside of one."""
    found = IN_A_BLOCK.fullmatch(module)
    if found is None:
        raise ExchangeError("error.exchange_module", name=module)
    return int(found[1]), found[2]


def _by_number(name: str) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else -1, part) for part in name.split(".")]
