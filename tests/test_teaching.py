"""What fans teach: consent, lessons and their review, as fans and admins see it."""

from __future__ import annotations

import sqlite3
from contextlib import asynccontextmanager, closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot.domain import Action, ChatKind, Fan, Language, Platform, Post, Press, Role, Source, Tap
from bot.learning import LessonState
from bot.rules import RULES, Grant, Need, teachable
from bot.service import ChatService
from bot.store import Store
from bot.teaching import split_lesson
from config.settings import load_settings
from config.texts import text
from engine.echo import EchoEngine
from tests.fakes import Board, a_group, a_message

ADMIN = "telegram:9"


class World:
    def __init__(self, service, store, boards):
        self.service, self.store, self.boards = service, store, boards

    async def say(self, said="", *, source=Source.TELEGRAM_PRIVATE, fan="1", **more) -> Post:
        """Send something and wait for the reply."""
        platform = Platform(source.value.split("_")[0])
        board = self.boards[platform]
        before = len(board.messages)
        more.setdefault("who", Fan(platform, fan))
        chat = more.pop("chat", None) or a_message("", fan=fan).chat
        chat = type(chat)(platform, chat.id, chat.kind, chat.thread)
        await self.service.receive(a_message(said, chat=chat, source=source, **more))
        await board.until(lambda board: len(board.finals()) + len(board.messages) > before)
        await board.until(lambda board: self.ended(board, before))
        return list(board.messages.values())[-1]

    @staticmethod
    def ended(board, before):
        new = list(board.messages.values())[before:]
        return bool(new) and not any(post.buttons and post.buttons.running for post in new)

    async def tap(self, data, *, source=Source.TELEGRAM_PRIVATE, fan="1", update="t"):
        platform = Platform(source.value.split("_")[0])
        chat = a_message("", fan=fan).chat
        chat = type(chat)(platform, chat.id)
        return await self.service.tap(Tap(data, Fan(platform, fan), chat, source, update))

    async def vote(self, post, *, source=Source.TELEGRAM_PRIVATE, fan="1") -> Post | None:
        """Vote, and wait for the card if there is one."""
        platform = Platform(source.value.split("_")[0])
        chat = a_message("", fan=fan).chat
        chat = type(chat)(platform, chat.id)
        press = Press(
            Action.UP, post.buttons.answer_id, Fan(platform, fan), chat, source, f"v{fan}"
        )
        board = self.boards[platform]
        before = len(board.messages)
        await self.service.press(press)
        while self.service._tasks:
            await next(iter(self.service._tasks))
        return list(board.messages.values())[-1] if len(board.messages) > before else None

    async def rows(self, sql):
        return [tuple(row) for row in await self.store._read(sql)]


@asynccontextmanager
async def a_world(home, **learning):
    settings = load_settings(home, admins=(ADMIN,), learning=learning, engine={"temperature": 0})
    boards = {p: Board(p) for p in (Platform.TELEGRAM, Platform.DISCORD, Platform.WEB)}
    async with Store.open(settings.database) as store, EchoEngine(settings.engine) as echo:
        service = ChatService(echo, store, settings)
        for board in boards.values():
            service.attach(board)
        async with service:
            yield World(service, store, boards)


@pytest.fixture
async def world(tmp_path):
    async with a_world(tmp_path) as world:
        yield world


def data_of(post: Post) -> list[str]:
    return [choice.data for choice in post.choices]


async def test_the_first_vote_asks_once_whether_the_bot_may_learn(world):
    first, second = [await world.say(said) for said in ("Olá", "Olá outra vez")]
    card = await world.vote(first)
    assert card.text == text("learn.ask")
    assert len(card.choices) == 3
    assert await world.vote(second) is None
    assert await world.rows("SELECT sum(trains) FROM votes") == [(0,)]


async def test_a_yes_lets_votes_train_and_a_no_takes_them_back(world):
    post = await world.say("Olá")
    card = await world.vote(post)
    outcome = await world.tap(data_of(card)[0])
    assert outcome.post.text == text("learn.yes")
    assert not outcome.post.choices
    assert await world.rows("SELECT trains FROM votes") == [(1,)]
    await world.say("não", command="aprender")
    assert await world.rows("SELECT trains FROM votes") == [(0,)]
    assert await world.store.rated_answers() == []
    await world.say("sim", command="aprender")
    (rated,) = await world.store.rated_answers()
    assert (rated.value, rated.turns[-1].text) == (1, "Olá")


