"""How this machine computes: Metal, CUDA, or the CPU with or without a fast BLAS.

`detect()` looks without importing MLX, `prepare(plan)` loads the BLAS; it must run before the first
import of MLX in the process, because MLX binds to the library that it finds at that moment.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

BLAS_PACKAGE = "ngsolve_openblas"
SYSTEM_BLAS = "libopenblas.so.0"
FORTRAN = "libgfortran.so.5"
CUDA_BUILDS = ("mlx-cuda", "mlx-cuda-12", "mlx-cuda-13")


class Backend(StrEnum):
    """What MLX computes on."""

    METAL = "metal"
    CUDA = "cuda"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class ComputePlan:
    """How the model will be run here.

    `fast_blas` is a path or library name to load before MLX. `dequantise` asks for the int4 base
    as float32: on a CPU the same numbers multiply many times faster so, given a fast BLAS.
    """

    backend: Backend
    fast_blas: str | None
    dequantise: bool
    why: str

    @property
    def description(self) -> str:
        """One line for `doctor` and `/estado`."""
        weights = "float32" if self.dequantise else "int4"
        return f"{self.backend}, {weights} ({self.why})"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a plan is decided from."""

    system: str
    machine: str
    cuda: bool = False
    blas: str | None = None


def decide(machine: Machine) -> ComputePlan:
    """Choose the plan for a machine."""
    arm = machine.machine in {"arm64", "aarch64"}
    if machine.system == "Darwin":
        if arm:
            return ComputePlan(Backend.METAL, None, dequantise=False, why="Apple silicon")
        return ComputePlan(Backend.CPU, None, dequantise=True, why="Intel Mac, Accelerate BLAS")
    if machine.cuda:
        return ComputePlan(Backend.CUDA, None, dequantise=False, why="NVIDIA card")
    if machine.blas is None:
        why = "Linux on ARM" if arm else "no fast BLAS found: slow"
        return ComputePlan(Backend.CPU, None, dequantise=False, why=why)
    why = f"fast BLAS {Path(machine.blas).name}"
    return ComputePlan(Backend.CPU, machine.blas, dequantise=True, why=why)


def detect() -> ComputePlan:
    """Look at this machine, without importing MLX, and choose its plan."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux":
        return decide(Machine(system, machine))
    cuda = has_cuda_build(installed=_is_installed) and has_nvidia_card(Path("/dev"))
    blas = find_blas() if machine == "x86_64" and not cuda else None
    return decide(Machine(system, machine, cuda, blas))


def has_cuda_build(installed: Callable[[str], bool]) -> bool:
    """Whether the CUDA build of MLX is what is installed."""
    return any(installed(name) for name in CUDA_BUILDS)


def has_nvidia_card(devices: Path) -> bool:
    """Whether the NVIDIA driver shows a card; WSL shows it as `dxg`."""
    return any((devices / name).exists() for name in ("nvidia0", "dxg"))


def find_blas() -> str | None:
    """The packaged OpenBLAS, else the system's; the package itself is not imported."""
    spec = importlib.util.find_spec(BLAS_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for library in sorted(Path(folder).glob("libopenblas*.so*")):
            return str(library)
    return SYSTEM_BLAS if ctypes.util.find_library("openblas") else None


def blas_threads(environment: Mapping[str, str], cores: int) -> int | None:
    """Threads to ask OpenBLAS for, None where the administrator has set its own variable."""
    chosen = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")
    return None if any(environment.get(name) for name in chosen) else cores


def prepare(plan: ComputePlan) -> ComputePlan:
    """Load the plan's BLAS for MLX to bind to, and give back the plan as it now holds.

    Harmless when repeated: the first answer stands. Raises RuntimeError when MLX came first: it is
    bound to its own BLAS by then and nothing can change that.
    """
    if plan.fast_blas is None:
        return plan
    if plan.fast_blas in _prepared:
        return _prepared[plan.fast_blas]
    if "mlx.core" in sys.modules:
        raise RuntimeError("engine.plan.prepare must run before mlx is imported")
    try:
        library = _load_global(plan.fast_blas)
    except OSError as fault:
        why = f"{Path(plan.fast_blas).name} does not load: {fault}"
        _prepared[plan.fast_blas] = ComputePlan(plan.backend, None, dequantise=False, why=why)
        return _prepared[plan.fast_blas]
    threads = blas_threads(os.environ, usable_cores())
    if threads is not None and hasattr(library, "openblas_set_num_threads"):
        library.openblas_set_num_threads(threads)
    _prepared[plan.fast_blas] = plan
    return plan


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_prepared: dict[str, ComputePlan] = {}


def _load_global(path: str) -> ctypes.CDLL:
    """Load a BLAS for all to see; where the system has no Fortran runtime, with MLX's own."""
    try:
        return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
    except OSError as fault:
        if FORTRAN not in str(fault) or not _load_bundled_fortran():
            raise
    return ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)


def _load_bundled_fortran() -> bool:
    """Load the Fortran runtime of MLX's wheel under its usual name, without importing MLX.

    The wheel's copy carries a hash in its name, and the loader finds a library that is already
    there only by the name inside it. The shorter name fits into the longer one's place.
    """
    spec = importlib.util.find_spec("mlx")
    for package in (spec.submodule_search_locations if spec else None) or ():
        libraries = Path(package).parent / "mlx_cpu.libs"
        for fortran in libraries.glob("libgfortran-*.so.5*"):
            for helper in libraries.glob("libquadmath-*.so.*"):
                ctypes.CDLL(str(helper))
            handle = os.memfd_create("libgfortran")
            with os.fdopen(handle, "wb") as copy:
                copy.write(renamed_library(fortran.read_bytes(), fortran.name, FORTRAN))
                copy.flush()
                ctypes.CDLL(f"/proc/self/fd/{handle}")
            return True
    return False


def renamed_library(image: bytes, name: str, new: str) -> bytes:
    """A library's bytes with its own name replaced by a shorter one."""
    old = name.encode() + b"\0"
    return image.replace(b"\0" + old, b"\0" + new.encode().ljust(len(old), b"\0"))


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
