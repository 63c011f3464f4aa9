"""Energy that a machine says it took: RAPL on Linux, `nvidia-smi` for a card; elsewhere none.

Metal tells it only to root, so that a Mac gives none.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
MICRO = 1e-6
EVERY = 200  # milliseconds between two readings of a card's power
CARD = ("--id=0", "--query-gpu=power.draw", "--format=csv,noheader,nounits", f"--loop-ms={EVERY}")
LAST_WORDS = 5.0  # seconds


class Rapl:
    """What processor packages count in microjoules, from 0 again when a counter is full."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._zones = [zone for zone in sorted(powercap.glob("intel-rapl:?")) if _reads(zone)]
        self._before = [_count(zone) for zone in self._zones]

    def end(self) -> float | None:
        """Joules since this was made."""
        if not self._zones:
            return None
        try:
            spent = [
                (_count(zone) - before) % (_count(zone, "max_energy_range_uj") + 1)
                for zone, before in zip(self._zones, self._before, strict=True)
            ]
        except (OSError, ValueError):
            return None
        return sum(spent) * MICRO


class Card:
    """A card's power, added up over time while a thread reads what `nvidia-smi` says."""

    def __init__(self, program: str = "nvidia-smi") -> None:
        found = shutil.which(program)
        self._joules, self._readings = 0.0, 0
        self._child = None
        if found:
            self._child = subprocess.Popen(  # noqa: S603 (a program of the driver)
                [found, *CARD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            self._thread = threading.Thread(target=self._read, args=(self._child.stdout,))
            self._thread.start()

    def _read(self, lines: Iterable[str]) -> None:
        last = time.monotonic()
        for line in lines:
            now = time.monotonic()
            with contextlib.suppress(ValueError):  # "[N/A]"
                self._joules += float(line) * (now - last)
                self._readings += 1
            last = now

    def end(self) -> float | None:
        """Joules since this was made, of the first card: MLX takes that."""
        if self._child is None:
            return None
        with self._child as child:  # closes its pipe and waits for it
            child.terminate()
            self._thread.join(LAST_WORDS)
        return self._joules if self._readings else None


class Meter:
    """Everything that can be asked, from when it is made."""

    def __init__(self) -> None:
        self._meters = (Rapl(), Card())

    def end(self) -> float | None:
        """Joules since then, None where nothing tells."""
        told = [joules for meter in self._meters if (joules := meter.end()) is not None]
        return sum(told) if told else None


def _reads(zone: Path) -> bool:
    try:
        return _count(zone) >= 0 and _count(zone, "max_energy_range_uj") > 0
    except (OSError, ValueError):
        return False


def _count(zone: Path, name: str = "energy_uj") -> int:
    return int((zone / name).read_text())
