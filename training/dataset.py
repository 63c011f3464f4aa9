"""A night's dataset: a pure function of what fans gave, what is known, and the limits.

Same rows in any order, same bytes. What enters:

* facts, also against a fan who insists, and everyday talk of the project, always; a fact that an
  admin's approval contradicts goes;
* lessons that an admin approved, or that trusted fans agree on (`training.lessons`);
* preferences, the majority of votes on an answer by trust. A thumb never makes an answer to learn.

Limits. An admin's approval overrides the age of the account and the share of the set, because a
person has read the item; it overrides neither the lessons of a night (the rest waits for the next
ones), nor quarantine (an approval tapped two hundred times is what a flood hopes for), nor the
removal of duplicates and personal data. The share of a fan is counted against the part of the set
that hangs on no single fan, so it holds whatever else is left out; `share_floor` items are always
fine, else a tiny set would forbid everything.

One question has one answer: an admin's newest approval first, then facts, then what fans agree on,
then everyday talk.

Held out are single wordings of things that keep at least two others to be learnt from: a thing
taught in one wording cannot be both. Which ones is decided by hashes of the text, never by row
order, and never a question that stands elsewhere in the set. Wordings count as one thing when they
belong to one fact, or have one answer long enough not to be "Sim". Of everyday talk, which teaches
nothing new, the same share is held out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from bot.domain import Turn
from training import personal
from training.examples import Example, Kind, Preference, ask, to_lines
from training.facts import Fact, Talk, examples
from training.files import commit, to_json
from training.firmness import insisted
from training.lessons import Excluded, choose
from training.rows import (
    FanRow,
    LessonRow,
    Limits,
    Quarantine,
    Reason,
    VoteRow,
)
from training.similar import Seen, likeness, normal, words
from training.trust import Trust, Verdict, floods, latest, verdicts

__all__ = [
    "Dataset",
    "FanRow",
    "LessonRow",
    "Limits",
    "Quarantine",
    "Reason",
    "VoteRow",
    "build",
]

_LONG = 4  # words from which an answer names the thing it is about


@dataclass(frozen=True, slots=True)
class Dataset:
    """What a revision is trained on. `manifest` is JSON; no fan's key is in it or in the items.

    `digest` is over the items alone: with the same digest the same is learnt.
    `quarantine` is for the admin and is not written.
    """

    train: tuple[Example, ...]
    held_out: tuple[Example, ...]
    preferences: tuple[Preference, ...]
    manifest: Mapping[str, Any]
    quarantine: tuple[Quarantine, ...]
    digest: str

    def write(self, folder: Path) -> None:
        """Write the folder, whole or not at all. Raises OSError, also when it has files already."""
        commit(
            folder,
            {
                "train.jsonl": to_lines(self.train),
                "held_out.jsonl": to_lines(self.held_out),
                "preferences.jsonl": to_lines(self.preferences),
                "manifest.json": to_json(self.manifest),
            },
        )


@dataclass(frozen=True, slots=True)
class _Item:
    """An example on its way. `thing` joins wordings of one thing; `fan` is set if limits hold."""

    example: Example
    thing: str
    fan: str | None = None

    @property
    def asked(self) -> str:
        return " | ".join(normal(turn.text) for turn in self.example.turns)


def build(
    lessons: Iterable[LessonRow],
    votes: Iterable[VoteRow],
    fans: Iterable[FanRow],
    *,
    facts: Sequence[Fact],
    replay: Sequence[Talk],
    evaluation: Iterable[tuple[str, str]],
    now: datetime,
    settings: Limits | None = None,
) -> Dataset:
    """Make the dataset of a night; `evaluation` are the questions and answers of all tests."""
    limits = settings or Limits()
    known = {fan.fan: fan for fan in fans}
    taught = sorted(lessons, key=lambda lesson: lesson.id)
    voted = latest(votes)
    quarantine = floods(taught, voted, known, limits)
    flooded = {found.fan for found in quarantine}
    excluded: Excluded = {row.name: Reason.FLOOD for row in taught if row.fan in flooded}
    calm = [vote for vote in voted if vote.fan not in flooded]
    trust = Trust(known, calm, now, limits)

    rest = [row for row in taught if row.fan not in flooded]
    chosen, why = choose(rest, facts, trust, now=now, limits=limits)
    excluded.update(why)
    tests = Seen(limits.leaks)
    for question, answer in sorted(evaluation):
        tests.add("test", question, answer)
    pool, merged = _pool(
        chosen, facts, replay, tests=tests, trust=trust, limits=limits, excluded=excluded
    )
    liked = _preferences(verdicts(calm, trust), tests, trust, excluded)
    pool, liked = _share(pool, liked, limits, excluded)
    train, held_out = _split(pool, {_asked(item) for item, _ in liked}, limits)
    preferences = tuple(sorted((item for item, _ in liked), key=lambda item: item.id))
    digest = _digest(train, held_out, preferences)
    manifest = {
        "digest": digest,
        "limits": asdict(limits),
        "train": [item.id for item in train],
        "held_out": [item.id for item in held_out],
        "preferences": [item.id for item in preferences],
        "merged": merged,
        "excluded": {name: str(reason) for name, reason in sorted(excluded.items())},
        "counts": _counts(train, held_out, preferences, excluded),
        "quarantined": len(quarantine),
        "largest_share": _largest_share(chosen, liked),
    }
    return Dataset(train, held_out, preferences, manifest, tuple(quarantine), digest)


def _pool(
    chosen: Sequence[LessonRow],
    facts: Sequence[Fact],
    replay: Sequence[Talk],
    *,
    tests: Seen,
    trust: Trust,
    limits: Limits,
    excluded: Excluded,
) -> tuple[list[_Item], dict[str, str]]:
    """The examples without duplicates, and which row stands for which other."""
    checked = [lesson for lesson in chosen if lesson.is_checked]
    standing = []
    for fact in sorted(facts, key=lambda one: one.id):
        if any(_overrules(lesson, fact, limits) for lesson in checked):
            excluded[fact.name] = Reason.OVERRULED
        else:
            standing.append(fact)
    items = [_lesson_item(lesson, trust) for lesson in checked]
    items += [_Item(one, fact.name) for fact in standing for one in examples(fact)]
    items += [_Item(one, one.id) for one in insisted(standing)]
    items += [_lesson_item(lesson, trust) for lesson in chosen if not lesson.is_checked]
    items += [_talk_item(talk) for talk in sorted(replay, key=lambda one: one.id)]
    return _unique(items, tests, limits, excluded)


def _overrules(lesson: LessonRow, fact: Fact, limits: Limits) -> bool:
    return any(
        likeness(lesson.question, wording) >= limits.near for wording in fact.questions
    ) and not fact.is_answered_by(lesson.answer)


def _lesson_item(lesson: LessonRow, trust: Trust) -> _Item:
    kind = Kind.TAUGHT if lesson.kind == "taught" else Kind.CORRECTION
    answer = personal.remove(lesson.answer)
    example = Example(lesson.name, kind, _clean(lesson.asked), answer)
    thing = normal(answer) if len(words(answer)) >= _LONG else lesson.name
    free = lesson.is_checked or trust.is_admin(lesson.fan)
    return _Item(example, thing, None if free else lesson.fan)


def _talk_item(talk: Talk) -> _Item:
    name = f"replay:{talk.id}"
    return _Item(Example(name, talk.kind, ask(talk.question), talk.answer), name)


def _clean(turns: tuple[Turn, ...]) -> tuple[Turn, ...]:
    """Turns without personal data; without the history when a turn of it is gone."""
    clean = tuple(replace(turn, text=personal.remove(turn.text)) for turn in turns)
    return clean if all(turn.text for turn in clean) else clean[-1:]


def _unique(
    items: Iterable[_Item], tests: Seen, limits: Limits, excluded: Excluded
) -> tuple[list[_Item], dict[str, str]]:
    """The first of those that ask the same, and none that tests ask."""
    kept: dict[str, _Item] = {}
    merged: dict[str, str] = {}
    seen = Seen(limits.near)
    for item in items:
        example, first = item.example, kept.get(item.asked)
        if tests.find(example.question):
            excluded[example.id] = Reason.EVALUATION
        elif first and likeness(first.example.answer, example.answer) < limits.near:
            excluded[example.id] = Reason.SUPERSEDED
        elif same := (first.example.id if first else seen.find(item.asked, example.answer)):
            merged[example.id] = same
        else:
            kept[item.asked] = item
            seen.add(example.id, item.asked, example.answer)
    return list(kept.values()), merged


_Liked = tuple[Preference, str | None]  # and the fan on whom alone it hangs


def _preferences(
    judged: tuple[list[Verdict], Mapping[str, Reason]],
    tests: Seen,
    trust: Trust,
    excluded: Excluded,
) -> list[_Liked]:
    """One preference for each text, where the votes on it agree."""
    excluded.update(judged[1])
    texts: dict[tuple[str, ...], list[_Liked]] = defaultdict(list)
    for verdict in judged[0]:
        vote = verdict.vote
        item = Preference(
            vote.name, _clean(vote.turns), personal.remove(vote.answer), verdict.liked
        )
        if not item.answer or not item.turns[-1].text:
            excluded[item.id] = Reason.PERSONAL
        elif tests.find(item.turns[-1].text):
            excluded[item.id] = Reason.EVALUATION
        else:
            alone = len(verdict.fans) == 1 and not trust.is_admin(verdict.fans[0])
            text = (*(turn.text for turn in item.turns), item.answer)
            texts[tuple(map(normal, text))].append((item, verdict.fans[0] if alone else None))
    kept = []
    for same in texts.values():
        agree = len({item.liked for item, _ in same}) == 1
        kept += same[:1] if agree else []
        reason = Reason.DUPLICATE if agree else Reason.TIE
        excluded.update({item.id: reason for item, _ in (same[1:] if agree else same)})
    return kept


def _share(
    pool: list[_Item], liked: list[_Liked], limits: Limits, excluded: Excluded
) -> tuple[list[_Item], list[_Liked]]:
    """What stays when no fan may give more than a share: the oldest lessons, the newest votes."""
    free = sum(item.fan is None for item in pool) + sum(fan is None for _, fan in liked)
    most = max(limits.share_floor, int(limits.share * free))
    given: Counter[str] = Counter()

    def fits(name: str, fan: str | None) -> bool:
        if fan is None:
            return True
        if given[fan] >= most:
            excluded[name] = Reason.SHARE
            return False
        given[fan] += 1
        return True

    by_age = sorted(pool, key=lambda item: _number(item.example.id))
    newest = sorted(liked, key=lambda one: _number(one[0].id), reverse=True)
    return (
        [item for item in by_age if fits(item.example.id, item.fan)],
        [one for one in newest if fits(one[0].id, one[1])],
    )


def _number(name: str) -> tuple[int, str]:
    number = name.rpartition(":")[2]
    return (int(number) if number.isdecimal() else -1, name)


def _split(
    pool: Sequence[_Item], voted: set[str], limits: Limits
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Train and held-out examples, each sorted by name. See the module's docstring."""
    things: dict[str, list[_Item]] = defaultdict(list)
    for item in pool:
        things[item.thing].append(item)
    held = set()
    for thing, items in things.items():
        spare = len(items) > 2 or items[0].example.kind is Kind.REPLAY  # noqa: PLR2004 (two stay)
        open_to = [item for item in items if item.asked not in voted]
        if spare and open_to and _chance(thing) < limits.held_out:
            held.add(min(open_to, key=lambda item: _chance(item.asked)).example.id)
    ordered = sorted((item.example for item in pool), key=lambda example: example.id)
    return (
        tuple(example for example in ordered if example.id not in held),
        tuple(example for example in ordered if example.id in held),
    )


