"""The child process: does the job in a folder, and ends when whoever started it is gone."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from training.job import ServeJob, TrainJob, read_job

STDIN = 0


def do(folder: Path) -> int:
    """Do the job in a folder; 0 when it went well."""
    if not sys.stdin.isatty():
        watch_parent()
    job = read_job(folder)
    if isinstance(job, TrainJob):
        from training.run import train

        return train(folder)
    if isinstance(job, ServeJob):
        from training.compare.serve import serve

        return serve(folder, job)
    from training.evaluate import evaluate

    return evaluate(folder)


def watch_parent() -> None:
    """End this process with its parent: the pipe between them closes however the parent ends."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Not through sys.stdin: its lock, held by a thread that waits, aborts the interpreter's end.
    while os.read(STDIN, 4096):
        pass
    os._exit(1)