async def test_no_answer_means_no(world):
    await world.vote(await world.say("Olá"))
    consent = await world.store.consent("telegram:1")
    assert consent.given is None
    assert not consent.holds
    assert await world.store.rated_answers() == []


async def test_votes_in_groups_count_and_do_not_train(world):
    await world.say("sim", command="aprender")
    board = world.boards[Platform.TELEGRAM]
    group = a_group()
    await world.say("Olá", source=Source.TELEGRAM_GROUP, chat=group)
    chat = type(group)(Platform.TELEGRAM, group.id, ChatKind.GROUP)
    press = Press(
        Action.UP,
        board.finals()[-1].buttons.answer_id,
        Fan(Platform.TELEGRAM, "1"),
        chat,
        Source.TELEGRAM_GROUP,
        "v",
    )
    await world.service.press(press)
    assert await world.rows("SELECT value, trains FROM votes") == [(1, 0)]


async def test_discord_votes_train_only_when_the_admin_turns_them_on(tmp_path):
    for switched in (False, True):
        async with a_world(tmp_path / str(switched), discord_votes=switched) as world:
            source = Source.DISCORD_COMMAND
            await world.say("sim", command="aprender", source=source)
            post = await world.say("Olá", command="perguntar", source=source)
            await world.vote(post, source=source)
            assert await world.rows("SELECT trains FROM votes") == [(int(switched),)]


async def test_a_lesson_on_telegram_is_confirmed_and_then_waits_for_an_admin(world):
    card = await world.say("Quem é o rival? O Olhanense.", command="ensinar")
    assert "Olhanense" in card.text
    assert await world.store.lessons() == []
    outcome = await world.tap(data_of(card)[0])
    assert outcome.post.text == text("lesson.kept")
    (lesson,) = await world.store.lessons()
    assert (lesson.question, lesson.answer) == ("Quem é o rival?", "O Olhanense.")
    assert (lesson.state, lesson.confirmed) == (LessonState.PENDING, True)
    assert (await world.store.consent("telegram:1")).holds


async def test_a_lesson_that_its_fan_does_not_confirm_is_not_learnt(world):
    card = await world.say("Quem és? O Leão.", command="ensinar")
    await world.tap(data_of(card)[1])
    await world.tap(data_of(card)[0], update="t2")
    assert await world.store.lessons() == []


async def test_only_its_own_fan_confirms_a_lesson(world):
    card = await world.say("Quem és? O Leão.", command="ensinar")
    outcome = await world.tap(data_of(card)[0], fan="2")
    assert outcome.toast == text("refusal.not_yours")
    assert outcome.post is None
    assert await world.store.lessons() == []


async def test_teaching_without_a_text_is_explained_and_the_reply_is_a_lesson(world):
    asked = await world.say(command="ensinar")
    assert asked.ask
    message_id = world.boards[Platform.TELEGRAM].id_of(asked)
    card = await world.say("Quem és?\nO Leão de Faro.", reply_to=message_id)
    assert "**Pergunta:** Quem és?" in card.text


@pytest.mark.parametrize("source", [Source.TELEGRAM_GROUP, Source.DISCORD_MESSAGE])
async def test_where_the_rules_forbid_it_nothing_can_be_taught(world, source):
    post = await world.say("Quem és? O Leão.", command="ensinar", source=source)
    assert post.text == text("refusal.teach_elsewhere")
    assert await world.rows("SELECT count(*) FROM lessons") == [(0,)]


async def test_a_correction_of_ones_own_question_becomes_a_lesson(world):
    source = Source.WEB
    await world.say("sim", command="aprender", source=source)
    await world.say("Quem és?", source=source)
    said = await world.say("O Leão de Faro.", command="corrigir", source=source)
    assert said.text == text("toast.corrected")
    (lesson,) = await world.store.lessons()
    assert (lesson.question, lesson.answer) == ("Quem és?", "O Leão de Faro.")
    assert lesson.state is LessonState.PENDING


