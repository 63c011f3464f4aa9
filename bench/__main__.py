"""`python -m bench [--quick] [--json FILE] [--write FILE] [names…]`: measure and report.

Each group runs in a process of its own, so that none finds the memory, threads or caches of another
one. The figures are shown as a table, and written as JSON or as docs/performance.md on request.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from bench import beside, cost, latency, memory, peer, speed, swap, training
from bench.machine import facts
from bench.report import Figure, Report, from_json, page, table, to_json
from bench.streams import SCRATCH, Options

Measure = Callable[[Options], Coroutine[Any, Any, list[Figure]]]
GROUPS: dict[str, Measure] = {
    "stock": speed.against_stock,
    "tuned": speed.against_tuned,
    "turn": latency.second_turn,
    "stall": latency.long_prompt,
    "cpu": cost.cpu,
    "crowd": cost.crowd,
    "peer": peer.decode,
    "memory": memory.engine_memory,
    "training": training.training,
    "swap": swap.swap,
    "beside": beside.beside,
}
PATIENCE = 900.0  # seconds that a group may take


def main() -> int:
    """Measure what was asked for; 1 when a target does not hold or a group failed."""
    given = _arguments()
    options = Options(given.quick, given.model)
    if given.one:
        figures = asyncio.run(GROUPS[given.one](options))
        given.json.write_text(to_json(Report({}, figures, {})), encoding="utf-8")
        return 0
    report = Report(facts(given.model, quick=given.quick), [], {})
    failed = [name for name in given.names or GROUPS if not _measure(name, given, report)]
    Console().print(table(report))
    if given.json:
        given.json.write_text(to_json(report), encoding="utf-8")
    if given.write:
        given.write.write_text(page(report), encoding="utf-8")
    if failed:
        print(f"failed: {', '.join(failed)}; their logs are in {SCRATCH}")
    return int(bool(failed) or any(one.holds is False for one in report.figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("bench", description="Measure speed, memory and cost.")
    parser.add_argument("names", nargs="*", choices=[*GROUPS, []], help="groups; all by default")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--model", help="as FARENSE_ENGINE__MODEL; the embedded one by default")
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--write", type=Path, help="write the page there")
    parser.add_argument("--one", choices=GROUPS, help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure(name: str, given: argparse.Namespace, report: Report) -> bool:
    """Run one group in a child and add what it found."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    print(f"{name} …", flush=True)
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, (SCRATCH / f"{name}.log").open("wb") as log:
        result = Path(folder) / "figures.json"
        command = [sys.executable, "-m", "bench", "--one", name, "--json", str(result)]
        command += ["--quick"] * given.quick + (["--model", given.model] if given.model else [])
        if not _run(command, log):
            return False
        figures = from_json(result.read_text(encoding="utf-8")).figures
    report.figures.extend(figures)
    for group in dict.fromkeys(one.group for one in figures):
        report.load[group] = [report.load.get(group, [before])[0], os.getloadavg()[0]]
    return True


def _run(command: list[str], log: IO[bytes]) -> bool:
    """Run a child to its end or for as long as it may; nothing that it started stays behind."""
    child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        return child.wait(PATIENCE) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


if __name__ == "__main__":
    sys.exit(main())
