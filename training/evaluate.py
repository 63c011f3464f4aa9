"""The work of an `EvaluateJob`: every revision answers every suite, on one base loaded once."""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot.errors import FarenseError
from bot.prompts import Persona
from engine import lora, models, plan
from training import evaluation, metrics, suites
from training.child import told
from training.evaluation import Evaluation, Known, Reply, RevisionResult, Speed, SuiteResult
from training.examples import Example, Kind
from training.job import EvaluateJob, Progress, emit, read_job
from training.run import NO_ROOM
from training.suites import Case, Suite

if TYPE_CHECKING:  # imports MLX, which must wait for the plan's BLAS
    from training.asking import Interviewer, Spoken

PROBES, ROUNDS = 4, 3  # answers at once and times, when the speed is measured
OUT_OF_MEMORY = ("memory", "malloc", "alloc")


class DatasetError(Exception):
    """A suite, the lessons or the held-out set cannot be read."""


def evaluate(folder: Path) -> int:
    """Do the job in a folder; what came of it is the last event, and 0 when it went well."""
    return told(lambda: evaluation.write(folder, _Evaluator(_job(folder)).run()), reason_of)


def reason_of(fault: Exception) -> Any:
    """The name under which `Ended` tells a fault."""
    if isinstance(fault, DatasetError):
        return "dataset"
    if isinstance(fault, FloatingPointError):
        return "nan"
    if isinstance(fault, OSError) and fault.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "disk"
    if (
        isinstance(fault, MemoryError)
        or getattr(fault, "key", "") == NO_ROOM
        or (isinstance(fault, RuntimeError) and any(w in str(fault).lower() for w in OUT_OF_MEMORY))
    ):
        return "memory"
    return "model" if isinstance(fault, FarenseError | ValueError | OSError) else "fault"


class _Evaluator:
    """One run of a job."""

    def __init__(self, job: EvaluateJob) -> None:
        self._job = job
        self._persona = Persona.load(job.persona)
        self._suites = _read(job)
        self._known = Known(job.known)
        self._base: models.LoadedModel | None = None

    def run(self) -> Evaluation:
        began = time.perf_counter()
        emit(Progress(stage="load", step=0, steps=1))
        compute = plan.prepare(plan.detect())
        base = self._base = models.load(self._job.folder, compute, self._job.model)
        digests = {name: _digest(base, path) for name, path in self._job.revisions.items()}
        people = self._interviewers(base, digests)
        results = {
            digest: self._results(digest, interviewer) for digest, interviewer in people.items()
        }
        speeds = self._speeds(people)
        return Evaluation(
            model=self._job.model,
            base=base.fingerprint,
            persona=self._persona.version,
            seconds=time.perf_counter() - began,
            revisions={
                name: RevisionResult(digest=digest, suites=results[digest], speed=speeds[digest])
                for name, digest in digests.items()
            },
        )

    def _interviewers(
        self, base: models.LoadedModel, digests: Mapping[str, str]
    ) -> dict[str, Interviewer]:
        """One for each model: names may stand for the same one."""
        from training.asking import Interviewer

        people: dict[str, Interviewer] = {}
        for name, path in self._job.revisions.items():
            if digests[name] not in people:
                model = lora.with_adapter(base, *lora.read_adapter(path)) if path else base.model
                people[digests[name]] = Interviewer(
                    base, model, self._persona, self._job.context, digests[name]
                )
        return people

    def _results(self, digest: str, interviewer: Interviewer) -> dict[str, SuiteResult]:
        """What is known of a model, and what is not asked now."""
        keys = {suite.name: self._key(digest, suite.version) for suite in self._suites}
        found = {name: result for name, key in keys.items() if (result := self._known.get(key))}
        missing = [suite for suite in self._suites if suite.name not in found]
        if missing:
            found |= self._ask(interviewer, missing)
            for suite in missing:
                self._known.put(keys[suite.name], found[suite.name])
            self._known.save()
        return {suite.name: found[suite.name] for suite in self._suites}

    def _ask(self, interviewer: Interviewer, missing: list[Suite]) -> dict[str, SuiteResult]:
        from training.asking import Question

        named = {
            f"{suite.name}:{case.id}": (suite, case) for suite in missing for case in suite.cases
        }
        asked = [
            Question(name, case.script, suite.max_tokens)
            for name, (suite, case) in named.items()
            if suite.name != suites.HELD_OUT
        ]
        replies: dict[str, Reply] = {}
        for name, spoken in interviewer.ask(asked):
            replies[name] = judge(*named[name], spoken)
            emit(Progress(stage="evaluate", step=len(replies), steps=len(asked)))
        losses = interviewer.losses(list(_gold(named)))
        return {
            suite.name: SuiteResult(
                version=suite.version,
                replies=tuple(
                    replies[name]
                    for name, (owner, _) in named.items()
                    if owner is suite and name in replies
                ),
                losses={
                    case.id: losses[name]
                    for name, (owner, case) in named.items()
                    if owner is suite and name in losses
                },
            )
            for suite in missing
        }

    def _speeds(self, people: Mapping[str, Interviewer]) -> dict[str, Speed]:
        """The best of a few rounds: whatever else runs here only makes it slower."""
        from training.asking import Question

        probes = [
            Question(case.id, case.script, suite.max_tokens)
            for suite in self._suites
            if suite.name == "general"
            for case in suite.cases[:PROBES]
        ]
        rounds = [
            {digest: interviewer.speed(probes) for digest, interviewer in people.items()}
            for _ in range(ROUNDS)
        ]
        return {
            digest: Speed(
                first_token=min(one[digest].first_token for one in rounds),
                tokens_per_second=max(one[digest].tokens_per_second for one in rounds),
            )
            for digest in people
        }

    def _key(self, digest: str, version: str) -> str:
        parts = (digest, version, self._persona.version, self._job.context, evaluation.VERSION)
        return ":".join(str(part) for part in parts)