async def test_a_correction_is_learnt_with_what_was_said_before_it(world):
    source = Source.WEB
    await world.say("sim", command="aprender", source=source)
    await world.say("Quem foi Hassan?", source=source)
    await world.say("E quantos golos marcou?", source=source)
    await world.say("Marcou 21 golos.", command="corrigir", source=source)
    (lesson,) = await world.store.lessons()
    assert lesson.question == "E quantos golos marcou?"
    assert [turn.text for turn in lesson.turns][:1] == ["Quem foi Hassan?"]
    assert [turn.role for turn in lesson.turns] == [Role.USER, Role.ASSISTANT]


async def test_what_somebody_else_asked_trains_only_with_their_yes(world):
    post = await world.say("Quem és?", fan="1", source=Source.WEB)
    await world.say("sim", command="aprender", fan="2", source=Source.WEB)
    here = type(a_message("").chat)(Platform.WEB, a_message("", fan="1").chat.id)
    fan = Fan(Platform.WEB, "2")
    await world.service.press(Press(Action.UP, post.buttons.answer_id, fan, here, Source.WEB, "v2"))
    assert await world.rows("SELECT trains FROM votes") == [(1,)]
    assert await world.store.rated_answers() == []
    await world.say("sim", command="aprender", fan="1", source=Source.WEB)
    (rated,) = await world.store.rated_answers()
    assert rated.fan_key == "web:2"


async def test_a_correction_on_a_discord_mention_is_kept_and_never_learnt(world):
    source = Source.DISCORD_MESSAGE
    await world.say("sim", command="aprender", source=Source.DISCORD_COMMAND)
    post = await world.say("Quem és?", source=source)
    press = Press(
        Action.FIX,
        post.buttons.answer_id,
        Fan(Platform.DISCORD, "1"),
        type(a_message("").chat)(Platform.DISCORD, "1"),
        Source.DISCORD_COMMAND,
        "c",
    )
    assert (await world.service.correct(press, "O Leão.")).done
    assert await world.rows("SELECT count(*) FROM corrections") == [(1,)]
    assert await world.rows("SELECT count(*) FROM lessons") == [(0,)]


async def teach(world, *pairs, fan="1"):
    for question, answer in pairs:
        card = await world.say(f"{question}\n{answer}", command="ensinar", fan=fan)
        await world.tap(data_of(card)[0], fan=fan)


async def test_an_admin_reviews_one_card_after_the_other(world):
    await teach(world, ("Um?", "Sim, um."), ("Dois?", "Sim, dois."), ("Três?", "Sim, três."))
    card = await world.say(command="rever", fan="9")
    assert "Um?" in card.text
    approve, _, _ = data_of(card)
    outcome = await world.tap(approve, fan="9")
    assert outcome.toast == text("review.approved")
    assert "Dois?" in outcome.post.text
    _, reject, _ = data_of(outcome.post)
    outcome = await world.tap(reject, fan="9", update="t2")
    assert "Três?" in outcome.post.text
    edit = Tap(
        data_of(outcome.post)[2],
        Fan(Platform.TELEGRAM, "9"),
        a_message("").chat,
        Source.TELEGRAM_PRIVATE,
        "t3",
    )
    outcome = await world.service.fill(edit, "Sim, são três.")
    assert outcome.post.text == text("review.none")
    assert await world.rows("SELECT answer, state FROM lessons ORDER BY id") == [
        ("Sim, um.", "approved"),
        ("Sim, dois.", "rejected"),
        ("Sim, são três.", "approved"),
    ]


async def test_editing_by_a_guided_reply(world):
    await teach(world, ("Um?", "Sim, um."))
    card = await world.say(command="rever", fan="9")
    await world.tap(data_of(card)[2], fan="9")
    board = world.boards[Platform.TELEGRAM]
    asked = list(board.messages.values())[-1]
    assert asked.ask
    post = await world.say("Sim, é um.", fan="9", reply_to=board.id_of(asked))
    assert post.text == text("review.none")
    assert (await world.store.lessons())[0].answer == "Sim, é um."