def _chance(text: str) -> float:
    """A number from 0 to 1 that looks random and depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def _asked(item: Preference) -> str:
    return " | ".join(normal(turn.text) for turn in item.turns)


def _largest_share(chosen: Sequence[LessonRow], liked: Sequence[_Liked]) -> float:
    """The part that the busiest fan has in what fans gave alone; 0 when they gave nothing."""
    given = Counter([lesson.fan for lesson in chosen] + [fan for _, fan in liked if fan])
    return round(max(given.values()) / given.total(), 3) if given else 0.0


def _digest(*parts: Sequence[Example] | Sequence[Preference]) -> str:
    rows = [[asdict(item) for item in part] for part in parts]
    text = json.dumps(rows, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _counts(
    train: Sequence[Example],
    held_out: Sequence[Example],
    preferences: Sequence[Preference],
    excluded: Excluded,
) -> dict[str, Any]:
    liked = sum(item.liked for item in preferences)
    return {
        "train": len(train),
        "held_out": len(held_out),
        "preferences": len(preferences),
        "kinds": dict(sorted(Counter(str(item.kind) for item in (*train, *held_out)).items())),
        "liked": liked,
        "disliked": len(preferences) - liked,
        "excluded": dict(sorted(Counter(map(str, excluded.values())).items())),
    }
