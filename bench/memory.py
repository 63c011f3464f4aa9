"""What the real engine takes: the model alone, and while eight answers are written."""

from __future__ import annotations

import asyncio
import resource
import sys

import psutil

from bench.report import Figure, figure
from bench.streams import Options, our_engine, questions
from config.settings import EngineSettings

GROUP = "Memory of the engine"
MANY = 8
MIB = 2**20


async def engine_memory(options: Options) -> list[Figure]:
    """MLX's own count and the process's, in a process that does nothing else."""
    async with our_engine(options.model, EngineSettings()) as ours:
        import mlx.core as mx

        loaded = [mx.get_active_memory(), mx.get_peak_memory(), psutil.Process().memory_info().rss]
        mx.reset_peak_memory()
        prompts = questions(MANY)
        await asyncio.gather(*(ours.ask(turns, 64) for turns in prompts))
        cache = ours.engine.status.cache_bytes
        busy = [mx.get_peak_memory(), _process_peak(), cache]
    names = (
        *("MLX, model loaded", "MLX, greatest while loading", "process, model loaded"),
        *("MLX, greatest with 8 streams", "process, greatest with 8 streams", "KV caches kept"),
    )
    return [
        figure(GROUP, name, "MB", [value / MIB])
        for name, value in zip(names, [*loaded, *busy], strict=True)
    ]


def _process_peak() -> int:
    """The most memory that this process ever had, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
