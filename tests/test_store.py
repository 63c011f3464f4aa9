"""What the store promises: nothing twice, nothing lost, histories in order, one vote a fan."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from bot import schema
from bot.domain import (
    AnswerId,
    AnswerState,
    Asked,
    Chat,
    ChatKind,
    Fan,
    Message,
    Platform,
    QuestionId,
    Role,
    Source,
    Turn,
    Usage,
    Wanted,
)
from bot.errors import StoreError
from bot.store import Store

NOW = datetime(2026, 11, 24, 3, 30, tzinfo=UTC)
HOUR = timedelta(hours=1)
ANA = Fan(Platform.TELEGRAM, "1", "Ana")
RUI = Fan(Platform.TELEGRAM, "2", "Rui")
CHAT = Chat(Platform.TELEGRAM, "1")
USAGE = Usage("base", 90, 40, 12, 0.1, 0.5, 1.25)

# Any text that Python can hold, half surrogate pairs included.
any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)


def message(update: str, text: str = "Olá", *, fan: Fan = ANA, chat: Chat = CHAT) -> Message:
    return Message(update, chat, fan, text, Source.TELEGRAM_PRIVATE, NOW)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    async with Store.open(tmp_path / "farense.db") as opened:
        yield opened


async def ask(
    store: Store, update: str, text: str, reply: str, parent: AnswerId | None = None
) -> tuple[QuestionId, AnswerId]:
    asked = message(update, text)
    conversation = await store.running_conversation(CHAT, NOW, HOUR)
    question = await store.add_question(conversation, parent, asked, text)
    answer = await store.start_answer(question, asked, persona="leao", model="m", now=NOW)
    await store.finish_answer(answer, text=reply, state=AnswerState.DONE, usage=USAGE)
    return question, answer


# Inbox


async def test_a_message_comes_back_whole_after_a_restart(tmp_path):
    topic = Chat(Platform.TELEGRAM, "-100", ChatKind.GROUP, "45")
    whole = Message(
        "7", topic, RUI, "Olá 🦁", Source.TELEGRAM_GROUP, NOW + timedelta(microseconds=1),
        message_id="70", reply_to="69", quoted="antes", command="outra", attachments=2, handle="h",
    )  # fmt: skip
    async with Store.open(tmp_path / "farense.db") as store:
        assert await store.accept(whole)
    async with Store.open(tmp_path / "farense.db") as store:
        assert await store.pending() == [whole]


async def test_the_same_update_is_taken_once_even_when_done(store):
    assert await store.accept(message("7"))
    assert not await store.accept(message("7", "outra vez"))
    await store.done(message("7"))
    assert not await store.accept(message("7"))
    assert await store.pending() == []


async def test_an_update_id_belongs_to_its_platform(store):
    discord = message("7", chat=Chat(Platform.DISCORD, "1"))
    assert await store.accept(message("7"))
    assert await store.accept(discord)
    await store.done(message("7"))
    assert await store.pending() == [discord]


async def test_a_done_message_leaves_no_words_in_the_database(store, tmp_path):
    await store.accept(message("7", "segredo-do-balneário"))
    await store.done(message("7"))
    await store.backup(tmp_path / "copy.db")
    assert "segredo-do-balneário".encode() not in (tmp_path / "copy.db").read_bytes()


async def test_old_ids_are_forgotten_but_never_work_to_do(store):
    for update, days in (("old", 9), ("waiting", 9), ("fresh", 0)):
        await store.accept(replace(message(update), received_at=NOW - timedelta(days=days)))
    await store.done(message("old"))
    await store.done(message("fresh"))
    assert await store.forget_seen(NOW - timedelta(days=7)) == 1
    assert [waiting.update_id for waiting in await store.pending()] == ["waiting"]
    assert not await store.accept(message("fresh"))


async def test_fifty_tasks_with_the_same_updates_take_each_once(store):
    taken = await asyncio.gather(*(store.accept(message(str(n % 10))) for n in range(50)))
    assert sum(taken) == 10
    assert {waiting.update_id for waiting in await store.pending()} == set("0123456789")


def test_no_text_is_too_odd(tmp_path):
    updates = itertools.count()

    async def walk(store: Store, text: str, quoted: str) -> list[tuple[str, str | None]]:
        odd = replace(message(f"{text}{next(updates)}", text), quoted=quoted)
        assert await store.accept(odd)
        assert not await store.accept(odd)
        (back,) = await store.pending()
        question, answer_id = await ask(store, odd.update_id, text, quoted)
        await store.add_correction(answer_id, ANA, text, source=Source.WEB, now=NOW)
        await store.done(odd)
        assert await store.pending() == []
        answer = await store.last_answer(CHAT)
        assert answer is not None
        kept = (await store.question(question)).text
        return [(text, back.text), (quoted, back.quoted), (text, kept), (quoted, answer.text)]

    @settings(deadline=None)
    @given(text=any_text, quoted=any_text)
    def check(text: str, quoted: str) -> None:
        for written, read in runner.run(walk(store, text, quoted)):
            assert read is not None
            assert read.encode().decode() == read
            assert read == written or any("\ud800" <= char <= "\udfff" for char in written)

    with asyncio.Runner() as runner:
        opened = Store.open(tmp_path / "farense.db")
        store = runner.run(opened.__aenter__())
        check()
        runner.run(opened.__aexit__(None, None, None))


async def test_a_message_of_a_megabyte_is_kept(store):
    await store.accept(message("7", "🦁" * 262_144))
    (back,) = await store.pending()
    assert back.text == "🦁" * 262_144


# Conversations


async def test_a_conversation_runs_until_it_idles_too_long(store):
    first = await store.running_conversation(CHAT, NOW, HOUR)
    assert await store.running_conversation(CHAT, NOW + HOUR, HOUR) == first
    late = replace(message("1"), received_at=NOW + HOUR)
    await store.add_question(first, None, late, "Olá")
    assert await store.running_conversation(CHAT, NOW + 2 * HOUR, HOUR) == first
    later = await store.running_conversation(CHAT, NOW + 3 * HOUR, HOUR)
    assert later != first
    assert await store.running_conversation(CHAT, NOW + 3 * HOUR, HOUR) == later


async def test_a_new_conversation_forgets_what_was_said(store):
    await ask(store, "1", "Olá", "Viva!")
    fresh = await store.new_conversation(CHAT, NOW)
    assert await store.running_conversation(CHAT, NOW, HOUR) == fresh
    assert await store.leaf(fresh) is None
    assert await store.last_answer(CHAT) is None
    assert await store.exchanges(CHAT, ANA.key, 10) == []


async def test_topics_of_one_group_are_conversations_of_their_own(store):
    topics = [Chat(Platform.TELEGRAM, "-1", ChatKind.GROUP, thread) for thread in ("1", "2")]
    ids = [await store.running_conversation(topic, NOW, HOUR) for topic in topics]
    assert len(set(ids)) == 2


async def test_the_leaf_is_the_newest_answer_of_the_newest_answered_question(store):
    question, first = await ask(store, "1", "Um?", "Um.")
    again = await store.start_answer(question, message("2"), persona="p", model="m", now=NOW)
    conversation = (await store.question(question)).conversation_id
    assert again != first
    assert await store.leaf(conversation) == again
    await store.add_question(conversation, again, message("3"), "Dois?")
    assert await store.leaf(conversation) == again


async def test_the_same_message_is_one_question(store):
    question, _ = await ask(store, "1", "Um?", "Um.")
    conversation = await store.new_conversation(CHAT, NOW)
    assert await store.add_question(conversation, None, message("1"), "Um?") == question


async def test_a_question_tells_where_it_came_from(store):
    asked = replace(message("1"), message_id="55", source=Source.TELEGRAM_GROUP)
    conversation = await store.new_conversation(CHAT, NOW)
    kept = await store.question(await store.add_question(conversation, None, asked, "Olá"))
    assert (kept.chat_key, kept.fan_key, kept.message_id) == (CHAT.key, ANA.key, "55")
    assert (kept.source, kept.created_at, kept.parent) == (Source.TELEGRAM_GROUP, NOW, None)


async def test_what_was_never_answered_is_no_part_of_the_history(store):
    _, first = await ask(store, "1", "Um?", "Um.")
    _, failed = await ask(store, "2", "Dois?", "", first)
    last, _ = await ask(store, "3", "Três?", "Três.", failed)
    assert await store.history(last) == [Turn(Role.USER, "Um?"), Turn(Role.ASSISTANT, "Um.")]


# Answers


async def test_an_answer_left_by_a_crash_is_taken_up_again(store):
    question, done = await ask(store, "1", "Um?", "Um.")
    begun = await store.start_answer(question, message("2"), persona="p", model="m", now=NOW)
    await store.finish_answer(begun, text="Do", state=AnswerState.INTERRUPTED, usage=None)
    assert begun == await store.start_answer(
        question, message("2"), persona="q", model="n", now=NOW
    )
    again = await store.answer(begun)
    assert again is not None
    assert (again.state, again.text, again.attempt) == (AnswerState.RUNNING, "", 2)
    assert (again.persona, again.model) == ("q", "n")
    assert done == await store.start_answer(question, message("1"), persona="q", model="n", now=NOW)
    kept = await store.answer(done)
    assert kept is not None
    assert (kept.state, kept.text, kept.usage) == (AnswerState.DONE, "Um.", USAGE)


async def test_an_answer_keeps_what_it_cost_and_where_it_belongs(store):
    question, answer_id = await ask(store, "1", "Um?", "Um.")
    await store.remember_persona("leao", "És o Leão de Faro.")
    await store.save_prompt(answer_id, {"tokens": 90, "nota": "ção"})
    answer = await store.last_answer(CHAT)
    assert answer == await store.answer(answer_id)
    assert answer is not None
    assert (answer.question_id, answer.chat_key, answer.fan_key) == (question, CHAT.key, ANA.key)
    assert (answer.revision, answer.usage, answer.created_at) == ("base", USAGE, NOW)


async def test_an_answer_that_does_not_exist_is_said_so(store):
    for nobody in (AnswerId(404), AnswerId(10**30)):
        assert await store.answer(nobody) is None
        assert await store.votes(nobody) == (0, 0)
        with pytest.raises(StoreError):
            await store.finish_answer(nobody, text="", state=AnswerState.DONE, usage=None)
        with pytest.raises(StoreError):
            await store.vote(nobody, ANA, 1, source=Source.WEB, via="button", now=NOW)
    with pytest.raises(StoreError) as caught:
        await store.record(AnswerId(404), 0, CHAT, None)
    assert caught.value.key == "error.store_missing"
    with pytest.raises(StoreError):
        await store.question(QuestionId(404))


async def test_the_page_reloads_with_the_newest_answers_and_own_votes(store):
    question, first = await ask(store, "1", "Um?", "Um.")
    again = await store.start_answer(question, message("2"), persona="p", model="m", now=NOW)
    await store.vote(again, ANA, 1, source=Source.WEB, via="button", now=NOW)
    await store.vote(again, RUI, -1, source=Source.WEB, via="button", now=NOW)
    conversation = await store.running_conversation(CHAT, NOW, HOUR)
    open_question = await store.add_question(conversation, again, message("3"), "Dois?")
    one, two = await store.exchanges(CHAT, ANA.key, 10)
    assert (one.question_id, one.question, one.vote) == (question, "Um?", 1)
    assert one.answer == await store.answer(again)
    assert (two.question_id, two.question, two.answer, two.vote) == (
        (open_question, "Dois?", None, 0)
    )
    assert await store.exchanges(CHAT, ANA.key, 1) == [two]
    assert first != again


# Delivery


async def test_the_ledger_knows_what_was_sent_and_what_perhaps(store):
    _, answer = await ask(store, "1", "Um?", "Um.")
    await store.record(answer, 1, CHAT, None)
    await store.record(answer, 0, CHAT, None)
    await store.record(answer, 0, CHAT, "70")
    pieces = await store.pieces(answer)
    assert [(piece.piece, piece.message_id) for piece in pieces] == [(0, "70"), (1, None)]


async def test_a_platform_message_leads_to_its_newest_answer(store):
    question, first = await ask(store, "1", "Um?", "Um.")
    again = await store.start_answer(question, message("2"), persona="p", model="m", now=NOW)
    await store.record(first, 0, CHAT, "70")
    assert await store.answer_at(CHAT, "70") == first
    await store.record(again, 0, CHAT, "70")
    assert await store.answer_at(CHAT, "70") == again
    assert await store.answer_at(CHAT, "71") is None
    assert await store.answer_at(Chat(Platform.DISCORD, "1"), "70") is None


async def test_a_reaction_in_a_topic_finds_its_answer_without_naming_the_topic(store):
    _, answer = await ask(store, "1", "Um?", "Um.")
    await store.record(answer, 0, Chat(Platform.TELEGRAM, "-1", ChatKind.GROUP, "45"), "70")
    assert await store.answer_at(Chat(Platform.TELEGRAM, "-1", ChatKind.GROUP), "70") == answer


# Feedback and the rest


async def test_a_vote_changes_and_goes(store):
    _, answer = await ask(store, "1", "Um?", "Um.")

    async def vote(fan: Fan, value: int) -> bool:
        return await store.vote(answer, fan, value, source=Source.WEB, via="button", now=NOW)

    assert [await vote(ANA, value) for value in (0, 1, 1, -1)] == [False, True, False, True]
    assert await vote(RUI, -1)
    assert await store.votes(answer) == (0, 2)
    assert [await vote(ANA, 0), await vote(ANA, 0)] == [True, False]
    assert await store.votes(answer) == (0, 1)


async def test_the_same_correction_counts_once_for_a_fan(store):
    _, answer = await ask(store, "1", "Um?", "Um.")

    async def correct(fan: Fan, text: str) -> int:
        return await store.add_correction(answer, fan, text, source=Source.WEB, now=NOW)

    first = await correct(ANA, "Dois.")
    assert await correct(ANA, "Dois.") == first
    assert len({first, await correct(ANA, "Três."), await correct(RUI, "Dois.")}) == 3
    assert (await store.counts())["corrections"] == 3


async def test_a_guided_reply_finds_the_answer_it_corrects(store):
    _, answer = await ask(store, "1", "Um?", "Um.")
    asked = Asked(Wanted.CORRECTION, str(answer))
    await store.ask_for(CHAT, "80", asked)
    assert await store.asked_for(CHAT, "80") == asked
    assert await store.asked_for(CHAT, "81") is None


async def test_counts_say_how_much_there_is(store):
    _, answer = await ask(store, "1", "Um?", "Um.")
    await store.accept(message("2"))
    await store.remember_fan(RUI, NOW)
    await store.vote(answer, RUI, -1, source=Source.WEB, via="button", now=NOW)
    assert await store.counts() == {
        "questions": 1, "answers": 1, "votes_up": 0, "votes_down": 1, "corrections": 0,
        "pending": 1, "fans": 2,
    }  # fmt: skip


async def test_a_setting_is_kept_and_replaced(store):
    assert await store.setting("discord.commands") is None
    await store.set_setting("discord.commands", "abc")
    await store.set_setting("discord.commands", "def")
    assert await store.setting("discord.commands") == "def"


async def test_a_fans_name_is_never_kept(store, tmp_path):
    secret = replace(ANA, name="Ana-Maria-do-Rio-Seco")
    await store.remember_fan(secret, NOW)
    conversation = await store.new_conversation(CHAT, NOW)
    await store.add_question(conversation, None, message("1", fan=secret), "Olá")
    await store.backup(tmp_path / "copy.db")
    assert b"Rio-Seco" not in (tmp_path / "copy.db").read_bytes()


# Everything together, with restarts


class Life(RuleBasedStateMachine):
    """The store against dictionaries, over any order of events and restarts."""

    answers = Bundle("answers")

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.inbox: dict[str, bool] = {}
        self.turns: dict[AnswerId, list[Turn]] = {}
        self.votes: dict[tuple[AnswerId, str], int] = {}
        self.open()

    def open(self) -> None:
        self.stack = AsyncExitStack()
        path = Path(self.folder.name) / "farense.db"
        self.store = self.runner.run(self.stack.enter_async_context(Store.open(path)))

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.stack.aclose())
            self.runner.close()
            self.folder.cleanup()

    @rule()
    def restart(self) -> None:
        self.runner.run(self.stack.aclose())
        self.open()

    @rule(update=st.sampled_from("abcdef"))
    def accept(self, update: str) -> None:
        new = self.runner.run(self.store.accept(message(update)))
        assert new == (update not in self.inbox)
        self.inbox.setdefault(update, True)

    @rule(update=st.sampled_from("abcdef"))
    def done(self, update: str) -> None:
        self.runner.run(self.store.done(message(update)))
        if update in self.inbox:
            self.inbox[update] = False

    @rule()
    def forget(self) -> None:
        forgotten = self.runner.run(self.store.forget_seen(NOW + HOUR))
        kept = {update: waits for update, waits in self.inbox.items() if waits}
        assert forgotten == len(self.inbox) - len(kept)
        self.inbox = kept

    @rule(
        target=answers, parent=st.none() | answers, text=any_text, reply=st.sampled_from(["", "R"])
    )
    def ask(self, parent: AnswerId | None, text: str, reply: str) -> AnswerId:
        text = text.encode("utf-8", "replace").decode()
        update = f"q{len(self.turns)}"
        question, answer = self.runner.run(ask(self.store, update, text, reply, parent))
        before = self.turns[parent] if parent is not None else []
        assert self.runner.run(self.store.history(question)) == before
        exchange = [Turn(Role.USER, text), Turn(Role.ASSISTANT, reply)] if reply else []
        self.turns[answer] = before + exchange
        return answer

    @rule(answer=answers, fan=st.sampled_from([ANA, RUI]), value=st.sampled_from([-1, 0, 1]))
    def vote(self, answer: AnswerId, fan: Fan, value: int) -> None:
        changed = self.runner.run(
            self.store.vote(answer, fan, value, source=Source.WEB, via="button", now=NOW)
        )
        assert changed == (self.votes.get((answer, fan.key), 0) != value)
        self.votes[answer, fan.key] = value

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        waiting = [update for update, waits in self.inbox.items() if waits]
        assert [m.update_id for m in self.runner.run(self.store.pending())] == waiting
        counts = self.runner.run(self.store.counts())
        values = list(self.votes.values())
        assert (counts["votes_up"], counts["votes_down"]) == (values.count(1), values.count(-1))
        assert counts["answers"] == len(self.turns)


Life.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestLife = Life.TestCase


# Schema


async def test_the_schema_is_what_the_last_migration_made(store, tmp_path):
    """When this fails, the tables changed: append a migration, then pin what it leads to."""
    with closing(sqlite3.connect(tmp_path / "farense.db")) as db:
        tables = db.execute(
            "SELECT sql FROM sqlite_schema WHERE sql <> '' ORDER BY name"
        ).fetchall()
        lists = db.execute("PRAGMA table_list").fetchall()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        columns = {
            name: " ".join(row[1] for row in db.execute(f"PRAGMA table_info({name})"))
            for _, name, kind, _, _, strict in lists
            if kind == "table" and not name.startswith("sqlite_") and strict
        }
    digest = hashlib.sha256("\n".join(sql for (sql,) in tables).encode()).hexdigest()
    assert (version, digest[:16]) == (len(schema.MIGRATIONS), "966e24733950d0ba")
    assert columns == {
        "fans": "key platform language first_seen last_seen tell released",
        "chats": "key platform id thread kind",
        "personas": "version text",
        "inbox": "id platform update_id received_at message",
        "conversations": "id chat_key started_at used_at closed_at",
        "questions": "id conversation_id parent_id fan_key platform update_id message_id source"
        " text quoted created_at",
        "answers": "id question_id platform update_id attempt state text finish error crashes"
        " persona model prompt created_at revision prompt_tokens cached_tokens"
        " completion_tokens queued"
        " first_token total source",
        "deliveries": "answer_id piece chat_key message_id",
        "votes": "answer_id fan_key value source via created_at permission trains",
        "corrections": "id answer_id fan_key text source created_at",
        "settings": "key value",
        "consents": "id fan_key given version source created_at",
        "lessons": "id kind fan_key chat_key source question answer answer_id state confirmed"
        " decided_by decided_at learnt_in created_at",
        "asks": "chat_key message_id what about",
        "nights": "id day started_by report_to state stage reason details revision started_at"
        " ended_at",
    }


async def test_every_reference_can_be_followed_back_without_a_scan(store, tmp_path):
    with closing(sqlite3.connect(tmp_path / "farense.db")) as db:
        names = [row[1] for row in db.execute("PRAGMA table_list") if row[2] == "table"]
        for table in names:
            indexed = {
                db.execute(f"PRAGMA index_info({index[1]})").fetchone()[2]
                for index in db.execute(f"PRAGMA index_list({table})")
            }
            references = {row[3] for row in db.execute(f"PRAGMA foreign_key_list({table})")}
            assert references - indexed <= ({"persona"} if table == "answers" else set()), table
