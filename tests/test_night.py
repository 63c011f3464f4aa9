"""Nights: what starts one, how it ends, and what it leaves in service. The children are played."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from datetime import UTC, datetime, time, timedelta
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from safetensors.numpy import save_file

from bot.domain import Chat, Destination, EngineStatus, Fan, Platform, Role, Source, Turn
from bot.errors import EngineDead, Refusal
from bot.learning import LessonKind, LessonState, NightState, RatedAnswer
from bot.rules import Grant
from bot.store import Store
from config.settings import load_settings
from config.texts import text
from training import evaluation, files, night, satisfaction
from training.evaluation import Evaluation, Reply, RevisionResult, Speed, SuiteResult
from training.examples import Example, Kind, ask, read_lines, write_lines
from training.job import Ended, Progress, read_job
from training.nights import SCHEDULE, TERMINAL, NightShift, due
from training.revisions import BASE, RevisionError

ADMIN = "telegram:9"
LISBON = ZoneInfo("Europe/Lisbon")
PRINT = "f" * 16
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
HERE = Destination(Chat(Platform.TELEGRAM, "9"))


class Engine:
    """Notes what it is to serve; `fault` is raised by the next swap."""

    def __init__(self, folder):
        self.base = SimpleNamespace(name="embedded", folder=folder, fingerprint=PRINT)
        self.swaps, self.fault, self.running = [], None, 0

    @property
    def status(self):
        return EngineStatus(
            ready=True, model="embedded", revision="", plan="", context=4096,
            running=self.running, waiting=0, tokens_per_second=0, cache_bytes=0,
        )  # fmt: skip

    async def swap(self, revision, digest, build):
        if self.fault:
            fault, self.fault = self.fault, None
            raise fault
        self.swaps.append(revision)


class Announcer:
    def __init__(self):
        self.said, self.revised = [], []

    async def announce(self, to, post):
        self.said.append((to.chat.key, post.text))
        return str(len(self.said))

    async def revise(self, to, message_id, post):
        self.revised.append((message_id, post.text))
        return True


class Children:
    """Plays the processes: what they write, and what goes wrong."""

    def __init__(self):
        self.learnt = 12
        self.ends = {}
        self.done = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, folder, on_event, hold, command=()):
        job = read_job(folder)
        on_event(Progress(stage="load", step=1, steps=1))
        await self.gate.wait()
        self.done.append(job.task)
        if ended := self.ends.pop(job.task, None):
            if isinstance(ended, BaseException):
                raise ended
            return ended
        getattr(self, job.task)(folder, job)
        return Ended(ok=True)

    def train(self, folder, _job):
        result = folder / "result"
        result.mkdir(exist_ok=True)
        name = "model.layers.0.self_attn.q_proj"
        tensors = {f"{name}.lora_a": np.ones((8, 2)), f"{name}.lora_b": np.ones((2, 6))}
        save_file(
            {k: v.astype(np.float32) for k, v in tensors.items()}, result / "adapters.safetensors"
        )
        parameters = {"rank": 2, "scale": 2.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
        config = {"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": parameters}
        curve = {"sft": [{"step": 1, "loss": 1.0}], "kto": []}
        figures = {
            "stages": {}, "seconds": 1.0, "tokens_per_second": 1.0,
            "estimate": {"total": 1, "parts": {}}, "peak_memory": {"mlx": 1, "process": 1},
        }  # fmt: skip
        for file, value in (
            ("adapter_config.json", config),
            ("training_config.json", {}),
            ("curve.json", curve),
            ("result.json", figures),
        ):
            (result / file).write_bytes(files.to_json(value))

    def evaluate(self, folder, job):
        lessons = len(job.lessons.read_text("utf-8").splitlines())
        names = {
            "candidate": one("new", min(self.learnt, lessons), lessons),
            "champion": one("old", 0, lessons),
            "anchor": one("old", 0, lessons),
        }
        found = Evaluation(model="m", base="b", persona="p", seconds=1, revisions=names)
        evaluation.write(folder, found)


def one(digest, passed, of):
    replies = tuple(
        Reply(
            id=str(i), question="Quem?", text="A Dulce toca o bombo na claque.", passed=i < passed,
            score=float(i < passed), tokens=8, seconds=0.1,
        )
        for i in range(of)
    )  # fmt: skip
    return RevisionResult(
        digest=digest,
        suites={
            "lessons": SuiteResult(version="1", replies=replies),
            "held_out": SuiteResult(version="1", losses={"a": 2.0}),
        },
        speed=Speed(first_token=0.1, tokens_per_second=50),
    )


class World:
    def __init__(self, shift, store, engine, announcer, children, settings):
        self.shift, self.store, self.engine = shift, store, engine
        self.announcer, self.children, self.settings = announcer, children, settings

    async def teach(self, count=12, *, fans=12, tell=False, approve=True, first=0):
        for i in range(first, first + count):
            fan = Fan(Platform.TELEGRAM, str(100 + i % fans))
            chat = Chat(Platform.TELEGRAM, fan.id)
            await self.store.set_consent(
                fan, given=True, source=Source.TELEGRAM_PRIVATE, grant=Grant(), now=NOW
            )
            await self.store.set_tell(fan.key, tell=tell)
            lesson = await self.store.add_lesson(
                LessonKind.TAUGHT, fan, chat, source=Source.TELEGRAM_PRIVATE,
                question=f"Qual é a alcunha número {NUMBERS[i % 40]} da claque {i}?",
                answer=f"A alcunha é {NUMBERS[i % 40]} do Algarve, {NUMBERS[(7 * i) % 40]}.",
                answer_id=None, state=LessonState.WAITING, now=NOW,
            )  # fmt: skip
            await self.store.confirm_lesson(lesson.id, wanted=True)
            if approve:
                await self.store.decide_lesson(lesson.id, LessonState.APPROVED, ADMIN, NOW)

    async def night(self, started_by=ADMIN, to=HERE):
        await self.shift.start(started_by, to, "pt")
        return await self.ended()

    async def ended(self):
        async with asyncio.timeout(60):
            await asyncio.shield(self.shift._running)
        return (await self.store.nights(1))[0]

    @property
    def current(self):
        return self.shift._revisions.current


NUMBERS = [
    f"{a}{b}" for a in ("gai", "moi", "sar", "pol", "lin") for b in
    ("vota", "nho", "dinha", "vilhão", "guado", "reta", "bote", "mareu")
]  # fmt: skip


@asynccontextmanager
async def a_world(home, monkeypatch, *, children=None, engine=None, **learning):
    folder = home / "model"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"quantization": {"bits": 4}}')
    learning = {"enabled": False, **learning}
    settings = load_settings(home, admins=(ADMIN,), learning=learning)
    children = children or Children()
    monkeypatch.setattr(night, "run_job", children)
    engine, announcer = engine or Engine(folder), Announcer()
    async with Store.open(settings.database) as store:
        shift = NightShift(
            store=store, settings=settings, engine=engine, announcer=announcer, now=lambda: NOW
        )
        async with shift:
            yield World(shift, store, engine, announcer, children, settings)


@pytest.fixture
async def world(tmp_path, monkeypatch):
    async with a_world(tmp_path, monkeypatch) as world:
        yield world


async def test_a_good_night_puts_a_revision_into_service_and_says_so(world):
    await world.teach()
    found = await world.night()
    assert found.state is NightState.PROMOTED
    assert world.current == found.details["revision"] == world.engine.swaps[-1]
    revision = world.shift._revisions.verify(world.current, PRINT)
    assert {
        "adapters.safetensors", "adapter_config.json", "training_config.json", "qlora_config.json",
        "INTEGRATION_GUIDE.md", "report.md", "loss.png", "loss.svg",
    } <= revision.metadata["files"].keys()  # fmt: skip
    assert sum(row.startswith("lesson:") for row in revision.metadata["rows"]) == 12
    assert world.announcer.said[0][1] == text("night.progress.begin")
    assert text("night.reason.promoted", revision=world.current) in world.announcer.said[-1][1]
    assert not list(world.settings.revisions.glob(".night*"))


async def test_a_worse_candidate_is_rejected_and_kept_with_its_report(world):
    world.children.learnt = 0
    await world.teach()
    found = await world.night()
    assert found.state is NightState.REJECTED
    assert world.current == BASE
    assert world.engine.swaps == []
    (revision,) = world.shift._revisions.all()
    assert not revision.promoted
    assert text("gate.no_gain") in world.announcer.said[-1][1]


async def test_with_too_little_that_is_new_nothing_is_trained(world):
    await world.teach(2)
    found = await world.night()
    assert (found.state, found.reason) == (NightState.SKIPPED, "few")
    assert world.children.done == []
    assert text("night.reason.few", n=2, least=3) in world.announcer.said[-1][1]


async def test_what_was_learnt_is_not_new_the_next_night(world):
    await world.teach()
    assert (await world.night()).state is NightState.PROMOTED
    assert (await world.night()).reason == "few"


async def test_lessons_that_nobody_approved_wait(world):
    await world.teach(approve=False)
    found = await world.night()
    assert (found.reason, found.details["n"]) == ("few", 0)


async def test_a_flood_of_one_account_changes_nothing_and_is_told(world):
    await world.teach(200, fans=1, approve=False)
    found = await world.night()
    assert found.state is NightState.SKIPPED
    assert world.current == BASE
    assert await world.store.next_lesson() == (None, 0)
    assert any(text("night.flooded", n=200) in said for _, said in world.announcer.said)


async def test_a_flood_of_votes_alone_is_told_in_the_night_after_it_and_no_more(world, monkeypatch):
    votes = [
        RatedAnswer(
            answer_id=n, fan_key="telegram:7", value=-1, turns=(Turn(Role.USER, f"Pergunta {n}?"),),
            answer=f"Resposta {n}.", revision="base", created_at=NOW - timedelta(hours=1),
        )
        for n in range(60)
    ]  # fmt: skip

    async def rated():
        return votes

    monkeypatch.setattr(world.store, "rated_answers", rated)
    flooded = text("night.flooded_votes", n=60)
    await world.night()
    assert sum(flooded in said for _, said in world.announcer.said) == 1
    await world.night()
    assert sum(flooded in said for _, said in world.announcer.said) == 1


@pytest.mark.parametrize("approved", [False, True])
async def test_what_an_admin_released_is_no_flood_in_the_next_night(world, approved):
    await world.teach(30, fans=1, approve=approved)
    assert (await world.night()).reason == "flood"
    flood = await world.store.next_flood(3)
    assert (flood.count, len(flood.first)) == (30, 3)
    assert await world.store.release(flood.id, NOW) == 30
    assert (await world.night()).reason not in {"flood", "fault"}
    assert await world.store.next_flood(3) is None
    states = {lesson.state for lesson in await world.store.lessons()}
    assert states == {LessonState.APPROVED if approved else LessonState.PENDING}


@pytest.mark.parametrize(
    "reason", ["nan", "exploding", "memory", "disk", "deadline", "dataset", "model", "fault"]
)
@pytest.mark.parametrize("task", ["train", "evaluate"])
async def test_a_child_that_fails_leaves_the_champion_and_names_the_reason(world, task, reason):
    await world.teach()
    assert (await world.night()).state is NightState.PROMOTED
    champion = world.current
    await world.teach(first=12)
    world.children.ends[task] = Ended(ok=False, reason=reason)
    found = await world.night()
    assert (found.state, found.reason) == (NightState.FAILED, reason)
    assert world.current == champion
    assert text(f"night.reason.{reason}") in world.announcer.said[-1][1]
    assert not list(world.settings.revisions.glob(".*ight*"))


async def test_a_swap_that_fails_leaves_the_champion(world):
    await world.teach()
    world.engine.fault = ValueError("tensors missing")
    found = await world.night()
    assert found.state is NightState.FAILED
    assert world.current == BASE
    assert world.shift.serving.name == BASE


async def test_a_second_one_is_told_who_started_the_first_and_when(world):
    await world.teach()
    world.children.gate.clear()
    await world.shift.start(ADMIN, HERE, "pt")
    with pytest.raises(Refusal) as refused:
        await world.shift.start("discord:2", None, "pt")
    assert refused.value.values["by"] == ADMIN
    assert refused.value.values["at"] == f"{NOW.astimezone():%H:%M}"
    assert text("night.running") in await world.shift.describe("pt")
    world.children.gate.set()
    await world.ended()


async def test_cancelling_ends_the_night_and_changes_nothing(world):
    await world.teach()
    world.children.gate.clear()
    await world.shift.start(ADMIN, HERE, "pt")
    while world.shift._last is None:  # nothing of the child was heard yet
        await asyncio.sleep(0)
    assert await world.shift.cancel()
    found = await world.ended()
    assert found.state is NightState.CANCELLED
    assert world.current == BASE
    assert not await world.shift.cancel()
    assert not list(world.settings.revisions.glob(".night*"))


@pytest.mark.parametrize("where", ["train", "evaluate", "commit", "swap"])
async def test_a_night_that_was_cut_off_goes_on_after_the_next_start(tmp_path, monkeypatch, where):
    """The bot stops at once in the middle of a stage; nothing of that stage is undone."""
    children = Children()
    async with a_world(tmp_path, monkeypatch, children=children) as world:
        await world.teach()
        with monkeypatch.context() as patch:
            if where in {"train", "evaluate"}:
                children.ends[where] = asyncio.CancelledError()
            elif where == "commit":
                patch.setattr(night.NightRun, "_commit", _cut_off)
            else:
                patch.setattr("training.revisions.Revisions.use", _cut_off)
            await world.shift.start(ADMIN, HERE, "pt")
            await asyncio.wait([world.shift._running])
        assert (await world.store.running_night()) is not None
        assert world.current == BASE
    async with a_world(tmp_path, monkeypatch, children=children) as world:
        found = await world.ended()
        assert found.state is NightState.PROMOTED
        assert world.current == found.details["revision"]
        assert world.announcer.said[-1][0] == "telegram:9"
    assert children.done.count("evaluate") == (2 if where == "evaluate" else 1)


def _cut_off(*_):
    raise asyncio.CancelledError


async def test_what_a_cancelled_night_wrote_afterwards_is_swept_up_by_the_next(world):
    (world.settings.revisions / ".night-7" / "train").mkdir(parents=True)
    await world.teach()
    await world.night()
    assert not list(world.settings.revisions.glob(".night*"))


async def test_a_night_that_dies_again_and_again_is_given_up(tmp_path, monkeypatch):
    children = Children()
    async with a_world(tmp_path, monkeypatch, children=children) as world:
        await world.teach()
        children.ends["train"] = asyncio.CancelledError()
        await world.shift.start(ADMIN, HERE, "pt")
        await asyncio.wait([world.shift._running])
        running = await world.store.running_night()
        folder = world.settings.revisions / f".night-{running.id}"
        files.write(folder / "starts.json", files.to_json(night.MOST_CRASHES))
    async with a_world(tmp_path, monkeypatch, children=children) as world:
        assert (await world.ended()).reason == "crashes"


async def test_stopping_the_bot_on_purpose_is_no_crash(tmp_path, monkeypatch):
    children = Children()
    for _ in range(night.MOST_CRASHES + 2):
        children.gate.clear()
        async with a_world(tmp_path, monkeypatch, children=children) as world:
            if await world.store.running_night() is None:
                await world.teach()
                await world.shift.start(ADMIN, HERE, "pt")
            while not world.announcer.said:
                await asyncio.sleep(0)
    children.gate.set()
    async with a_world(tmp_path, monkeypatch, children=children) as world:
        assert (await world.ended()).state is NightState.PROMOTED


async def test_going_back_and_what_there_is(world):
    with pytest.raises(Refusal) as refused:
        await world.shift.roll_back(ADMIN, "pt")
    assert refused.value.key == "error.revision_first"
    await world.teach()
    name = (await world.night()).details["revision"]
    assert f"**{name}** em serviço" in await world.shift.revisions("pt")
    said = await world.shift.roll_back(ADMIN, "pt")
    assert said == text("night.rolled_back", revision=text("revision.base"), left=name)
    assert world.current == BASE
    assert world.engine.swaps[-1] == f"base:{PRINT[:12]}"
    assert text("revision.base_serves") in await world.shift.revisions("pt")


async def test_after_a_start_the_revision_of_the_pointer_serves(tmp_path, monkeypatch):
    async with a_world(tmp_path, monkeypatch) as world:
        await world.teach()
        name = (await world.night()).details["revision"]
    async with a_world(tmp_path, monkeypatch) as world:
        assert world.engine.swaps == [name]


async def test_a_damaged_revision_is_not_served_and_the_admin_hears_of_it(tmp_path, monkeypatch):
    async with a_world(tmp_path, monkeypatch) as world:
        await world.teach()
        await world.night()
        weights = world.settings.revisions / world.current / "adapters.safetensors"
        weights.write_bytes(weights.read_bytes()[:-4] + b"evil")
        await world.store.set_setting("admin_chat", '{"platform": "telegram", "id": "9"}')
    async with a_world(tmp_path, monkeypatch) as world:
        assert world.engine.swaps == []
        assert world.current == BASE
        while not world.announcer.said:
            await asyncio.sleep(0)
        assert world.announcer.said[0][1].startswith("⚠️")


async def test_a_pointer_moved_at_a_terminal_is_followed(world):
    await world.teach()
    name = (await world.night()).details["revision"]
    world.shift._revisions.roll_back()
    assert await world.shift.serving.follow()
    assert world.engine.swaps[-1].startswith("base:")
    world.shift._revisions.use("no-such")
    with pytest.raises(RevisionError):
        await world.shift.serving.follow()
    assert not await world.shift.serving.follow()  # it is not tried again and again
    world.shift._revisions.use(name)
    assert await world.shift.serving.follow()


async def test_following_never_undoes_a_promotion_under_way(world, monkeypatch):
    await world.teach()
    gate, use = asyncio.Event(), world.shift._revisions.use
    loop = asyncio.get_running_loop()

    def slow(name):
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(30)
        use(name)

    monkeypatch.setattr(world.shift._revisions, "use", slow)
    running = asyncio.create_task(world.night())
    while not world.engine.swaps:
        await asyncio.sleep(0.005)
    follow = asyncio.create_task(world.shift.serving.follow())
    await asyncio.sleep(0)
    gate.set()
    name = (await running).details["revision"]
    assert not await follow
    assert world.engine.swaps == [name]


async def test_an_engine_that_is_gone_fails_the_night(world):
    await world.teach()
    world.engine.fault = EngineDead()
    found = await world.night()
    assert (found.state, found.reason) == (NightState.FAILED, "error.engine_dead")


async def test_fans_who_want_to_know_are_told_once_what_was_learnt(world):
    await world.teach(6, fans=6, tell=True)
    await world.teach(6, fans=6, first=12)
    await world.night()
    told = [chat for chat, said in world.announcer.said if "Aprendi o que me ensinaste" in said]
    assert sorted(told) == []  # the second round of lessons switched it off again
    await world.teach(6, fans=6, tell=True, first=24)
    await world.night()
    told = [chat for chat, said in world.announcer.said if "Aprendi o que me ensinaste" in said]
    assert len(told) == len(set(told)) == 6


async def test_a_night_by_the_clock_reports_where_the_admin_reads(world):
    await world.teach()
    await world.store.set_setting("admin_chat", '{"platform": "telegram", "id": "77"}')
    await world.shift.start(SCHEDULE, None, "pt")
    await world.ended()
    assert world.announcer.said[-1][0] == "telegram:77"


async def test_one_scheduled_night_a_day(tmp_path, monkeypatch):
    moment = datetime(2026, 11, 24, 3, 31, tzinfo=LISBON)
    async with a_world(tmp_path, monkeypatch) as world:
        world.shift._now = lambda: moment
        await world.shift._fire()
        await world.ended()
        await world.shift._fire()
        nights = await world.store.nights()
        assert [(one.day, one.started_by) for one in nights] == [("2026-11-24", SCHEDULE)]


async def test_at_the_terminal_it_trains_whatever_is_new(world):
    ending = await world.shift.run_once(TERMINAL)
    assert "train" in world.children.done
    assert ending.state in {NightState.PROMOTED, NightState.REJECTED}


AT = time(3, 30)


@pytest.mark.parametrize(
    ("local", "day"),
    [
        ("2026-11-24 03:29", None),
        ("2026-11-24 03:30", "2026-11-24"),
        ("2026-11-24 08:29", "2026-11-24"),  # after a sleep
        ("2026-11-24 08:31", None),
        ("2026-03-29 03:30", "2026-03-29"),  # clocks go forward at one
        ("2026-10-25 03:30", "2026-10-25"),  # and back at two
        ("2026-10-25 01:30", None),
    ],
)
def test_when_a_night_is_due(local, day):
    moment = datetime.fromisoformat(local).replace(tzinfo=LISBON)
    assert due(moment.astimezone(UTC), AT, LISBON) == day


def test_every_day_of_a_year_has_one_night_also_across_clock_changes():
    moment, days = datetime(2026, 1, 1, tzinfo=UTC), []
    while moment < datetime(2027, 1, 1, tzinfo=UTC):
        day = due(moment, AT, LISBON)
        if day and (not days or days[-1] != day):
            days.append(day)
        moment += timedelta(minutes=20)
    assert len(days) == len(set(days)) == 365


def test_a_late_evening_night_belongs_to_the_day_it_began():
    moment = datetime(2026, 11, 25, 1, 0, tzinfo=LISBON)
    assert due(moment.astimezone(UTC), time(23, 0), LISBON) == "2026-11-24"


@pytest.mark.parametrize(
    ("before", "now", "dropped"),
    [
        ((90, 10), (10, 90), True),
        ((90, 10), (80, 20), False),
        ((90, 10), (9, 10), False),  # too few to say
        ((5, 5), (1, 99), False),
        ((50, 50), (55, 45), False),
    ],
)
def test_a_drop_in_satisfaction_is_told_from_chance(before, now, dropped):
    assert satisfaction.dropped(before, now) is dropped


async def test_a_revision_that_fans_dislike_goes_back_by_itself(world, monkeypatch):
    await world.teach()
    name = (await world.night()).details["revision"]
    votes = {name: (10, 90), f"base:{PRINT[:12]}": (90, 10)}

    async def counted(revision):
        return votes[revision]

    monkeypatch.setattr(world.store, "satisfaction", counted)
    await world.store.set_setting("admin_chat", '{"platform": "telegram", "id": "9"}')
    assert await world.shift.look_at_satisfaction()
    assert world.current == BASE
    said = text("night.disliked", revision=name, now=10, before=90)
    assert world.announcer.said[-1] == ("telegram:9", said)
    assert not await world.shift.look_at_satisfaction()


def test_nothing_is_kept_that_json_cannot_hold():
    assert json.loads(files.to_json({"at": NOW})) == {"at": str(NOW)}


def test_what_was_taught_and_what_was_corrected_are_asked_again(tmp_path):
    taught = Example("lesson:1", Kind.TAUGHT, ask("Quem toca o bombo?"), "A Dulce.")
    mended = Example("lesson:2", Kind.CORRECTION, ask("E em que ano?"), "Em 1910.")
    fact = Example("fact:1", Kind.FACT, ask("Onde?"), "Em Faro.")
    write_lines(tmp_path / "train.jsonl", [taught, fact])
    write_lines(tmp_path / "held_out.jsonl", [mended])
    kinds = {"lessons": (Kind.TAUGHT, Kind.CORRECTION), "regressions": (Kind.CORRECTION,)}
    found = night._asked(tmp_path, tmp_path / "asked", kinds)
    assert read_lines(found["lessons"], Example) == [taught, mended]
    assert read_lines(found["regressions"], Example) == [mended]
