"""The nights: when they begin, who is told, and what admins can do about them.

One runs at a time. What is in service changes only at a night's very end, or by an admin's word.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, time, timedelta
from typing import Any, Self
from zoneinfo import ZoneInfo

import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.cron import CronTrigger
from pydantic import TypeAdapter

from bot.domain import Chat, ChatKind, Destination, Post
from bot.errors import FarenseError, Refusal
from bot.learning import Night, NightState
from bot.store import Store
from config.settings import Settings
from config.texts import text
from training import satisfaction
from training.job import Event, Progress
from training.night import Ending, NightRun, sweep
from training.recipe import Recipe
from training.revisions import BASE, RevisionError, Revisions
from training.serving import LearningEngine, Serving, base_label
from training.telling import Announcer, Telling

log = structlog.get_logger(__name__)

SCHEDULE, TERMINAL = "schedule", "terminal"
LATE = timedelta(hours=5)  # after which a night that was slept through waits for the next one
FOLLOW = 2.0  # seconds between two looks at the pointer
WATCH = 3600.0  # seconds between two looks at how fans like the revision in service
_CHAT = TypeAdapter(Chat)


class NightShift:
    """Runs nights; `async with` schedules them, and takes up one that a crash interrupted."""

    def __init__(
        self,
        *,
        store: Store,
        settings: Settings,
        engine: LearningEngine,
        announcer: Announcer,
        recipe: Recipe | None = None,
        watcher: Callable[[Event], None] = lambda _: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._settings = settings
        self._engine = engine
        self._announcer = announcer
        self._recipe = recipe or Recipe()
        self._watcher = watcher
        self._now = now
        self._revisions = Revisions(settings.revisions)
        self.serving = Serving(engine, self._revisions)
        self._zone = ZoneInfo(settings.learning.timezone)
        self._scheduler = AsyncIOScheduler(timezone=self._zone)
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: asyncio.Task[Ending] | None = None
        self._cancelled = False
        self._last: Event | None = None

    async def __aenter__(self) -> Self:
        broken = await self.serving.restore()
        if broken is not None:
            self._spawn(self._tell_admin("night.broken", revision=broken))
        night = await self._store.running_night()
        if night is not None:
            self._begin(night)
        if self._settings.learning.enabled:
            self._schedule()
        self._spawn(self._follow())
        self._spawn(self._watch())
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        tasks = [*self._tasks, *([self._running] if self._running else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # The port of `bot.ports.Nights`

    async def start(self, started_by: str, to: Destination | None, language: str) -> None:
        """Begin a run now. Raises Refusal when one runs."""
        day = f"{self._now().astimezone(self._zone):%Y-%m-%d}"
        report_to = None if to is None else json.dumps(dataclasses.asdict(to.chat))
        try:
            night = await self._store.begin_night(day, started_by, report_to, self._now())
        except Refusal as refusal:
            raise self._in_words(refusal, language) from None
        self._begin(night)

    async def run_once(self, started_by: str) -> Ending:
        """Run a night here and now, whatever is new, and wait for its end."""
        await self.serving.restore()
        day = f"{self._now().astimezone(self._zone):%Y-%m-%d}"
        night = await self._store.running_night()
        if night is None:
            night = await self._store.begin_night(day, started_by, None, self._now())
        self._begin(night)
        assert self._running is not None, "it has just begun"
        return await self._running

    def told(self, ending: Ending) -> str:
        """What there is to say about a night that ended."""
        return "\n\n".join(filter(None, (self._ending(ending, self._language), ending.summary)))

    async def cancel(self) -> bool:
        """Stop the run; what serves stays as it is."""
        if self._running is None or self._running.done():
            return False
        self._cancelled = True
        self._running.cancel()
        return True

    async def describe(self, language: str) -> str:
        """What runs now, and how the last nights ended."""
        lines = []
        if self._running is not None and not self._running.done():
            lines.append(text("night.running", language) + " " + self._progress(language))
        lines += [
            f"- {night.day}: {self._ended(night, language)}"
            for night in await self._store.nights(5)
            if night.state is not NightState.RUNNING
        ]
        return "\n".join(lines) or text("night.never", language)

    async def roll_back(self, by: str, language: str) -> str:
        """Serve the revision before this one."""
        left = self.serving.name
        try:
            name = await self.serving.roll_back()
        except RevisionError as error:  # an admin asked: the sentence is for this chat
            raise Refusal(error.key, **error.values) from error
        log.info("rolled back", by=by, revision=name, left=left)
        return text("night.rolled_back", language, revision=_named(name, language), left=left)

    async def revisions(self, language: str) -> str:
        """The revisions that are there."""
        found = await asyncio.to_thread(self._revisions.all)
        lines = []
        for revision in found[:10]:
            up, down = await self._store.satisfaction(revision.id)
            state = "serving" if revision.id == self.serving.name else "kept"
            state = state if revision.promoted else "rejected"
            line = text(f"revision.{state}", language, name=revision.id, up=up, down=down)
            lines.append(f"- {line}")
        if self.serving.name == BASE:
            lines.insert(0, text("revision.base_serves", language))
        return "\n".join(lines)

    # One night

    def _begin(self, night: Night) -> None:
        self._cancelled, self._last = False, None
        self._running = asyncio.create_task(self._run(night), name=f"night {night.id}")
        self._running.add_done_callback(_note_fault)

    async def _run(self, night: Night) -> Ending:
        await asyncio.to_thread(sweep, self._revisions.folder, night.id)
        to = await self._report_to(night)
        telling = Telling(self._announcer, to, self._language)
        run = NightRun(
            night,
            store=self._store,
            settings=self._settings,
            engine=self._engine,
            revisions=self._revisions,
            serving=self.serving,
            recipe=self._recipe,
            on_event=lambda event: self._on_event(event, telling),
            on_flood=lambda key, count: self._tell(to, key, n=count),
            now=self._now,
            force=night.started_by == TERMINAL,
        )
        try:
            async with telling:
                ending = await run.run()
        except asyncio.CancelledError:
            if not self._cancelled:
                raise  # the bot stops: the night goes on after the next start
            ending = Ending(NightState.CANCELLED, "cancelled", {})
        await self._end(night, ending, telling)
        await run.clean()
        return ending

    async def _end(self, night: Night, ending: Ending, telling: Telling) -> None:
        await self._store.end_night(
            night.id, ending.state, ending.reason, ending.details, self._now()
        )
        log.info("night ended", id=night.id, state=ending.state.value, reason=ending.reason)
        await telling.end(self.told(ending))
        if ending.state is NightState.PROMOTED:
            await self._tell_fans(str(ending.details["revision"]))

    def _on_event(self, event: Event, telling: Telling) -> None:
        self._last = event
        self._watcher(event)
        if isinstance(event, Progress):
            telling.update(self._progress(self._language))

    def _progress(self, language: str) -> str:
        event = self._last
        if not isinstance(event, Progress):
            return text("night.progress.begin", language)
        loss = "" if event.loss is None else text("night.loss", language, loss=event.loss)
        said = text(f"night.progress.{event.stage}", language, step=event.step, steps=event.steps)
        return f"{said} {loss}".strip()

    async def _tell_fans(self, revision: str) -> None:
        """Tell those who want to know that their lesson was learnt."""
        rows = (await asyncio.to_thread(self._revisions.get, revision)).metadata["rows"]
        ids = [int(name.partition(":")[2]) for name in rows if name.startswith("lesson:")]
        for lesson in await self._store.learnt(ids, revision):
            chat = await self._store.chat(lesson.chat_key)
            if chat is None or chat.kind is not ChatKind.PRIVATE:
                continue
            if await self._store.tells(lesson.fan_key):
                said = text("night.learnt", self._language, question=lesson.question)
                await self._announcer.announce(Destination(chat), Post(said))

    # Saying

    @property
    def _language(self) -> str:
        return self._settings.conversation.language

    def _ended(self, night: Night, language: str) -> str:
        return self._ending(Ending(night.state, night.reason, night.details), language)

    def _ending(self, ending: Ending, language: str) -> str:
        known = f"night.reason.{ending.reason}"
        reason = text(
            known if ending.reason.isidentifier() else ending.reason,
            language,
            **ending.details,
        )
        return text(f"night.ended.{ending.state}", language, reason=reason)

    def _in_words(self, refusal: Refusal, language: str) -> Refusal:
        values: dict[str, Any] = dict(refusal.values)
        if values.get("by") in {SCHEDULE, TERMINAL}:
            values["by"] = text(f"night.by.{values['by']}", language)
        return Refusal(refusal.key, **values)

    async def _report_to(self, night: Night) -> Destination | None:
        if night.started_by == TERMINAL:
            return None  # whoever started it sees how it ends
        if night.report_to is not None:
            return Destination(_CHAT.validate_json(night.report_to))
        return await self._admin_chat()

    async def _admin_chat(self) -> Destination | None:
        """Where the admin reads: as set, else the chat of the last admin command."""
        chosen = self._settings.learning.report_to
        if chosen:
            platform, _, name = chosen.partition(":")
            with suppress(ValueError):
                return Destination(_CHAT.validate_python({"platform": platform, "id": name}))
        kept = await self._store.setting("admin_chat")
        return Destination(_CHAT.validate_json(kept)) if kept else None

    async def _tell_admin(self, key: str, **values: object) -> None:
        await self._tell(await self._admin_chat(), key, **values)

    async def _tell(self, to: Destination | None, key: str, **values: object) -> None:
        log.warning(key, **values)
        if to is not None:
            await self._announcer.announce(to, Post(text(key, self._language, **values)))

    # By the clock

    def _schedule(self) -> None:
        at = time.fromisoformat(self._settings.learning.at)
        self._scheduler.add_job(
            self._fire,
            CronTrigger(hour=at.hour, minute=at.minute, timezone=self._zone),
            id="night",
            coalesce=True,
            max_instances=1,
            replace_existing=True,
            misfire_grace_time=int(LATE.total_seconds()),
        )
        self._scheduler.start()
        self._spawn(self._fire())  # one that was slept through

    async def _fire(self) -> None:
        """Begin the night that is due, if it is and was not begun before."""
        day = due(self._now(), time.fromisoformat(self._settings.learning.at), self._zone)
        if day is None:
            return
        try:
            night = await self._store.begin_night(day, SCHEDULE, None, self._now())
        except Refusal:
            return
        self._begin(night)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(FOLLOW)
            try:
                await self.serving.follow()
            except (FarenseError, OSError) as error:
                log.warning("revision not served", error=str(error))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH)
            try:
                await self.look_at_satisfaction()
            except (FarenseError, OSError) as error:
                log.warning("satisfaction not known", error=str(error))

    async def look_at_satisfaction(self) -> bool:
        """Roll back when fans like the revision in service clearly less than the one before."""
        current, before = self.serving.name, self._revisions.before
        if current == BASE or before is None:
            return False
        was = before if before != BASE else base_label(self._engine.base)
        now_votes = await self._store.satisfaction(current)
        then_votes = await self._store.satisfaction(was)
        if not satisfaction.dropped(then_votes, now_votes):
            return False
        await self.serving.roll_back()
        await self._tell_admin(
            "night.disliked",
            revision=current,
            now=satisfaction.percent(now_votes),
            before=satisfaction.percent(then_votes),
        )
        return True

    def _spawn(self, coroutine: Any) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def due(now: datetime, at: time, zone: ZoneInfo) -> str | None:
    """The day of the night that should have begun by now; None when it is too long ago.

    On the day when clocks change, the hour may be missing: `zone` then takes the next one.
    """
    local = now.astimezone(zone)
    begins = datetime.combine(local.date(), at, zone)
    if local < begins:
        begins = datetime.combine(local.date() - timedelta(days=1), at, zone)
    passed = now - begins.astimezone(UTC)
    return f"{begins:%Y-%m-%d}" if timedelta() <= passed <= LATE else None


def _named(revision: str, language: str) -> str:
    return text("revision.base", language) if revision == BASE else revision


def _note_fault(task: asyncio.Task[Ending]) -> None:
    if not task.cancelled() and (fault := task.exception()):
        log.error("night broke", error=repr(fault))
