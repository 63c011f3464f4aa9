"""One streamed answer, as its reader sees it, and who can give one."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from bot.domain import Delta, Done, Request, Role, Sampling, Turn, Usage
from bot.prompts import Persona
from config.settings import EngineSettings
from engine.mlx_engine import MLXEngine
from engine.plan import detect, prepare

CACHE = Path(__file__).resolve().parent.parent / ".cache"
MODELS = CACHE / "models"
SCRATCH = CACHE / "bench"
# English, because the embedded model is; each makes it write on and on.
STEMS = (
    "Write a long story about a lion who lives by the sea in Faro.",
    "Explain step by step how a football team trains during one week.",
    "Describe the stadium on the day of the match, from morning to night.",
    "Tell me everything about the rules of football.",
    "Write a letter to a friend about a journey through the Algarve.",
    "Describe how bread is made, from the field to the table.",
    "Write a long conversation between a goalkeeper and a striker.",
    "Explain how the sea, the wind and the moon make the tides.",
)

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line decides."""

    quick: bool = False
    model: str | None = None


@dataclass(slots=True)
class Stream:
    """What a client got, in seconds of the monotonic clock."""

    sent: float
    times: list[float] = field(default_factory=list)  # of each piece of text
    text: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0

    def add(self, piece: str) -> None:
        """Note a piece of text."""
        self.times.append(time.monotonic())
        self.text += piece

    @property
    def first(self) -> float:
        """Seconds to the first text."""
        return self.times[0] - self.sent

    @property
    def gaps(self) -> list[float]:
        """Seconds between one piece and the next."""
        return [after - before for before, after in itertools.pairwise(self.times)]


class Contestant(Protocol):
    """Somebody who answers greedily."""

    name: str

    async def ask(self, turns: Sequence[Turn], max_tokens: int) -> Stream:
        """Answer one prompt of this many tokens at most."""
        ...


class Ours:
    """Our engine through its own port."""

    name = "ours"

    def __init__(self, engine: MLXEngine, folder: Path, persona: Persona) -> None:
        self.engine = engine
        self.folder = folder
        self._pinned = len(engine.encode([persona.turn]))

    async def ask(self, turns: Sequence[Turn], max_tokens: int) -> Stream:
        """Answer one prompt as a conversation of its own."""
        return await self.read(self.request(turns, max_tokens, pinned=self._pinned))

    def request(
        self,
        turns: Sequence[Turn],
        max_tokens: int,
        *,
        pinned: int = 0,
        conversation: str | None = None,
    ) -> Request:
        """A greedy request; nothing is found in the cache for a conversation never heard of."""
        name = f"bench-{next(_numbers)}"
        how = Sampling(temperature=0, top_p=1, max_tokens=max_tokens)
        tokens = self.engine.encode(turns)
        return Request(name, name, conversation or name, tokens, pinned, how)

    async def read(self, request: Request, into: Stream | None = None) -> Stream:
        """Stream one request to its end."""
        stream = into or Stream(time.monotonic())
        async for event in self.engine.generate(request):
            if isinstance(event, Delta):
                stream.add(event.text)
            elif isinstance(event, Done):
                note_usage(stream, event.usage)
        return stream


def note_usage(stream: Stream, usage: Usage) -> None:
    """Take over how long the prompt was and how much of it was known."""
    stream.prompt_tokens, stream.cached_tokens = usage.prompt_tokens, usage.cached_tokens


def ensure_model(model: str | None) -> Path:
    """The model's folder, brought here if need be, with the plan's BLAS loaded first."""
    prepare(detect())
    from engine import models

    return models.install(models.resolve(model, MODELS), MODELS, print)


@asynccontextmanager
async def our_engine(model: str | None, settings: EngineSettings) -> AsyncIterator[Ours]:
    """The real engine with a loaded model and the persona already read."""
    folder = await asyncio.to_thread(ensure_model, model)
    async with MLXEngine(settings, folder, prepare(detect())) as engine:
        yield Ours(engine, folder, Persona.load("farense"))


def questions(count: int) -> Iterable[list[Turn]]:
    """Prompts that share the persona and nothing after it, also not with earlier ones."""
    persona = Persona.load("farense").turn
    for stem in itertools.islice(itertools.cycle(STEMS), count):
        yield [persona, Turn(Role.USER, f"Message {next(_numbers)}. {stem}")]


class Counter:
    """Counts the tokens of texts with the model's own tokenizer: the same for everybody."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
