"""A whole comparison with the embedded model: interrupted, gone on with, and what it measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from config.texts import text
from engine import embedded
from engine.plan import detect
from training.compare.values import FILE, Comparison, Key

pytestmark = pytest.mark.model

ROOT = Path(__file__).resolve().parent.parent
LONG = 600  # seconds, on a machine that is not quiet
COMMAND = """
import signal
import sys
from pathlib import Path
from rich.console import Console
from config.settings import load_settings
from farense_bot.comparing import compare_now

signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a person's terminal
settings = load_settings(Path(sys.argv[1]), engine={"model": "embedded"})
sys.exit(compare_now(
    settings, quick=True, dequantise=False, original=True, data=None, out=None,
    repetitions=1, rows=16, console=Console(width=300),
))
"""


@contextmanager
def started(home: Path) -> Iterator[subprocess.Popen[str]]:
    """The command; nothing of it is left behind, however the test ends."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FARENSE_")}
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(home)],
        cwd=home.parent, env={**kept, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()  # its children end with it
        process.wait()


def wait_for(process: subprocess.Popen[str], pattern: str, home: Path) -> Path:
    """Until a file is there that matches."""
    until = time.monotonic() + LONG
    while not (found := list(home.glob(pattern))):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.2)
    return found[0]


@pytest.mark.timeout(3 * LONG)
def test_a_comparison_is_interrupted_and_ends_with_every_figure(tmp_path, embedded_model):
    home = tmp_path / "home"
    (home / "models").mkdir(parents=True)
    (home / "models" / embedded.NAME).symlink_to(embedded_model)

    with started(home) as first:
        wait_for(first, "comparisons/*/lora-recommended-serve-1/pid.txt", home)
        children = psutil.Process(first.pid).children()
        first.send_signal(signal.SIGINT)
        said, _ = first.communicate(timeout=60)
    assert first.returncode == 130
    assert text("compare.stopped") in said
    assert not [child for child in children if child.is_running()]
    done = next(home.glob("comparisons/*/lora-recommended-train-1/found.json"))
    before = done.stat().st_mtime_ns

    with started(home) as second:
        said, _ = second.communicate(timeout=LONG)
    assert second.returncode == 0, said
    assert done.stat().st_mtime_ns == before
    (place,) = home.glob("comparisons/*")
    assert text("compare.resumed", path=place) in said
    assert (place / "report.html").is_file()
    check(Comparison.model_validate_json((place / FILE).read_bytes()))


def check(found: Comparison) -> None:
    """Everything is there, and the figures are of what they say."""
    assert not [side.left_out for side in found.sides if side.left_out]
    energy = {Key.TRAIN_ENERGY, Key.SERVE_ENERGY}
    for side in found.sides:
        assert set(Key) - energy <= side.figures.keys()
        assert side.median(Key.LOSS_AFTER) < side.median(Key.LOSS_BEFORE)
        assert sum(asked for _, asked in side.suites.values()) == 18
        assert len(side.answers) == 8
        if detect().dequantise:
            assert side.base.memory == "float32"
            weights = 4 * side.base.parameters
            assert side.median(Key.TRAIN_PEAK_MLX) > weights  # they are counted in
            assert side.median(Key.SERVE_PEAK_MLX) > weights
    lora, qlora = found.side("lora"), found.side("qlora")
    assert (lora.base.made, qlora.base.made) == ("dequantised", "given")
    assert lora.median(Key.BASE_BYTES) > 2 * qlora.median(Key.BASE_BYTES)
    assert lora.median(Key.ADAPTER_BYTES) < qlora.median(Key.ADAPTER_BYTES)  # q, v and q, k, v
    # The 16-bit base holds the numbers of the int4 one.
    difference = lora.median(Key.LOSS_BEFORE) - qlora.median(Key.LOSS_BEFORE)
    assert abs(difference) < 0.01
    same = {side.name: side for side in found.sides if side.mode == "same"}
    assert same["lora-same"].recipe == same["qlora-same"].recipe
    assert len({side.tokens for side in found.sides}) == 1
    assert {side.steps for side in found.sides} == {8}
    assert {one.mode for one in found.agreements} == {"recommended", "same"}
