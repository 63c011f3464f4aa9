"""Folders that are whole or not there, whenever the process is killed or the power goes."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A draft beside `target` that takes its place when the block ends well, else vanishes.

    The target must not be there by then. What a killed process left is removed first: hold a lock
    where several may write the same folder.
    """
    prefix = f".{target.name}.draft-"
    for left in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        yield draft
        for path in (*draft.rglob("*"), draft):
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        draft.chmod(0o755)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
