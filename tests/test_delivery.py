"""What a fan sees of an answer on its way into a chat, whatever the platform does."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import structlog
from blockbuster import blockbuster_ctx
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.arbiter import Limits
from bot.delivery import Delivery, LedgerPiece
from bot.domain import AnswerId, Asked, Buttons, Chat, ChatKind, Destination, Platform, Post, Wanted
from bot.errors import (
    DeliveryFailed,
    DeliveryUnknown,
    HandleExpired,
    MessageGone,
    NotModified,
    RetryAfter,
    StoreError,
)
from bot.ports import Pace

PRIVATE = Chat(Platform.TELEGRAM, "7")
GROUP = Chat(Platform.TELEGRAM, "-100", ChatKind.GROUP)
TO = Destination(PRIVATE, reply_to="fan-1")
ONE = AnswerId(1)
RUNNING, DONE = Buttons(ONE, running=True), Buttons(ONE)


class _Instant(selectors.DefaultSelector):
    """Waits for nothing: when all tasks wait, the clock jumps to the next timer."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        assert ready or timeout is not None, "everything waits for ever"
        if not ready and timeout:
            self.now = math.nextafter(math.nextafter(self.now + timeout, math.inf), math.inf)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = _Instant()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def run(walk: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a walk in virtual time; nothing in it may block, and its logs are not printed."""
    with (
        structlog.testing.capture_logs(),
        blockbuster_ctx(),
        asyncio.Runner(loop_factory=VirtualLoop) as runner,
    ):
        runner.run(walk())


def now() -> float:
    return asyncio.get_running_loop().time()


LOST = "lost"  # done, but the reply never came
HANGS = "hangs"  # done, and no reply ever
GONE = "gone"


@dataclass
class Call:
    kind: str
    chat: str
    start: float
    end: float
    post: Post
    outcome: object
    to: Destination
    message_id: str | None = None


@dataclass
class FakeTransport:
    """A platform with real effects: messages that are there, and scripted trouble."""

    pace: Pace = field(default_factory=lambda: Pace(private=1.0, group=3.0))
    platform: Platform = Platform.TELEGRAM
    limit: int = 20
    latency: float = 0.25
    script: deque[object] = field(default_factory=deque)  # one outcome a call, then all is well
    edits: deque[object] = field(default_factory=deque)  # the same, for edits only
    calls: list[Call] = field(default_factory=list)
    typed: list[float] = field(default_factory=list)
    messages: dict[str, Post] = field(default_factory=dict)
    nonces: dict[str, str] = field(default_factory=dict)

    def split(self, text: str) -> list[str]:
        return [text[at : at + self.limit] for at in range(0, len(text), self.limit)]

    async def send(self, to: Destination, post: Post) -> str:
        def work() -> str:
            if self.pace.idempotent_sends and post.nonce in self.nonces:
                return self.nonces[post.nonce]
            message_id = f"m{len(self.nonces) + 1}"
            self.messages[message_id] = post
            self.nonces[post.nonce or message_id] = message_id
            return message_id

        return await self._call("send", to, post, self._outcome(), work)

    async def edit(self, to: Destination, message_id: str, post: Post) -> None:
        def work() -> str:
            if message_id not in self.messages:
                raise MessageGone
            if same(self.messages[message_id], post):
                raise NotModified
            self.messages[message_id] = post
            return message_id

        outcome = self.edits.popleft() if self.edits else self._outcome()
        if outcome == GONE:
            self.messages.pop(message_id, None)
        await self._call("edit", to, post, outcome, work)

    async def typing(self, to: Destination) -> None:
        self.typed.append(now())
        raise DeliveryFailed

    def _outcome(self) -> object:
        return self.script.popleft() if self.script else None

    async def _call(
        self, kind: str, to: Destination, post: Post, outcome: object, work: Callable[[], str]
    ) -> str:
        call = Call(kind, to.chat.key, now(), math.inf, post, outcome, to)
        self.calls.append(call)
        try:
            if isinstance(outcome, Exception):
                await asyncio.sleep(self.latency)
                raise outcome
            if outcome == GONE:
                raise MessageGone
            call.message_id = work()
            await asyncio.sleep(math.inf if outcome == HANGS else self.latency)
            if outcome == LOST:
                raise DeliveryUnknown
        finally:
            call.end = now()
        return call.message_id

    @property
    def shown(self) -> list[tuple[str, Buttons | None]]:
        return [(post.text, post.buttons) for post in self.messages.values()]


def same(one: Post, other: Post) -> bool:
    return (one.text, one.buttons) == (other.text, other.buttons)


@dataclass
class FakeLedger:
    rows: dict[int, str | None] = field(default_factory=dict)
    broken: bool = False

    async def pieces(self, answer_id: AnswerId) -> list[LedgerPiece]:
        if self.broken:
            raise StoreError
        return [LedgerPiece(piece, message_id) for piece, message_id in self.rows.items()]

    async def record(
        self, answer_id: AnswerId, piece: int, chat: Chat, message_id: str | None
    ) -> None:
        if self.broken:
            raise StoreError
        self.rows[piece] = message_id


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


def test_a_final_takes_the_place_of_the_preview_with_its_buttons(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("Olá")
            await asyncio.sleep(0.5)
            assert transport.shown == [("Olá", RUNNING)]
            assert await stream.finish("Olá, leão!")
        assert transport.shown == [("Olá, leão!", DONE)]
        assert [call.kind for call in transport.calls] == ["send", "edit"]
        assert transport.calls[0].to.reply_to == "fan-1"

    run(walk)


def test_previews_are_coalesced_to_the_newest_and_keep_the_pace(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            for count in range(50):
                stream.preview("x" * (count // 3 + 1))
                await asyncio.sleep(0.1)
            await stream.finish("x" * 18)
        assert len(transport.calls) <= 6
        starts = [(call.start, call.post.text) for call in transport.calls]
        for start, text in starts[1:-1]:
            assert len(text) == round(start * 10) // 3 + 1

    run(walk)


def test_a_preview_that_changes_nothing_is_not_sent(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            for _ in range(5):
                stream.preview("igual")
                await asyncio.sleep(2)
            assert len(transport.calls) == 1
            await stream.abandon()

    run(walk)


def test_after_a_final_no_preview_comes(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("a")
            await asyncio.sleep(0.1)  # the first call is on its way
            stream.preview("b")
            finishing = asyncio.create_task(stream.finish("fim"))
            await asyncio.sleep(0)
            stream.preview("c")
            assert await finishing
            stream.preview("d")
            await asyncio.sleep(10)
        assert [call.post.text for call in transport.calls] == ["a", "fim"]

    run(walk)


def test_a_long_answer_grows_over_messages_with_buttons_on_the_last_only(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("a" * 15)
            await asyncio.sleep(5)
            stream.preview("a" * 25)
            await asyncio.sleep(5)
            assert transport.shown == [("a" * 20, None), ("a" * 5, RUNNING)]
            await stream.finish("a" * 45)
        assert transport.shown == [("a" * 20, None), ("a" * 20, None), ("a" * 5, DONE)]
        assert [call.kind for call in transport.calls].count("send") == 3
        assert [call.to.reply_to for call in transport.calls if call.kind == "send"] == [
            "fan-1",
            None,
            None,
        ]
        assert ledger.rows == {0: "m1", 1: "m2", 2: "m3"}
        edited = [call.message_id for call in transport.calls if call.kind == "edit"]
        assert edited == ["m1", "m2"]  # a piece that stays as it is costs no call

    run(walk)


def test_a_shorter_final_leaves_no_stale_text(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("a" * 25)
            await asyncio.sleep(5)
            assert await stream.finish("Não consegui.", buttons=False)
        assert transport.shown == [("Não consegui.", None), ("…", None)]

    run(walk)


def test_finals_and_notices_go_before_previews_of_the_same_chat(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            one, two = delivery.open(TO, ONE), delivery.open(TO, AnswerId(2))
            one.preview("um")
            await asyncio.sleep(0.1)
            one.preview("um, mais")
            two.preview("dois")
            notice = asyncio.create_task(delivery.post(TO, Post("aviso")))
            await asyncio.sleep(0)
            assert await two.finish("dois, fim")
            assert await notice == "m2"
            await one.finish("um, fim")
        texts = [call.post.text for call in transport.calls]
        assert texts[:3] == ["um", "aviso", "dois, fim"]
        assert texts[-1] == "um, fim"

    run(walk)


def test_answers_of_one_chat_share_its_pace_and_take_turns(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            streams = [delivery.open(Destination(GROUP), AnswerId(n)) for n in range(1, 4)]
            for round_ in range(12):
                for n, stream in enumerate(streams):
                    stream.preview(f"{n}: {round_}")
                await asyncio.sleep(3.25)
            await asyncio.gather(*(stream.finish("fim") for stream in streams))
        previews = [int(call.post.text[0]) for call in transport.calls if call.post.text != "fim"]
        assert previews[:9] == [0, 1, 2] * 3
        assert_pace(transport)

    run(walk)


def test_a_wait_asked_for_stops_that_chat_only_and_is_kept_exactly(transport, ledger):
    async def walk() -> None:
        transport.script.append(RetryAfter(37.5))
        async with Delivery(transport, ledger) as delivery:
            slow = asyncio.create_task(delivery.open(TO, ONE).finish("devagar"))
            await asyncio.sleep(0.1)
            assert await delivery.open(Destination(GROUP), AnswerId(2)).finish("depressa")
            assert now() < 1
            assert await slow
        refused, taken = (call for call in transport.calls if call.chat == PRIVATE.key)
        assert taken.start == pytest.approx(refused.end + 37.5)
        assert taken.start >= refused.end + 37.5

    run(walk)


def test_a_failing_final_is_tried_with_growing_waits_and_then_given_up(transport, ledger):
    async def walk() -> None:
        transport.script.extend(DeliveryFailed() for _ in range(5))
        async with Delivery(transport, ledger, Limits(tries=5)) as delivery:
            stream = delivery.open(TO, ONE)
            assert not await stream.finish("fim")
            assert not stream.gone.is_set()
            assert await delivery.post(TO, Post("ainda aqui")) == "m1"
        starts = [call.start for call in transport.calls[:5]]
        waits = [after - before for before, after in pairwise(starts)]
        assert waits == sorted(waits)
        assert waits[-1] > 4 * waits[0]

    run(walk)


def test_waits_that_the_platform_asks_for_are_no_failures(transport, ledger):
    async def walk() -> None:
        transport.script.extend(RetryAfter(600) for _ in range(20))
        async with Delivery(transport, ledger, Limits(tries=2)) as delivery:
            assert await delivery.open(TO, ONE).finish("fim")
        assert transport.shown == [("fim", DONE)]

    run(walk)


@pytest.mark.parametrize("trouble", [LOST, HANGS, RuntimeError("adapter broke")])
def test_a_preview_perhaps_shown_gets_a_final_of_its_own(transport, ledger, trouble):
    async def walk() -> None:
        transport.script.append(trouble)
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("talvez")
            await asyncio.sleep(40)
            stream.preview("mais")
            await asyncio.sleep(5)
            assert len(transport.calls) == 1
            assert await stream.finish("fim")
        assert transport.shown[-1] == ("fim", DONE)
        assert len(transport.calls) == 2

    run(walk)


def test_a_final_sent_while_a_preview_gets_lost_is_sent_all_the_same(transport, ledger):
    async def walk() -> None:
        transport.script.append(LOST)
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("talvez")
            await asyncio.sleep(0.1)
            assert await stream.finish("fim")
        assert transport.shown == [("talvez", RUNNING), ("fim", DONE)]

    run(walk)


@pytest.mark.parametrize("trouble", [LOST, HANGS])
def test_a_final_perhaps_sent_is_not_sent_again(transport, ledger, trouble):
    async def walk() -> None:
        transport.script.append(trouble)
        async with Delivery(transport, ledger) as delivery:
            assert await delivery.open(TO, ONE).finish("fim")
        assert transport.shown == [("fim", DONE)]
        assert now() < 35

    run(walk)


def test_where_a_nonce_makes_it_harmless_a_lost_send_is_made_again(transport, ledger):
    async def walk() -> None:
        transport.pace = Pace(1, 3, idempotent_sends=True)
        transport.script.extend([LOST, DeliveryUnknown()])
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("talvez")
            await asyncio.sleep(1)
            assert await stream.finish("fim")
            assert await delivery.post(TO, Post("aviso", nonce="n")) == "m2"
        assert transport.shown == [("fim", DONE), ("aviso", None)]
        assert ledger.rows == {0: "m1"}

    run(walk)


def test_an_edit_whose_reply_was_lost_is_made_again(transport, ledger):
    async def walk() -> None:
        transport.edits.extend([DeliveryUnknown(), HANGS])
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("a")
            await asyncio.sleep(2)
            assert await stream.finish("fim")
        assert transport.shown == [("fim", DONE)]
        assert len(transport.calls) == 4

    run(walk)


def test_an_answer_deleted_by_someone_comes_once_more_as_the_final(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("a")
            await asyncio.sleep(2)
            transport.edits.append(GONE)
            stream.preview("ab")
            await asyncio.sleep(2)
            stream.preview("abc")
            await asyncio.sleep(2)
            assert len(transport.calls) == 2
            assert not stream.gone.is_set()
            assert await stream.finish("fim")
        assert transport.shown == [("fim", DONE)]
        assert ledger.rows == {0: "m2"}

    run(walk)


def test_each_piece_has_its_own_tries(transport, ledger):
    async def walk() -> None:
        transport.script.extend([DeliveryFailed(), DeliveryFailed(), None] * 3)
        async with Delivery(transport, ledger, Limits(tries=3)) as delivery:
            assert await delivery.open(TO, ONE).finish("a" * 50)
        assert len(transport.messages) == 3

    run(walk)


def test_a_preview_that_fails_is_not_tried_again_and_does_not_delay_the_final(transport, ledger):
    async def walk() -> None:
        transport.script.extend(DeliveryFailed() for _ in range(8))
        async with Delivery(transport, ledger, Limits(tries=3)) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("a")
            await asyncio.sleep(30)
            assert len(transport.calls) == 1
            while len(transport.calls) < 8:
                stream.preview("ab")
                await asyncio.sleep(1)
            asked = now()
            assert await stream.finish("fim")
            assert now() - asked < 2

    run(walk)


def test_an_edit_perhaps_made_is_not_taken_for_one_that_was_not(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("a" * 25)
            await asyncio.sleep(5)
            transport.edits.append(LOST)
            stream.preview("b" * 25)
            await asyncio.sleep(0.9)
            assert await stream.finish("a" * 25)
        assert transport.shown == [("a" * 20, None), ("a" * 5, DONE)]

    run(walk)


def test_an_interaction_knows_no_nonces(transport, ledger):
    async def walk() -> None:
        transport.pace = Pace(1, 3, idempotent_sends=True)
        transport.script.extend([LOST, LOST])
        async with Delivery(transport, ledger) as delivery:
            to = Destination(PRIVATE, handle="token")
            assert await delivery.open(to, ONE).finish("fim")
            assert await delivery.post(to, Post("aviso", nonce="n")) is None
        assert len(transport.calls) == 2

    run(walk)


def test_an_answer_deleted_twice_is_not_pressed_on_anybody(transport, ledger):
    async def walk() -> None:
        transport.pace = Pace(1, 3, idempotent_sends=True)
        transport.edits.extend([GONE, GONE])
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("a")
            await asyncio.sleep(2)
            transport.script.append(LOST)
            assert await stream.finish("fim")
        assert not transport.messages
        assert len(transport.nonces) == 2

    run(walk)


def test_a_chat_that_is_gone_is_told_to_who_writes_the_answer(transport, ledger):
    async def walk() -> None:
        transport.script.extend([GONE, GONE])
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            stream.preview("a")
            await stream.gone.wait()
            stream.preview("ab")
            assert not await stream.finish("fim")
            assert await delivery.post(TO, Post("aviso")) is None
        assert len(transport.calls) == 2

    run(walk)


def test_an_expired_handle_is_dropped_and_the_chat_itself_used(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(Destination(PRIVATE, handle="token"), ONE)
            stream.preview("a")
            await asyncio.sleep(2)
            transport.edits.append(HandleExpired())
            assert await stream.finish("fim")
        assert [call.to.handle for call in transport.calls] == ["token", "token", None]
        assert transport.shown == [("fim", DONE)]

    run(walk)


def test_after_a_crash_known_messages_are_edited_and_doubtful_ones_sent_anew(transport):
    async def walk() -> None:
        transport.messages["old"] = Post("a" * 20)
        ledger = FakeLedger({0: "old", 1: None})
        async with Delivery(transport, ledger) as delivery:
            assert await delivery.open(TO, ONE).finish("b" * 25)
        assert transport.shown == [("b" * 20, None), ("b" * 5, DONE)]
        assert ledger.rows == {0: "old", 1: "m1"}

    run(walk)


def test_a_crash_after_everything_was_shown_shows_nothing_twice(transport):
    async def walk() -> None:
        transport.messages["m1"] = Post("fim", DONE)
        async with Delivery(transport, FakeLedger({0: "m1"})) as delivery:
            assert await delivery.open(TO, ONE).finish("fim")
        assert transport.shown == [("fim", DONE)]

    run(walk)


def test_a_send_is_in_the_ledger_before_it_is_made(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            finishing = asyncio.create_task(delivery.open(TO, ONE).finish("fim"))
            await asyncio.sleep(0.1)
            assert ledger.rows == {0: None}
            await finishing
            assert ledger.rows == {0: "m1"}

    run(walk)


def test_a_broken_ledger_keeps_no_fan_from_the_answer(transport):
    async def walk() -> None:
        async with Delivery(transport, FakeLedger(broken=True)) as delivery:
            assert await delivery.open(TO, ONE).finish("fim")
        assert transport.shown == [("fim", DONE)]

    run(walk)


def test_the_typing_sign_is_repeated_until_there_is_text(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            stream = delivery.open(TO, ONE)
            await asyncio.sleep(9)
            stream.preview("a")
            await asyncio.sleep(20)
            await stream.finish("fim")
        assert transport.typed == pytest.approx([0, 4, 8])

    run(walk)


def test_a_long_notice_is_split_and_keeps_its_order(transport, ledger):
    async def walk() -> None:
        transport.script.extend([None, DeliveryFailed()])
        async with Delivery(transport, ledger) as delivery:
            assert (
                await delivery.post(TO, Post("a" * 20 + "b" * 20 + "c", ask=Asked(Wanted.LESSON)))
                == "m3"
            )
        assert [post.text[0] for post in transport.messages.values()] == ["a", "b", "c"]
        assert [post.ask for post in transport.messages.values()] == [
            None,
            None,
            Asked(Wanted.LESSON),
        ]

    run(walk)


def test_the_exit_shows_finals_and_drops_previews(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            one, two = delivery.open(TO, ONE), delivery.open(TO, AnswerId(2))
            one.preview("a")
            await asyncio.sleep(0.1)
            two.preview("b")
            finishing = asyncio.create_task(one.finish("fim"))
            await asyncio.sleep(0)
        assert await finishing
        assert transport.shown == [("fim", DONE)]
        assert not await two.finish("tarde")
        with pytest.raises(RuntimeError):
            delivery.open(TO, ONE)

    run(walk)


def test_the_exit_waits_for_a_dead_platform_no_longer_than_its_deadline(transport, ledger):
    async def walk() -> None:
        transport.script.append(HANGS)
        async with Delivery(transport, ledger, Limits(drain=3)) as delivery:
            finishing = asyncio.create_task(delivery.open(TO, ONE).finish("fim"))
            await asyncio.sleep(1)
        assert not await finishing
        assert now() == pytest.approx(4)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(walk)


def test_a_cancelled_wait_does_not_cancel_the_final(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            finishing = asyncio.create_task(delivery.open(TO, ONE).finish("fim"))
            posting = asyncio.create_task(delivery.post(TO, Post("aviso")))
            await asyncio.sleep(0)
            finishing.cancel()
            posting.cancel()
            await asyncio.sleep(10)
            assert not delivery._chats
        assert transport.shown == [("fim", DONE), ("aviso", None)]

    run(walk)


def test_a_thousand_chats_leave_nothing_behind(transport, ledger):
    async def one(delivery: Delivery, n: int) -> None:
        to = Destination(Chat(Platform.TELEGRAM, str(n)))
        stream = delivery.open(to, AnswerId(n))
        stream.preview("olá")
        await asyncio.sleep(3)
        assert await stream.finish("fim")

    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            await asyncio.gather(*(one(delivery, n) for n in range(1000)))
            await asyncio.sleep(5)
            assert not delivery._chats
            assert asyncio.all_tasks() == {asyncio.current_task()}
        assert len(transport.messages) == 1000

    run(walk)


def test_the_pace_outlives_an_idle_arbiter(transport, ledger):
    async def walk() -> None:
        async with Delivery(transport, ledger) as delivery:
            await delivery.post(Destination(GROUP), Post("um"))
            await asyncio.sleep(1)
            await delivery.post(Destination(GROUP), Post("dois"))
        assert_pace(transport)

    run(walk)


def test_no_log_holds_a_fans_text(transport, ledger):
    async def walk() -> None:
        transport.script.extend([ValueError("segredo"), GONE])
        with structlog.testing.capture_logs() as logs:
            async with Delivery(transport, ledger) as delivery:
                await delivery.open(TO, ONE).finish("segredo")
                await delivery.open(TO, AnswerId(2)).finish("segredo")
        assert {entry["event"] for entry in logs} == {"delivery.defect", "delivery.gave_up"}
        assert "segredo" not in str(logs)

    run(walk)


def assert_pace(transport: FakeTransport) -> None:
    for chat in {call.chat for call in transport.calls}:
        calls = [call for call in transport.calls if call.chat == chat]
        pace = transport.pace.group if chat == GROUP.key else transport.pace.private
        for before, after in pairwise(calls):
            wait = before.outcome.seconds if isinstance(before.outcome, RetryAfter) else 0
            assert after.start - before.end >= max(pace, wait) - 1e-9


FAILURES = st.one_of(
    st.none(),
    st.builds(RetryAfter, st.integers(1, 90)),
    st.builds(DeliveryFailed),
)
LOSSES = st.one_of(FAILURES, st.just(LOST), st.just(HANGS), st.builds(DeliveryUnknown))
TEXTS = st.text("abc", min_size=1, max_size=70)
STEPS = st.lists(st.tuples(st.integers(1, 70), st.floats(0, 5)), max_size=8)


@settings(deadline=None, max_examples=200)
@given(
    script=st.lists(FAILURES, max_size=12),
    edits=st.lists(LOSSES, max_size=8),
    steps=STEPS,
    final=TEXTS,
    chat=st.sampled_from([PRIVATE, GROUP]),
)
def test_whatever_happens_the_final_is_shown_exactly_once(script, edits, steps, final, chat):
    check_shown_once(FakeTransport(script=deque(script), edits=deque(edits)), steps, final, chat)


@settings(deadline=None, max_examples=200)
@given(script=st.lists(LOSSES, max_size=12), steps=STEPS, final=TEXTS)
def test_with_nonces_lost_sends_are_harmless_too(script, steps, final):
    pace = Pace(private=1.0, group=3.0, idempotent_sends=True)
    check_shown_once(FakeTransport(pace=pace, script=deque(script)), steps, final, PRIVATE)


def check_shown_once(
    transport: FakeTransport, steps: list[tuple[int, float]], final: str, chat: Chat
) -> None:
    finished: list[float] = []

    async def walk() -> None:
        async with Delivery(transport, FakeLedger(), Limits(tries=50)) as delivery:
            stream = delivery.open(Destination(chat), ONE)
            for size, pause in steps:
                stream.preview(final[:size])
                await asyncio.sleep(pause)
            finished.append(now())
            assert await stream.finish(final)

    run(walk)
    pieces = transport.split(final)
    assert transport.shown == [*((piece, None) for piece in pieces[:-1]), (pieces[-1], DONE)]
    assert_pace(transport)
    late = [call for call in transport.calls if call.start > finished[0]]
    assert RUNNING not in [call.post.buttons for call in late]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Nothing is left of a test's logging set-up."""
    yield
    structlog.reset_defaults()