async def test_nobody_else_reviews(world):
    await teach(world, ("Um?", "Sim, um."))
    assert (await world.say(command="rever")).text == text("refusal.admins_only")
    for data in ("ra:1", "rr:1", "?re:1", "fl:1", "fr:1"):
        assert (await world.tap(data)).toast == text("refusal.admins_only")
    tap = Tap(
        "?re:1", Fan(Platform.TELEGRAM, "1"), a_message("").chat, Source.TELEGRAM_PRIVATE, "x"
    )
    assert (await world.service.fill(tap, "Não.")).toast == text("refusal.admins_only")
    assert (await world.store.lessons())[0].state is LessonState.PENDING


async def test_a_decision_is_made_once(world):
    await teach(world, ("Um?", "Sim, um."))
    await world.tap("ra:1", fan="9")
    assert (await world.tap("rr:1", fan="9")).toast == text("review.was_decided")
    assert (await world.store.lessons())[0].state is LessonState.APPROVED


async def a_flood(world, count=4, fan="1"):
    """Lessons of one fan, set apart as a night does it; the card that an admin gets."""
    await teach(world, *((f"Pergunta {n}?", f"Mentira {n}.") for n in range(count)), fan=fan)
    mine = [one.id for one in await world.store.lessons() if one.fan_key == f"telegram:{fan}"]
    assert await world.store.quarantine(mine) == count
    return await world.say(command="rever", fan="9")


async def test_an_admin_sees_a_flood_first_and_lets_it_back_into_the_queue(world):
    await teach(world, ("Um?", "Sim, um."), fan="2")
    card = await a_flood(world)
    assert "4" in card.text
    assert [f"Pergunta {n}?" in card.text for n in range(4)] == [True, True, True, False]
    assert [choice.label for choice in card.choices] == [
        text("choice.release"),
        text("choice.reject_all"),
    ]
    outcome = await world.tap(data_of(card)[0], fan="9")
    assert outcome.toast == text("review.released", n=4)
    assert "Um?" in outcome.post.text
    assert len(await world.store.lessons()) == 5
    released = {one.fan_key: one.released is not None for one in await world.store.standings()}
    assert (released["telegram:1"], released["telegram:2"]) == (True, False)


async def test_an_admin_rejects_a_whole_flood_and_nothing_else(world):
    await teach(world, ("Um?", "Sim, um."), fan="2")
    card = await a_flood(world)
    outcome = await world.tap(data_of(card)[1], fan="9")
    assert outcome.toast == text("review.rejected_all", n=4)
    assert "Um?" in outcome.post.text
    decided = "SELECT DISTINCT fan_key, state, decided_by FROM lessons ORDER BY fan_key"
    assert await world.rows(decided) == [
        ("telegram:1", "rejected", ADMIN),
        ("telegram:2", "pending", None),
    ]


async def test_floods_are_decided_one_fan_after_the_other_and_once(world):
    first = await a_flood(world)
    assert (await a_flood(world, fan="2")).text == first.text
    outcome = await world.tap(data_of(first)[1], fan="9")
    assert data_of(outcome.post) != data_of(first)
    again = await world.tap(data_of(first)[0], fan="9", update="t2")
    assert again.toast == text("review.was_decided")
    assert await world.rows("SELECT count(*) FROM fans WHERE released IS NOT NULL") == [(0,)]


async def test_a_flooding_question_is_shown_in_one_short_line(world):
    await teach(world, ("# Título " * 50, "Não."))
    await world.store.quarantine([1])
    card = await world.say(command="rever", fan="9")
    (line,) = [line for line in card.text.splitlines() if line.startswith("- ")]
    assert len(line) < 210


async def test_what_a_fan_took_back_is_no_flood_to_look_at(world):
    await a_flood(world)
    await world.say("não", command="aprender")
    assert (await world.say(command="rever", fan="9")).text == text("review.none")


async def test_what_an_admin_teaches_needs_no_second_look(world):
    await teach(world, ("Um?", "Sim, um."), fan="9")
    (lesson,) = await world.store.lessons()
    assert (lesson.state, lesson.decided_by) == (LessonState.APPROVED, ADMIN)


async def test_a_fan_who_says_no_takes_lessons_back(world):
    await teach(world, ("Um?", "Sim, um."))
    await world.tap("ra:1", fan="9")
    await world.say("não", command="aprender")
    assert await world.store.lessons() == []
    await world.say("sim", command="aprender")
    assert await world.store.lessons() == []


