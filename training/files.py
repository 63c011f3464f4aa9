"""Files that are whole or not there, whenever the process is killed or the power goes."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

DRAFT = ".draft-"


def to_json(value: object) -> bytes:
    """Readable, and the same bytes for the same value."""
    text = json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True, default=str)
    return (text + "\n").encode()


def write(path: Path, data: bytes) -> None:
    """Write a file, or replace one, in one go; its folder is made. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    _write_through(part, data)
    part.replace(path)
    sync(path.parent)


def commit(target: Path, files: Mapping[str, bytes]) -> None:
    """Make a folder that is not there yet, with all these files or not at all. Raises OSError."""
    parent = target.parent
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=parent))
    try:
        for name, data in files.items():
            _write_through(draft / name, data)
        sync(draft)
        os.replace(draft, target)  # noqa: PTH105 (by its name in our rules)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync(parent)


def sweep(parent: Path) -> None:
    """Remove what a killed process left half-written by `commit`."""
    for left in parent.glob(f"{DRAFT}*"):
        shutil.rmtree(left, ignore_errors=True)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_through(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
