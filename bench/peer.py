"""Decoding one stream on the CPU, beside llama.cpp where it happens to be installed."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.report import Figure, figure, ratio
from bench.streams import Options, our_engine, questions
from config.settings import EngineSettings
from engine import embedded

GROUP = "Decoding one stream, beside llama.cpp"
TOKENS = 64
PATIENCE = 300.0
# The package's own API, in a process of its own: prints tokens a second after the first token.
PACKAGE = """
import sys, time
from llama_cpp import Llama
model = Llama(sys.argv[1], n_threads=int(sys.argv[2]), n_ctx=1024, verbose=False)
prompt = model.tokenize(b"Once upon a time a lion lived by the sea.")
times = []
for token in model.generate(prompt, temp=0.0):
    times.append(time.monotonic())
    if len(times) > int(sys.argv[3]):
        break
print((len(times) - 1) / (times[-1] - times[0]))
"""


async def decode(options: Options) -> list[Figure]:
    """Tokens a second after the first one, ours and llama.cpp's in turn, same int4 values."""
    ours_rates: list[float] = []
    their_rates: list[float] = []
    async with our_engine(None, EngineSettings()) as ours:
        for _ in range(2 if options.quick else 5):
            stream = await ours.ask(next(iter(questions(1))), TOKENS)
            ours_rates.append(len(stream.gaps) / sum(stream.gaps))
            theirs = await asyncio.to_thread(llama_cpp, embedded.find_gguf())
            if theirs is not None:
                their_rates.append(theirs)
    figures = [figure(GROUP, "ours", "tokens/s", ours_rates)]
    if not their_rates:
        missing = "not here: neither llama-bench nor the package llama_cpp is installed"
        return [*figures, Figure(GROUP, "llama.cpp", note=missing)]
    pairs = list(zip(ours_rates, their_rates, strict=True))
    return [
        *figures,
        figure(GROUP, "llama.cpp", "tokens/s", their_rates),
        ratio(GROUP, "ours / llama.cpp", pairs),
    ]


def llama_cpp(gguf: Path) -> float | None:
    """Tokens a second of llama.cpp on the same file and as many threads; None without it."""
    threads = str(os.cpu_count() or 1)
    if program := shutil.which("llama-bench"):
        size = ["-p", "0", "-n", str(TOKENS), "-r", "1", "-t", threads]
        return read_llama_bench(_run([program, "-m", str(gguf), *size, "-o", "json"]))
    if importlib.util.find_spec("llama_cpp"):
        return float(_run([sys.executable, "-c", PACKAGE, str(gguf), threads, str(TOKENS)]))
    return None


def read_llama_bench(output: str) -> float:
    """Tokens a second out of llama-bench's JSON."""
    return float(json.loads(output)[0]["avg_ts"])


def _run(command: list[str]) -> str:
    with tempfile.TemporaryFile("w+") as errors:
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, check=True, timeout=PATIENCE
        ).stdout
