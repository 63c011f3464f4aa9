"""What an evaluation found: values, their file, and the store of what need not be asked again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter

from training import files
from training.job import Value

FILE = "evaluation.json"
VERSION: Literal[1] = 1
KNOWN_LIMIT = 128  # results kept: nine of each revision


class Reply(Value):
    """One answer and what it is worth. `seconds` count from its place in the batch to its end."""

    id: str
    question: str
    text: str
    passed: bool
    score: float
    chrf: float | None = None
    tokens: int
    seconds: float


class SuiteResult(Value):
    """A suite's answers, and the losses of right answers in nats a token, by case."""

    version: str
    replies: tuple[Reply, ...] = ()
    losses: dict[str, float] = Field(default_factory=dict)


class Speed(Value):
    """Of a few answers at once, all revisions in turn on the same machine."""

    first_token: float
    tokens_per_second: float


class RevisionResult(Value):
    """What one revision does."""

    digest: str
    suites: dict[str, SuiteResult]
    speed: Speed


class Evaluation(Value):
    """Revisions side by side, by the name that the job gave them."""

    version: Literal[1] = VERSION
    model: str
    base: str
    persona: str
    seconds: float
    revisions: dict[str, RevisionResult]


def write(folder: Path, evaluation: Evaluation) -> None:
    """Write `evaluation.json` in one go."""
    files.write(folder / FILE, evaluation.model_dump_json(indent=1).encode())


def read(folder: Path) -> Evaluation:
    """What `write` wrote. Raises OSError or ValueError."""
    return Evaluation.model_validate_json((folder / FILE).read_bytes())


class Known:
    """Results by what they depend on; the oldest go when there are too many."""

    _ADAPTER = TypeAdapter(dict[str, SuiteResult])

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._results = self._read(path)

    def get(self, key: str) -> SuiteResult | None:
        """A result that was found before."""
        return self._results.get(key)

    def put(self, key: str, result: SuiteResult) -> None:
        """Remember a result as the newest."""
        self._results.pop(key, None)
        self._results[key] = result

    def save(self) -> None:
        """Write everything down, if there is a place for it."""
        if self._path is not None:
            newest = dict(list(self._results.items())[-KNOWN_LIMIT:])
            files.write(self._path, self._ADAPTER.dump_json(newest))

    def _read(self, path: Path | None) -> dict[str, SuiteResult]:
        """What is there; a damaged file only means that everything is asked again."""
        try:
            return self._ADAPTER.validate_json(path.read_bytes()) if path else {}
        except (OSError, ValueError):
            return {}
