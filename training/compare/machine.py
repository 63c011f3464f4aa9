"""What a comparison was made on, in words."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil

from engine.plan import detect
from training.run import versions

CPU_INFO = Path("/proc/cpuinfo")
BRAND = ("/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string")
BLAS = "ngsolve-openblas"
GIB = 2**30


def facts() -> dict[str, str]:
    """Processor, memory, system, compute plan and versions."""
    told = versions()
    with contextlib.suppress(metadata.PackageNotFoundError):  # a Mac has none
        told[BLAS] = metadata.version(BLAS)
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / GIB:.0f} GiB",
        "system": f"{platform.system()} {platform.release()} {told.pop('machine')}",
        "plan": detect().description,
        "versions": ", ".join(f"{name} {version}" for name, version in told.items()),
    }


def processor() -> str:
    """Its name; Linux keeps it in a file, macOS asks the kernel."""
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if platform.system() == "Darwin":
        told = subprocess.run(BRAND, capture_output=True, text=True, check=False).stdout  # noqa: S603 (a program of macOS)
        return told.strip() or platform.machine()
    return platform.processor() or platform.machine()
