"""One answer: from a stored question to the text in the chat and the row in the store."""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime

import structlog

from bot.delivery import Delivery, Stream
from bot.domain import (
    CARET,
    AnswerId,
    AnswerState,
    Delta,
    Done,
    EngineStatus,
    Finish,
    Platform,
    QuestionId,
    Queued,
    Request,
    Sampling,
    Usage,
)
from bot.errors import DeliveryFailed, EngineDead, FarenseError, GenerationFailed, explain
from bot.ports import Engine
from bot.prompts import Persona, Prompt, build
from bot.records import Answer, Question
from bot.store import Store
from bot.text import with_quote
from bot.work import Work
from config.settings import Settings
from config.texts import text

log = structlog.get_logger(__name__)

MOST_CRASHES = 3  # after which a question is given up: it may be what the bot dies of
QUEUE_NOTICE = 1.0  # seconds of waiting after which a fan is shown the place in the queue


@dataclass(slots=True)
class Draft:
    """What the model has written so far."""

    text: str = ""
    finish: Finish | None = None
    usage: Usage | None = None


class Answering:
    """Writes answers with the engine and shows them through the deliveries."""

    def __init__(
        self,
        *,
        engine: Engine,
        store: Store,
        settings: Settings,
        persona: Persona,
        deliveries: Mapping[Platform, Delivery],
        now: Callable[[], datetime],
    ) -> None:
        self._engine = engine
        self._store = store
        self._settings = settings
        self._persona = persona
        self._deliveries = deliveries
        self._now = now
        self._encoding = asyncio.Lock()
        self._pinned = 0

    async def answer(self, work: Work, question_id: QuestionId) -> None:
        """Answer a question; the same message again after a crash is answered once.

        Raises EngineDead or DeliveryFailed when the fan is still to be answered, later.
        """
        answer_id = work.answer_id = await self._store.start_answer(
            question_id,
            work.message,
            persona=self._persona.version,
            model=self._engine.status.model,
            now=self._now(),
        )
        stream = self._deliveries[work.message.chat.platform].open(work.to, answer_id)
        try:
            await self._show(work, answer_id, stream)
        finally:
            await stream.abandon()

    async def _show(self, work: Work, answer_id: AnswerId, stream: Stream) -> None:
        """Write the answer, or after a crash take the one that was written, and show it."""
        language = work.message.fan.language
        answer = await self._store.answer(answer_id)
        failure: FarenseError | None = None
        if answer is not None and answer.state is AnswerState.RUNNING:
            failure = await self._compose(work, answer, stream)
            answer = await self._store.answer(answer_id)
        if answer is None:
            return  # erased meanwhile
        work.in_queue = False
        shown = explain(failure, language) if failure else as_shown(answer, language)
        rated = answer.state in {AnswerState.DONE, AnswerState.STOPPED} and bool(answer.text)
        if not await stream.finish(shown, buttons=rated) and not stream.gone.is_set():
            raise DeliveryFailed

    async def _compose(self, work: Work, answer: Answer, stream: Stream) -> FarenseError | None:
        """Have the answer written, and store how it ended before it is shown; returns a failure."""
        draft = Draft()
        try:
            async with work.stoppable():
                await self._write(work, answer, stream, draft)
            await self._keep(work, answer.id, draft)
        except EngineDead:
            # It stays a running answer in the store: the next start writes it.
            words = draft.text.strip(), text("answer.interrupted", work.message.fan.language)
            await stream.finish("\n\n".join(filter(None, words)), buttons=False)
            raise
        except FarenseError as error:
            failure = error
        except Exception:
            log.exception("answer broke", id=answer.id)  # a fault of ours stays in this chat
            failure = FarenseError()
        else:
            return None
        log.warning("answer failed", id=answer.id, error=str(failure))
        await self._store.finish_answer(
            answer.id, text="", state=AnswerState.FAILED, usage=None, error=failure.key
        )
        return failure

    async def _write(self, work: Work, answer: Answer, stream: Stream, draft: Draft) -> None:
        """Run the engine and keep `draft` up to date; ends early when the chat is gone."""
        if answer.crashes >= MOST_CRASHES:
            raise GenerationFailed
        question = await self._store.question(answer.question_id)
        prompt = await self._prompt(question)
        sampling = self._sampling(work)
        await self._store.save_prompt(
            answer.id,
            {
                "tokens": len(prompt.tokens),
                "dropped_turns": prompt.dropped,
                "seed": sampling.seed,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "repetition_penalty": sampling.repetition_penalty,
            },
        )
        request = Request(
            id=f"answer-{answer.id}",
            fan=work.message.fan.key,
            conversation=str(question.conversation_id),
            tokens=prompt.tokens,
            pinned=self._pinned,
            sampling=sampling,
        )
        waiting = _Waiting(stream, self._engine, work.message.fan.language)
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                match event:
                    case Queued() as place:
                        waiting.at(place)
                    case Delta(piece):
                        waiting.over()
                        draft.text += piece
                        if draft.text.strip():
                            stream.preview(draft.text + CARET)
                    case Done(finish, usage):
                        draft.finish, draft.usage = finish, usage
                if stream.gone.is_set():
                    break
        waiting.over()

    async def _prompt(self, question: Question) -> Prompt:
        status = self._engine.status
        context = min(self._settings.engine.context, status.context)
        reserve = min(self._settings.engine.max_tokens, context // 4)
        history = await self._store.history(question.id)
        asked = with_quote(question.text, question.quoted)
        async with self._encoding:  # tokenizers are not promised to be safe in many threads
            if not self._pinned:
                pinned = await asyncio.to_thread(self._engine.encode, [self._persona.turn])
                self._pinned = len(pinned)
            return await asyncio.to_thread(
                build, self._engine.encode, self._persona, history, asked, context - reserve
            )

    def _sampling(self, work: Work) -> Sampling:
        engine = self._settings.engine
        again = work.message.command == "outra"
        return Sampling(
            # A greedy bot asked for another answer would write the same one.
            temperature=max(engine.temperature, 0.7) if again else engine.temperature,
            top_p=engine.top_p,
            repetition_penalty=engine.repetition_penalty,
            max_tokens=engine.max_tokens,
            seed=secrets.randbits(32),
        )

    async def _keep(self, work: Work, answer_id: AnswerId, draft: Draft) -> None:
        state = work.reason or (AnswerState.DONE if draft.finish else AnswerState.STOPPED)
        body = draft.text.strip()
        if state is AnswerState.DONE and not body:
            raise GenerationFailed("error.no_words")
        await self._store.finish_answer(
            answer_id, text=body, state=state, usage=draft.usage, finish=draft.finish
        )
        log.info("answer", id=answer_id, state=state.value, **_figures(draft))


def as_shown(answer: Answer, language: str) -> str:
    """The text of an ended answer as it stands in the chat, with how it ended."""
    note = ""
    if answer.state is AnswerState.INTERRUPTED:
        note = text("answer.interrupted", language)
    elif answer.state is AnswerState.STOPPED and not answer.text:
        note = text("answer.stopped", language)
    elif answer.finish is Finish.LENGTH:
        note = text("answer.long", language)
    return "\n\n".join(filter(None, (answer.text, note)))


def _figures(draft: Draft) -> dict[str, object]:
    """The timing of an answer for the log."""
    if draft.usage is None:
        return {}
    return {
        "queued": round(draft.usage.queued, 3),
        "first_token": round(draft.usage.first_token, 3),
        "total": round(draft.usage.total, 3),
        "tokens": draft.usage.completion_tokens,
        "revision": draft.usage.revision,
    }


def pause_line(status: EngineStatus, language: str) -> str:
    """What a fan reads who has to wait until a paused engine is back."""
    if status.back_in is None:
        return text("queue.paused", language)
    return text("queue.paused_for", language, minutes=math.ceil(status.back_in / 60))


class _Waiting:
    """Shows the place in the queue to a fan who waits for longer than a moment.

    Where the engine is paused it says so at once.
    """

    def __init__(self, stream: Stream, engine: Engine, language: str) -> None:
        self._stream = stream
        self._engine = engine
        self._language = language
        self._place = Queued(0)
        self._timer: asyncio.TimerHandle | None = None
        self._shown = False

    def at(self, place: Queued) -> None:
        """Note the place; show it at once when a notice is already in the chat."""
        self._place = place
        if self._shown or place.held:
            self._show()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(QUEUE_NOTICE, self._show)

    def over(self) -> None:
        """Stop waiting: the answer has begun."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._shown = False

    def _show(self) -> None:
        self._shown = True
        if self._place.held:
            self._stream.preview(pause_line(self._engine.status, self._language))
        else:
            self._stream.preview(text("queue.position", self._language, n=self._place.position))
