"""What a comparison trains on and is tested with: the club's facts, or a folder of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bot.errors import ConfigError, ModelError
from bot.prompts import Persona
from engine import models, weights
from engine.plan import detect, prepare
from training import dataset, suites
from training.batches import Row, Writer
from training.examples import Example, read_lines, to_lines
from training.facts import load_facts, load_replay
from training.suites import spread

TRAIN, HELD_OUT = "train.jsonl", "held_out.jsonl"
LEAST, LEAST_HELD_OUT = 16, 4  # texts, below which figures say nothing
QUICK, QUICK_HELD_OUT = 24, 12
NO_FAN = datetime(2026, 1, 1, tzinfo=UTC)  # ages of accounts do not matter where there are none


@dataclass(frozen=True, slots=True)
class Data:
    """The texts of both methods."""

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]

    @property
    def digest(self) -> str:
        """Names them."""
        parts = (to_lines(self.train), to_lines(self.held_out))
        return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]

    def part(self, train: int, held_out: int) -> Data:
        """At most so many of them, evenly spread."""
        return Data(spread(self.train, train), spread(self.held_out, held_out))


def club() -> Data:
    """What a night would train on that nobody taught anything."""
    made = dataset.build(
        (),
        (),
        (),
        facts=load_facts(),
        replay=load_replay(),
        evaluation=suites.asked(suites.load()),
        now=NO_FAN,
    )
    return Data(made.train, made.held_out)


def own(folder: Path) -> Data:
    """A dataset of one's own. Raises ConfigError where it cannot be read or is too small."""
    train, held_out = (_read(folder / name) for name in (TRAIN, HELD_OUT))
    if len(train) < LEAST or len(held_out) < LEAST_HELD_OUT:
        raise ConfigError(
            "error.compare_data_small",
            path=folder,
            train=len(train),
            held_out=len(held_out),
            least=LEAST,
            least_held_out=LEAST_HELD_OUT,
        )
    return Data(train, held_out)


def fitting(
    data: Data, folder: Path, *, persona: str, context: int, lengths: Collection[int]
) -> Data:
    """What every side reads whole, where they differ in how long a text may be.

    A text that only one of them learns would make two datasets. Raises ModelError, and ConfigError
    where too little is left.
    """
    if len(set(lengths)) < 2:  # noqa: PLR2004 (nothing to tell apart)
        return data
    tokenizer = _tokenizer(folder)
    writers = [
        Writer.of(tokenizer, Persona.load(persona), context, length)
        for length in (min(lengths), max(lengths))
    ]

    def whole(example: Example) -> bool:
        short, long = (writer.row(example) for writer in writers)
        return short == long and isinstance(short, Row)

    left = Data(tuple(filter(whole, data.train)), tuple(filter(whole, data.held_out)))
    if len(left.train) < LEAST or len(left.held_out) < LEAST_HELD_OUT:
        raise ConfigError("error.compare_data_long", n=len(left.train), length=min(lengths))
    return left


def _tokenizer(folder: Path) -> Any:
    prepare(detect())
    config = weights.read_config(folder)
    try:
        return models.mlx_lm_utils().load_tokenizer(
            folder, {"trust_remote_code": False}, eos_token_ids=config.get("eos_token_id")
        )
    except Exception as fault:  # anything may come out of a foreign folder
        detail = (str(fault).strip() or repr(fault)).splitlines()[0]
        raise ModelError("error.model_broken", path=folder, detail=detail) from fault


def _read(path: Path) -> tuple[Example, ...]:
    try:
        return tuple(read_lines(path, Example))
    except (OSError, ValueError) as fault:
        detail = fault.strerror if isinstance(fault, OSError) else str(fault).splitlines()[0]
        raise ConfigError("error.compare_data", path=path, detail=detail) from fault
