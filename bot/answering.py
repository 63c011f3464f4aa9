"""One answer: from a stored question to the text in the chat and the row in the store."""

from __future__ import annotations

import asyncio
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
    Finish,
    Platform,
    QuestionId,
    Queued,
    Request,
    Sampling,
    Usage,
)
from bot.errors import EngineDead, FarenseError, Refusal
from bot.ports import Engine
from bot.prompts import Persona, Prompt, build, with_quote
from bot.store import Store
from bot.work import Work
from config.settings import Settings
from config.texts import text

log = structlog.get_logger(__name__)

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

        Raises EngineDead, and nothing else, when the fan could not be told the outcome.
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
            await self._show(work, question_id, answer_id, stream)
        finally:
            await stream.abandon()

    async def _show(
        self, work: Work, question_id: QuestionId, answer_id: AnswerId, stream: Stream
    ) -> None:
        """Write the answer, or after a crash take the one that was written, and show it."""
        earlier = await self._store.answer(answer_id)
        if earlier is not None and earlier.state in {AnswerState.DONE, AnswerState.STOPPED}:
            await stream.finish(earlier.text)
            return
        draft = Draft()
        try:
            async with work.stoppable():
                await self._write(work, question_id, answer_id, stream, draft)
        except EngineDead:
            await self._close(work, answer_id, stream, draft, AnswerState.INTERRUPTED)
            raise
        except FarenseError as error:
            await self._fail(work, answer_id, stream, error)
        except Exception:
            log.exception("answer broke", id=answer_id)  # a fault of ours stays in this chat
            await self._fail(work, answer_id, stream, FarenseError())
        else:
            state = work.reason or (AnswerState.DONE if draft.finish else AnswerState.STOPPED)
            await self._close(work, answer_id, stream, draft, state)

    async def _write(
        self,
        work: Work,
        question_id: QuestionId,
        answer_id: AnswerId,
        stream: Stream,
        draft: Draft,
    ) -> None:
        """Run the engine and keep `draft` up to date; ends early when the chat is gone."""
        question = await self._store.question(question_id)
        prompt = await self._prompt(work, question_id, question.text)
        sampling = self._sampling(work)
        await self._store.save_prompt(
            answer_id,
            {
                "tokens": len(prompt.tokens),
                "dropped_turns": prompt.dropped,
                "seed": sampling.seed,
                "temperature": sampling.temperature,
            },
        )
        request = Request(
            id=f"answer-{answer_id}",
            fan=work.message.fan.key,
            conversation=str(question.conversation_id),
            tokens=prompt.tokens,
            pinned=self._pinned,
            sampling=sampling,
        )
        waiting = _Waiting(stream, work.message.fan.language)
        async with aclosing(self._engine.generate(request)) as events:
            async for event in events:
                match event:
                    case Queued(position):
                        waiting.at(position)
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

    async def _prompt(self, work: Work, question_id: QuestionId, question: str) -> Prompt:
        status = self._engine.status
        context = min(self._settings.engine.context, status.context)
        reserve = min(self._settings.engine.max_tokens, context // 4)
        history = await self._store.history(question_id)
        asked = with_quote(question, work.message.quoted)
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

    async def _close(
        self, work: Work, answer_id: AnswerId, stream: Stream, draft: Draft, state: AnswerState
    ) -> None:
        """Store how the answer ended, then show it: after a crash it is shown from the store."""
        language = work.message.fan.language
        body = draft.text.strip()
        if state is AnswerState.DONE and not body:
            await self._fail(work, answer_id, stream, Refusal("error.no_words"))
            return
        await self._store.finish_answer(answer_id, text=body, state=state, usage=draft.usage)
        log.info("answer", id=answer_id, state=state.value, **_figures(draft))
        if state is AnswerState.INTERRUPTED:
            shown = f"{body}\n\n" if body else ""
            await stream.finish(shown + text("answer.interrupted", language), buttons=False)
        elif body:
            suffix = "\n\n" + text("answer.long", language) if draft.finish is Finish.LENGTH else ""
            await stream.finish(body + suffix)
        else:
            await stream.finish(text("answer.stopped", language), buttons=False)

    async def _fail(
        self, work: Work, answer_id: AnswerId, stream: Stream, error: FarenseError
    ) -> None:
        log.warning("answer failed", id=answer_id, error=str(error))
        await self._store.finish_answer(
            answer_id, text="", state=AnswerState.FAILED, usage=None, error=error.key
        )
        sentence = text(error.key, work.message.fan.language, **error.values)
        await stream.finish(sentence, buttons=False)


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


class _Waiting:
    """Shows the place in the queue to a fan who waits for longer than a moment."""

    def __init__(self, stream: Stream, language: str) -> None:
        self._stream = stream
        self._language = language
        self._position = 0
        self._timer: asyncio.TimerHandle | None = None
        self._shown = False

    def at(self, position: int) -> None:
        """Note the place; show it at once when a notice is already in the chat."""
        self._position = position
        if self._shown:
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
        self._stream.preview(text("queue.position", self._language, n=self._position))