@pytest.mark.parametrize("data", ["", "ra:", "ra:x", "ly:999", "zz:1", "?re:99", "cy" * 30, "ly:²"])
async def test_forged_choices_do_nothing(world, data):
    outcome = await world.tap(data, fan="9")
    assert outcome.toast == text("refusal.choice_gone")
    assert outcome.post is None


async def test_admin_commands_without_nights_say_so(world):
    for name in ("retrain", "rollback", "revisoes"):
        assert (await world.say(command=name, fan="9")).text == text("refusal.no_nights")
        assert (await world.say(command=name)).text == text("refusal.admins_only")


async def test_learning_settings_are_shown_and_changed(world):
    shown = await world.say(command="aprender")
    assert shown.text.startswith(text("learn.is_off"))
    assert len(shown.choices) == 3
    await world.say("sim", command="aprender")
    assert (await world.say(command="aprender")).text.startswith(text("learn.is_on"))
    assert (await world.say("avisos", command="aprender")).text == text("learn.tell")
    assert (await world.say("avisos", command="aprender")).text == text("learn.quiet")


async def test_english_fans_are_asked_in_english(world):
    who = Fan(Platform.TELEGRAM, "5", language=Language.EN)
    shown = await world.say(command="aprender", fan="5", who=who)
    assert shown.text.startswith(text("learn.is_off", "en"))


def insert(path, sql):
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(sql)


@pytest.mark.parametrize("source", list(Source))
async def test_the_store_itself_refuses_what_the_rules_forbid(world, tmp_path, source):
    await world.vote(await world.say("Olá"))
    path = tmp_path / "farense.db"
    lesson = (
        "INSERT INTO lessons (kind, fan_key, chat_key, source, question, answer, state, confirmed,"
        f" created_at) VALUES ('taught', 'telegram:1', 'telegram:1', '{source}', 'q', 'a',"
        " '{state}', {confirmed}, 0)"
    )
    if teachable(source):
        insert(path, lesson.format(state="pending", confirmed=1))
    else:
        with pytest.raises(sqlite3.IntegrityError):
            insert(path, lesson.format(state="waiting", confirmed=0))
    if RULES[source].texts is Need.CONFIRMED:
        with pytest.raises(sqlite3.IntegrityError):
            insert(path, lesson.replace("'q'", "'q2'").format(state="approved", confirmed=0))
    trains = f"UPDATE votes SET trains = 1, source = '{source}'"
    if RULES[source].votes in {Need.NEVER, Need.PERMISSION}:
        with pytest.raises(sqlite3.IntegrityError):
            insert(path, trains)
    else:
        insert(path, trains)
    if RULES[source].votes is Need.PERMISSION:
        insert(path, trains + ", permission = 'letter of 2026-11-01'")


def test_the_rules_are_those_of_the_platforms():
    plain, switched = Grant(), Grant(discord_votes=True)
    permitted = Grant(permission="letter of 2026-11-01")
    free = {Source.WEB, Source.CONSOLE, Source.TELEGRAM_PRIVATE}
    assert {source for source in Source if plain.votes(source)} == free
    assert {s for s in Source if switched.votes(s)} == free | {Source.DISCORD_COMMAND}
    assert {s for s in Source if permitted.votes(s)} == free | {Source.DISCORD_MESSAGE}
    assert not switched.votes(Source.DISCORD_COMMAND, Source.DISCORD_MESSAGE)
    assert {s for s in Source if teachable(s)} == free | {Source.DISCORD_COMMAND}


@pytest.mark.parametrize(
    ("typed", "parts"),
    [
        ("Quem és? O Leão.", ("Quem és?", "O Leão.")),
        ("Quem és\nO Leão.\nDe Faro.", ("Quem és", "O Leão.\nDe Faro.")),
        ("Quem és?", ("Quem és?", "")),
        ("sem pergunta", ("sem pergunta", "")),
        ("", ("", "")),
    ],
)
def test_question_and_answer_are_told_apart(typed, parts):
    assert split_lesson(typed) == parts


@given(st.text(max_size=80))
def test_no_text_breaks_the_parting(typed):
    question, answer = split_lesson(typed)
    assert question == question.strip()
    assert answer == answer.strip()
