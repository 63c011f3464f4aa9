"""How a child process behaves beside the bot: last in line for the processor, awake until done."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NICE = 10
AWAKE = ("caffeinate", "-i", "-m", "-w")  # until the process that is named next has ended


@contextmanager
def quietly() -> Iterator[None]:
    """Work at low priority; on macOS keep the machine from going to sleep meanwhile."""
    if hasattr(os, "nice"):
        os.nice(max(0, NICE - os.nice(0)))
    if sys.platform != "darwin":
        yield
        return
    with subprocess.Popen([*AWAKE, str(os.getpid())]) as awake:  # noqa: S603 (a program of macOS)
        try:
            yield
        finally:
            awake.terminate()
