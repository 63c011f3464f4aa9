"""What the figures were taken on."""

from __future__ import annotations

import ctypes
import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil

from engine.plan import detect, prepare

PACKAGES = ("mlx", "mlx-lm", "transformers", "ngsolve-openblas")


def facts(model: str | None, *, quick: bool) -> dict[str, str]:
    """Date, machine and versions, in words."""
    memory = psutil.virtual_memory().total / 2**30
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GB, {_system()}",
        "compute plan": _plan(),
        "model": model or "embedded (SmolLM2-135M-Instruct, int4)",
        "versions": ", ".join(_versions()),
        "run": "quick: few repetitions" if quick else "full",
    }


def _plan() -> str:
    """The plan, with the kernel that OpenBLAS took: it may be told to take a slower one."""
    plan = prepare(detect())
    if plan.fast_blas is None:
        return plan.description
    library = ctypes.CDLL(plan.fast_blas)
    library.openblas_get_corename.restype = ctypes.c_char_p
    return f"{plan.description}, kernel {library.openblas_get_corename().decode()}"


def _processor() -> str:
    """The processor's name; Linux keeps it in a file."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _versions() -> list[str]:
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue  # a Mac has no OpenBLAS of ours
    return found
