"""The compute plan: what each kind of machine gets, and that the BLAS comes before MLX."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import plan
from engine.plan import Backend, ComputePlan, Machine

BLAS = "/lib/libopenblas.so.0"
ON_LINUX_CPU = pytest.mark.skipif(
    plan.detect().fast_blas is None, reason="only where MLX computes on an x86-64 CPU"
)


@pytest.mark.parametrize(
    ("machine", "backend", "blas", "dequantise"),
    [
        (Machine("Darwin", "arm64"), Backend.METAL, None, False),
        (Machine("Darwin", "x86_64"), Backend.CPU, None, True),
        (Machine("Linux", "x86_64", cuda=True, blas=BLAS), Backend.CUDA, None, False),
        (Machine("Linux", "aarch64", cuda=True), Backend.CUDA, None, False),
        (Machine("Linux", "x86_64", blas=BLAS), Backend.CPU, BLAS, True),
        (Machine("Linux", "x86_64"), Backend.CPU, None, False),
        (Machine("Linux", "aarch64"), Backend.CPU, None, False),
    ],
)
def test_each_machine_gets_its_plan(machine, backend, blas, dequantise):
    chosen = plan.decide(machine)

    assert (chosen.backend, chosen.fast_blas, chosen.dequantise) == (backend, blas, dequantise)
    assert chosen.why in chosen.description


def test_a_cpu_without_a_fast_blas_is_told_that_it_is_slow():
    assert "slow" in plan.decide(Machine("Linux", "x86_64")).description


@pytest.mark.parametrize("system", ["Darwin", "Linux"])
def test_detect_asks_the_system(system, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: system)
    monkeypatch.setattr("platform.machine", lambda: "arm64" if system == "Darwin" else "x86_64")
    monkeypatch.setattr(plan, "has_cuda_build", lambda installed: True)
    monkeypatch.setattr(plan, "has_nvidia_card", lambda devices: True)

    assert plan.detect().backend is (Backend.METAL if system == "Darwin" else Backend.CUDA)


@pytest.mark.parametrize(
    ("installed", "found"),
    [({"mlx-cpu"}, False), ({"mlx-cuda-12"}, True), ({"mlx-cuda-13"}, True), (set(), False)],
)
def test_the_cuda_build_is_known_by_its_package(installed, found):
    assert plan.has_cuda_build(installed.__contains__) is found


@pytest.mark.parametrize(("device", "found"), [("nvidia0", True), ("dxg", True), ("tty", False)])
def test_a_card_is_known_by_its_device(device, found, tmp_path):
    (tmp_path / device).touch()

    assert plan.has_nvidia_card(tmp_path) is found


def test_without_the_package_the_system_blas_is_taken(monkeypatch):
    monkeypatch.setattr(plan, "BLAS_PACKAGE", "no_such_package")
    monkeypatch.setattr("ctypes.util.find_library", lambda name: f"lib{name}.so.0")
    assert plan.find_blas() == plan.SYSTEM_BLAS

    monkeypatch.setattr("ctypes.util.find_library", lambda name: None)
    assert plan.find_blas() is None


@pytest.mark.parametrize("name", ["OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS"])
def test_the_admins_number_of_threads_wins(name):
    assert plan.blas_threads({}, cores=6) == 6
    assert plan.blas_threads({name: ""}, cores=6) == 6
    assert plan.blas_threads({name: "2"}, cores=6) is None


def test_a_blas_that_does_not_load_leaves_a_slow_plan_that_says_why(monkeypatch, tmp_path):
    broken = tmp_path / "libopenblas.so"
    broken.write_bytes(b"not a library")
    monkeypatch.delitem(sys.modules, "mlx.core", raising=False)

    wanted = ComputePlan(Backend.CPU, str(broken), dequantise=True, why="")
    held = plan.prepare(wanted)
    monkeypatch.setitem(sys.modules, "mlx.core", object())

    assert plan.prepare(wanted) is held
    assert (held.fast_blas, held.dequantise) == (None, False)
    assert "libopenblas.so does not load" in held.why


def test_too_late_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mlx.core", object())

    with pytest.raises(RuntimeError, match="before mlx"):
        plan.prepare(ComputePlan(Backend.CPU, str(tmp_path / "x.so"), dequantise=True, why=""))


def test_a_plan_without_a_blas_needs_no_preparation(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx.core", object())
    metal = plan.decide(Machine("Darwin", "arm64"))

    assert plan.prepare(metal) is metal


def test_a_library_is_renamed_in_place():
    image = b"\0abc\0libfortran-1234.so.5\0xyz libfortran-1234.so.5\0"

    renamed = plan.renamed_library(image, "libfortran-1234.so.5", "libfortran.so.5")

    assert renamed == b"\0abc\0libfortran.so.5\0\0\0\0\0\0xyz libfortran-1234.so.5\0"


def _python(code: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).resolve().parent.parent,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


PREPARED = """
import ctypes, sys
from engine import plan
held = plan.prepare(plan.detect())
assert plan.prepare(held) is held
assert "mlx.core" not in sys.modules and "ngsolve_openblas" not in sys.modules
library = ctypes.CDLL(held.fast_blas)
print(library.openblas_get_num_threads(), held.dequantise)
"""


@ON_LINUX_CPU
def test_the_blas_is_loaded_without_mlx_and_uses_all_cores():
    assert _python(PREPARED, OPENBLAS_NUM_THREADS="") == f"{plan.usable_cores()} True"
    assert _python(PREPARED, OPENBLAS_NUM_THREADS="1") == "1 True"


@ON_LINUX_CPU
def test_mlx_binds_to_the_blas_that_was_loaded_first():
    used = _python(
        PREPARED
        + """
import mlx.core
class Info(ctypes.Structure):
    _fields_ = [("file", ctypes.c_char_p), ("base", ctypes.c_void_p),
                ("name", ctypes.c_char_p), ("address", ctypes.c_void_p)]
info = Info()
process = ctypes.CDLL(None)
process.dladdr(ctypes.cast(process.cblas_sgemm, ctypes.c_void_p), ctypes.byref(info))
print(info.file.decode() == held.fast_blas)
"""
    )

    assert used.splitlines()[-1] == "True"