def judge(suite: Suite, case: Case, spoken: Spoken) -> Reply:
    """What an answer is worth."""
    text, question = spoken.text, case.script[-1].text
    passed, score = metrics.check(text, case.checks)
    if case.answer is not None and not suite.exact:
        score = metrics.match(text, case.answer, question)
        passed = score == 1.0
    return Reply(
        id=case.id,
        question=question,
        text=text,
        passed=passed,
        score=score,
        chrf=None if case.answer is None else metrics.chrf(text, case.answer),
        tokens=spoken.tokens,
        seconds=spoken.total,
    )


def _job(folder: Path) -> EvaluateJob:
    job = read_job(folder)
    if not isinstance(job, EvaluateJob):
        raise ValueError("this job is no evaluation")  # noqa: TRY004 (a wrong file, not a wrong call)
    return job


def _read(job: EvaluateJob) -> list[Suite]:
    """All suites of a job."""
    try:
        read = suites.load()
        given = {
            suites.REGRESSIONS: job.regressions,
            suites.LESSONS: job.lessons,
            suites.HELD_OUT: job.held_out,
        }
        read += [suites.taught(name, path) for name, path in given.items() if path]
        if job.limit:
            read = [suites.part(suite, job.limit) for suite in read]
    except (OSError, ValueError) as fault:
        raise DatasetError(str(fault)) from fault
    return read


def _gold(named: Mapping[str, tuple[Suite, Case]]) -> Iterable[Example]:
    """The right answers among cases."""
    for name, (_, case) in named.items():
        if case.answer is not None:
            yield Example(name, Kind.FACT, case.script, case.answer)


def _digest(base: models.LoadedModel, adapter: Path | None) -> str:
    """What decides the answers: base, weights and their scale."""
    seal = hashlib.sha256(base.fingerprint.encode())
    if adapter is not None:
        for name in (lora.CONFIG, lora.WEIGHTS):
            seal.update((adapter / name).read_bytes())
    return seal.hexdigest()[:16]
