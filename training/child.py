"""How a child process behaves beside the bot: last in line for the processor, awake until done.

Its last event says how it ended, whatever happened.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from training.job import Ended, emit

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


def told(work: Callable[[], None], reason_of: Callable[[Exception], Any]) -> int:
    """Do a child's work and say how it ended; 0 when it went well."""
    try:
        with quietly():
            work()
    except Exception as fault:  # noqa: BLE001 (told as an event, whatever it is)
        traceback.print_exc()  # to stderr; stdout is for events
        emit(Ended(ok=False, reason=reason_of(fault), detail=str(fault)[:500]))
        return 1
    emit(Ended(ok=True))
    return 0
