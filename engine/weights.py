"""What can be known about a model folder from its headers, without loading a tensor.

A safetensors file is eight bytes of header length, a JSON header, and the data that it describes.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot.errors import ModelError

INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")
HEADER_LIMIT = 100 * 2**20  # the format's own
GROUP_SIZE = 64  # mlx-lm's own where the config does not say
SAMPLES, SAMPLE_BYTES = 64, 64 * 1024
BOOKKEEPING = ("_name_or_path", "transformers_version")


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One safetensors file: its tensors as the header describes them."""

    path: Path
    size: int
    header: bytes
    tensors: Mapping[str, Any]


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's `config.json`. Raises ModelError where this is no model folder."""
    _check_folder(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as fault:
        raise ModelError("error.model_not_a_model", path=folder) from fault
    if not isinstance(config, dict):
        raise ModelError("error.model_not_a_model", path=folder)
    return config


def check(folder: Path) -> list[WeightFile]:
    """The folder's weight files, each whole. Raises ModelError naming the file that is not."""
    _check_folder(folder)
    paths = sorted(folder.glob("model*.safetensors"))
    for name in _indexed(folder):
        if not (folder / name).is_file():
            raise ModelError("error.model_truncated", file=name)
    if not paths:
        pickled = any(True for pattern in PICKLES for _ in folder.glob(pattern))
        raise ModelError(
            "error.model_pickle" if pickled else "error.model_not_a_model", path=folder
        )
    return [_read_header(path) for path in paths]


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ModelError("error.model_missing", path=folder)


def _indexed(folder: Path) -> list[str]:
    """Files that the index of a model in several pieces names."""
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as fault:
        raise ModelError("error.model_truncated", file=INDEX) from fault


def _read_header(path: Path) -> WeightFile:
    """Read one header and hold it against the size of the file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = file.read(min(length, HEADER_LIMIT))
        tensors = json.loads(header)
        tensors.pop("__metadata__", None)
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as fault:
        raise ModelError("error.model_truncated", file=path.name) from fault
    if not tensors or size != 8 + length + end:
        raise ModelError("error.model_truncated", file=path.name)
    return WeightFile(path, size, header, tensors)


def memory_needed(config: Mapping[str, Any], files: list[WeightFile], *, dequantise: bool) -> int:
    """Bytes that the weights take in memory: as on disk, or every number as float32."""
    if not dequantise:
        return sum(file.size for file in files)
    group = config.get("quantization", {}).get("group_size", GROUP_SIZE)
    shapes = {name: tensor["shape"] for file in files for name, tensor in file.tensors.items()}
    return 4 * sum(_numbers(name, shapes, group) for name in shapes)


def parameters(folder: Path) -> int:
    """How many numbers a model has, from its files' headers. Raises ModelError."""
    return memory_needed(read_config(folder), check(folder), dequantise=True) // 4


def _numbers(name: str, shapes: Mapping[str, list[int]], group: int) -> int:
    """How many numbers a tensor holds once unpacked; scales and biases vanish into them."""
    stem, _, leaf = name.rpartition(".")
    scales = shapes.get(f"{stem}.scales")
    if scales is None:
        return math.prod(shapes[name])
    return math.prod(scales) * group if leaf == "weight" else 0


def fingerprint(config: Mapping[str, Any], files: list[WeightFile]) -> str:
    """A name for these weights: of the config, the headers, the sizes and samples of the data.

    Takes milliseconds for any size; fine-tunes of one base differ in every sample.
    """
    digest = hashlib.sha256()
    settled = {key: value for key, value in config.items() if key not in BOOKKEEPING}
    digest.update(json.dumps(settled, sort_keys=True).encode())
    for file in files:
        digest.update(f"{file.path.name} {file.size}".encode())
        digest.update(file.header)
        for piece in _samples(file):
            digest.update(piece)
    return digest.hexdigest()[:16]


def _samples(file: WeightFile) -> Iterator[bytes]:
    """Evenly spread pieces of a file, its first and last among them."""
    with file.path.open("rb") as handle:
        for index in range(SAMPLES):
            handle.seek(max(0, file.size - SAMPLE_BYTES) * index // (SAMPLES - 1))
            yield handle.read(SAMPLE_BYTES)
