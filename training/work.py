"""The child process: does the job in a folder, and ends when whoever started it is gone."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from training.job import TrainJob, read_job


def do(folder: Path) -> int:
    """Do the job in a folder; 0 when it went well."""
    if not sys.stdin.isatty():
        threading.Thread(target=_end_with_parent, daemon=True).start()
    if isinstance(read_job(folder), TrainJob):
        from training.run import train

        return train(folder)
    from training.evaluate import evaluate

    return evaluate(folder)


def _end_with_parent() -> None:
    """Wait for the pipe that the parent holds to close, which it does however the parent ends."""
    sys.stdin.buffer.read()
    os._exit(1)
