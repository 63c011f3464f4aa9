"""mlx_lm.server as a child process: as it comes, or with our BLAS and float32 weights.

`python -m bench.servers …` is the second kind: it loads the BLAS and then runs mlx-lm's own server
with the arguments that follow.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp

from bench.streams import SCRATCH, Stream
from bot.domain import Turn
from engine.plan import detect, prepare

STOCK = ("mlx_lm", "server")
TUNED = ("bench.servers",)
START = 60.0  # seconds until it must listen
ANSWER = 600.0  # seconds until it must have answered
STOP = 10.0


class Server:
    """A running mlx_lm.server."""

    def __init__(self, name: str, session: aiohttp.ClientSession, address: str) -> None:
        self.name = name
        self._session = session
        self._address = address

    async def ask(self, turns: Sequence[Turn], max_tokens: int) -> Stream:
        """Answer one prompt through the chat completions of its HTTP interface."""
        body = {
            "messages": [{"role": turn.role.value, "content": turn.text} for turn in turns],
            "max_tokens": max_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        stream = Stream(time.monotonic())
        async with self._session.post(f"{self._address}/v1/chat/completions", json=body) as reply:
            reply.raise_for_status()
            async for line in reply.content:
                if line.startswith(b"data: {"):
                    _note(stream, json.loads(line.removeprefix(b"data: ")))
        return stream

    async def wait(self, process: asyncio.subprocess.Process) -> None:
        """Wait until it listens."""
        deadline = time.monotonic() + START
        while True:
            try:
                async with self._session.get(f"{self._address}/health"):
                    return
            except aiohttp.ClientConnectionError:
                if process.returncode is not None or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.2)


@asynccontextmanager
async def server(name: str, module: Sequence[str], model: Path) -> AsyncIterator[Server]:
    """Start a server with nothing set but its model, and stop it afterwards."""
    SCRATCH.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    command = [sys.executable, "-m", *module, "--model", str(model), "--port", str(port)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    async with AsyncExitStack() as stack:
        log = stack.enter_context((SCRATCH / f"server-{module[0]}.log").open("wb"))
        process = await asyncio.create_subprocess_exec(
            *command, "--host", "127.0.0.1", stdout=log, stderr=log, env=environment
        )
        stack.push_async_callback(_stop, process)
        # One connection for each request: the server speaks HTTP/1.0.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        limit = aiohttp.ClientTimeout(total=ANSWER)
        session = aiohttp.ClientSession(connector=connector, timeout=limit)
        await stack.enter_async_context(session)
        running = Server(name, session, f"http://127.0.0.1:{port}")
        await running.wait(process)
        yield running


def float32_folder(source: Path) -> Path:
    """The model with the same values as plain float32, made once; needs the BLAS loaded."""
    target = SCRATCH / f"{source.name}-float32"
    if target.is_dir():
        return target
    from mlx_lm import utils

    from engine import models

    loaded = models.load(source, prepare(detect()))
    draft = target.with_suffix(".draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    utils.save_model(draft, loaded.model)
    config = {key: value for key, value in loaded.config.items() if "quantization" not in key}
    utils.save_config(config, draft / "config.json")
    for file in (*source.glob("*token*"), *source.glob("*.jinja"), *source.glob("generation_*")):
        shutil.copy(file, draft)
    return draft.rename(target)


def _note(stream: Stream, data: dict[str, object]) -> None:
    """One event of the HTTP stream."""
    match data:
        case {"choices": [{"delta": {"content": str(piece)}}]} if piece:
            stream.add(piece)
        case {"usage": {"prompt_tokens": int(tokens), **details}}:
            stream.prompt_tokens = tokens
            match details:
                case {"prompt_tokens_details": {"cached_tokens": int(known)}}:
                    stream.cached_tokens = known


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End it; its generation thread ignores SIGINT and SIGTERM while it computes."""
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP)
        except TimeoutError:
            process.kill()
            await process.wait()


def main() -> None:
    """Run mlx-lm's server with our BLAS."""
    prepare(detect())
    from mlx_lm import server as stock

    stock.main()


if __name__ == "__main__":
    main()
