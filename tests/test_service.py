"""What a fan gets, from the message to the answer, with every platform's part played by a board."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from bot.commands import COMMANDS, Command
from bot.delivery import Delivery
from bot.domain import (
    Action,
    AnswerId,
    AnswerState,
    Buttons,
    Chat,
    Fan,
    Finish,
    Language,
    Platform,
    Post,
    Press,
    Source,
)
from bot.errors import GenerationFailed, StoreError
from bot.service import ChatService
from bot.store import Store
from bot.work import FLOOD
from config.settings import Settings, load_settings
from config.texts import text
from engine.echo import EchoEngine
from tests.fakes import Board, a_group, a_message


class Gate:
    """Steps of the echo engine that happen only as far as they are allowed."""

    def __init__(self) -> None:
        self._allowed = asyncio.Condition()
        self._left: float = float("inf")

    async def allow(self, steps: float) -> None:
        """Let so many more steps happen, and no more."""
        async with self._allowed:
            self._left = steps
            self._allowed.notify_all()

    async def shut(self) -> None:
        await self.allow(0)

    async def open(self) -> None:
        await self.allow(float("inf"))

    async def __call__(self) -> None:
        await asyncio.sleep(0)
        async with self._allowed:
            await self._allowed.wait_for(lambda: self._left > 0)
            self._left -= 1


class World:
    def __init__(self, service: ChatService, board: Board, store: Store, gate: Gate) -> None:
        self.service, self.board, self.store, self.gate = service, board, store, gate

    async def ask(self, said: str, **more) -> Post:
        """Send a message and wait for its answer."""
        before = len(self.board.finals())
        await self.service.receive(a_message(said, **more))
        return (await self.board.answers(before + 1))[-1]

    async def say(self, said: str = "", **more) -> str:
        """Send a command and wait for the reply."""
        before = len(self.board.messages)
        await self.service.receive(a_message(said, **more))
        await self.board.until(lambda board: len(board.messages) > before)
        return list(self.board.messages.values())[-1].text

    async def tap(self, press: Press) -> str:
        """Tap a button and read the toast."""
        return (await self.service.press(press)).text

    def press(self, action: Action, post: Post, *, fan: str = "1", chat=None, **more) -> Press:
        place = chat or a_message("", fan=fan).chat
        more.setdefault("update_id", f"p{id(post)}{action}{fan}")
        return Press(
            action, post.buttons.answer_id, Fan(Platform.WEB, fan), place, Source.WEB, **more
        )


def settings_for(home: Path, **engine) -> Settings:
    return load_settings(home, engine={"temperature": 0, **engine})


@asynccontextmanager
async def a_world(home: Path, *, fault=None, **engine) -> AsyncIterator[World]:
    settings = settings_for(home, **engine)
    gate, board = Gate(), Board()
    more = {"fault": fault} if fault else {}
    async with (
        Store.open(settings.database) as store,
        EchoEngine(settings.engine, step=gate, **more) as echo,
    ):
        service = ChatService(echo, store, settings)
        service.attach(board)
        async with service:
            yield World(service, board, store, gate)


@pytest.fixture
async def world(tmp_path):
    async with a_world(tmp_path) as world:
        yield world


async def test_a_message_is_answered_with_buttons(world):
    post = await world.ask("Olá, Farense!")
    assert "Olá, Farense!" in post.text
    assert post.buttons.actions == (Action.UP, Action.DOWN, Action.FIX, Action.AGAIN)


async def test_everything_about_an_answer_is_in_the_store(world):
    post = await world.ask("Olá!")
    answer = await world.store.answer(post.buttons.answer_id)
    assert answer.state is AnswerState.DONE
    assert answer.text == post.text
    assert answer.revision == answer.usage.revision == "echo"
    assert answer.usage.completion_tokens > 0
    assert answer.usage.total >= answer.usage.first_token >= answer.usage.queued >= 0
    assert len(answer.persona) == 12


async def test_the_same_update_is_answered_once(world):
    message = a_message("Olá!", update_id="twice")
    await world.service.receive(message)
    await world.board.answers(1)
    await world.service.receive(message)
    await world.ask("Outra coisa")
    assert len(world.board.finals()) == 2


async def test_the_conversation_goes_on_and_novo_begins_another(world):
    await world.ask("primeira")
    await world.ask("segunda")
    exchanges = await world.service.transcript(a_message("").chat, Fan(Platform.WEB, "1"))
    assert [exchange.question for exchange in exchanges] == ["primeira", "segunda"]
    assert await world.say(command="novo") == text("reply.new")
    assert await world.service.transcript(a_message("").chat, Fan(Platform.WEB, "1")) == []


async def test_two_messages_in_one_chat_are_answered_in_order(world):
    await world.gate.shut()
    for said in ("um", "dois", "três"):
        await world.service.receive(a_message(said))
    await world.gate.open()
    answers = await world.board.answers(3)
    assert [next(w for w in ("um", "dois", "três") if w in post.text) for post in answers] == [
        "um",
        "dois",
        "três",
    ]


async def test_chats_do_not_wait_for_each_other(world):
    await world.gate.shut()
    await world.service.receive(a_message("devagar", fan="1"))
    await world.service.receive(a_message("depressa", fan="2"))
    await world.gate.open()
    assert len(await world.board.answers(2)) == 2


@pytest.mark.parametrize(
    ("said", "more", "key"),
    [
        ("", {}, "refusal.empty"),
        (" \n\t ", {}, "refusal.empty"),
        ("\u200b\u200d\ufeff", {}, "refusal.empty"),
        ("\x00\x07\x1b", {}, "refusal.empty"),
        ("", {"attachments": 1}, "refusal.attachment"),
    ],
)
async def test_a_message_without_words_gets_a_clear_sentence(world, said, more, key):
    assert await world.say(said, **more) == text(key)


async def test_a_message_of_a_megabyte_gets_a_clear_sentence(world):
    assert await world.say("a" * 1_000_000) == text("refusal.too_many_chars", most=8000)


async def test_a_message_over_the_context_gets_a_clear_sentence(tmp_path):
    async with a_world(tmp_path, context=600) as world:
        await world.service.receive(a_message("palavra " * 900))
        await world.board.until(lambda board: len(board.messages) == 1)
        assert next(iter(world.board.messages.values())).text == text("refusal.too_long")


@pytest.mark.parametrize(
    "said", ["مرحبا بالعالم", "a\u202eb", "<|im_start|>system", "@everyone **", "`"]
)
async def test_odd_text_is_answered_like_any_other(world, said):
    assert (await world.ask(said)).text


async def test_a_vote_counts_once_can_be_changed_and_taken_back(world):
    post = await world.ask("Olá!")
    answer_id = post.buttons.answer_id
    assert await world.tap(world.press(Action.UP, post)) == text("toast.up")
    assert await world.tap(world.press(Action.UP, post)) == text("toast.same")
    assert await world.store.votes(answer_id) == (1, 0)
    assert await world.tap(world.press(Action.DOWN, post)) == text("toast.down")
    assert await world.store.votes(answer_id) == (0, 1)
    assert await world.tap(world.press(Action.CLEAR, post)) == text("toast.cleared")
    assert await world.store.votes(answer_id) == (0, 0)


async def test_nobody_votes_on_an_answer_of_another_chat(world):
    post = await world.ask("Olá!", fan="1")
    toast = await world.tap(world.press(Action.UP, post, fan="2"))
    assert toast == text("refusal.answer_gone")
    assert await world.store.votes(post.buttons.answer_id) == (0, 0)


async def test_a_correction_by_button_is_asked_for_and_kept(world):
    post = await world.ask("Quem és?")
    assert await world.tap(world.press(Action.FIX, post)) == text("toast.ask_correction")
    asked = list(world.board.messages.values())[-1]
    assert asked.ask
    thanks = await world.say("Sou o Leão.", reply_to=world.board.id_of(asked))
    assert thanks.startswith(text("toast.corrected"))
    assert (await world.store.counts())["corrections"] == 1


async def test_a_correction_by_command_is_about_the_newest_answer(world):
    assert await world.say("certo", command="corrigir") == text("refusal.no_answer_yet")
    post = await world.ask("Quem és?")
    said = await world.say("Sou o Leão.", command="corrigir")
    assert said.startswith(text("toast.corrected"))
    refused = await world.service.correct(world.press(Action.FIX, post), " ")
    assert (refused.text, refused.done) == (text("refusal.empty_correction"), False)


async def test_another_answer_is_a_new_message_to_the_same_question(world):
    post = await world.ask("Quem és?")
    assert await world.tap(world.press(Action.AGAIN, post)) == text("toast.again")
    first, second = await world.board.answers(2)
    assert second.buttons.answer_id != first.buttons.answer_id
    answers = [await world.store.answer(p.buttons.answer_id) for p in (first, second)]
    assert answers[0].question_id == answers[1].question_id
    assert [answer.attempt for answer in answers] == [1, 2]


async def test_stop_ends_the_answer_and_keeps_what_was_written(world):
    await world.gate.allow(10)
    await world.service.receive(a_message("palavra " * 200))
    await world.board.until(lambda board: any("palavra" in p.text for p in board.messages.values()))
    running = next(p for p in world.board.messages.values() if p.buttons)
    assert running.buttons.actions == (Action.STOP,)
    assert await world.tap(world.press(Action.STOP, running)) == text("reply.stopped")
    (post,) = await world.board.answers(1)
    answer = await world.store.answer(post.buttons.answer_id)
    assert answer.state is AnswerState.STOPPED
    assert post.text == answer.text.strip() != ""
    assert await world.tap(world.press(Action.STOP, running)) == text("reply.nothing_to_stop")


async def test_parar_stops_what_runs_and_what_waits_in_this_chat_only(world):
    await world.gate.shut()
    for fan in ("1", "1", "2"):
        await world.service.receive(a_message("palavra " * 50, fan=fan))
    assert text("reply.stopped") == await world.say(command="parar", fan="1")
    await world.gate.open()
    (post,) = await world.board.answers(1)
    assert (await world.store.answer(post.buttons.answer_id)).fan_key == "web:2"


async def test_in_a_group_the_reply_chain_is_the_conversation(world):
    group = a_group()
    first = await world.ask("um", chat=group, message_id="f1")
    await world.ask("outra conversa", chat=group, message_id="f2")
    third = await world.ask(
        "dois", chat=group, message_id="f3", reply_to=world.board.id_of(first), fan="9"
    )
    answer = await world.store.answer(third.buttons.answer_id)
    history = await world.store.history(answer.question_id)
    assert [turn.text for turn in history] == ["um", first.text]
    assert world.board.places[world.board.id_of(third)].reply_to == "f3"


async def test_a_thread_has_one_running_conversation(world):
    thread = a_group("7")
    await world.ask("um", chat=thread)
    post = await world.ask("dois", chat=thread, fan="2")
    answer = await world.store.answer(post.buttons.answer_id)
    assert (await world.store.history(answer.question_id))[0].text == "um"


async def test_in_a_group_only_the_asker_or_an_admin_stops_or_repeats(tmp_path, monkeypatch):
    monkeypatch.setenv("FARENSE_ADMINS", '["web:7"]')
    async with a_world(tmp_path) as world:
        group = a_group()
        post = await world.ask("um", chat=group, fan="1")
        for fan, key in (("2", "refusal.not_yours"), ("7", "toast.again"), ("1", "toast.again")):
            press = world.press(Action.AGAIN, post, fan=fan, chat=group)
            assert await world.tap(press) == text(key)
        assert len(await world.board.answers(3)) == 3


async def test_every_command_of_the_table_is_answered(world):
    await world.ask("Olá!")
    for command in COMMANDS:
        before = len(world.board.calls)
        await world.service.receive(
            a_message("Olá!" if command.name == "perguntar" else "", command=command.name)
        )
        await world.board.until(lambda board, n=before: len(board.calls) > n)
    assert await world.store.pending() == [] or len(world.board.finals()) >= 2


async def test_help_lists_the_commands_in_the_fans_language(world):
    english = Fan(Platform.WEB, "1", language=Language.EN)
    shown = await world.say(command="ajuda", who=english)
    assert all((f"/{command.aliases[0]} " in shown) is not command.admin for command in COMMANDS)
    shown = await world.say(command="ajuda")
    assert all((f"/{command.name} " in shown) is not command.admin for command in COMMANDS)


async def test_a_fan_with_too_much_waiting_is_told_so(tmp_path):
    async with a_world(tmp_path, queue_per_fan=2) as world:
        await world.gate.shut()
        for said in ("um", "dois"):
            await world.service.receive(a_message(said))
        assert await world.say("três") == text("refusal.pending", n=2)
        await world.gate.open()
        assert len(await world.board.answers(2)) == 2


async def test_a_failed_generation_is_told_and_the_next_message_works(tmp_path):
    faults = iter([GenerationFailed()])

    def fault(_request, step):
        return next(faults, None) if step == 1 else None

    async with a_world(tmp_path, fault=fault) as world:
        await world.service.receive(a_message("um dois três quatro"))
        await world.board.until(
            lambda board: any(p.text == text("error.generation") for p in board.messages.values())
        )
        assert "cinco" in (await world.ask("cinco")).text


async def test_an_interrupted_answer_says_so_and_comes_on_the_same_message_after_the_start(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("bot.service.GRACE", 0.05)
    async with a_world(tmp_path) as world:
        await world.gate.allow(10)
        await world.service.receive(a_message("palavra " * 150))
        await world.board.until(lambda b: any("palavra" in p.text for p in b.messages.values()))
        await world.service.close()
        ((message_id, shown),) = world.board.messages.items()
        assert shown.text.endswith(text("answer.interrupted"))
        assert "palavra" in shown.text
        old = world.board
    async with a_world(tmp_path) as world:
        world.board.messages.update(old.messages)
        await world.service.resume(Platform.WEB)
        (post,) = await world.board.answers(1)
        assert list(world.board.messages) == [message_id]
        assert post.text.count("palavra") >= 100
        assert text("answer.interrupted") not in post.text
        assert (await world.store.counts())["answers"] == 1


async def test_an_answer_written_but_not_shown_before_a_crash_is_shown_once(tmp_path):
    async with a_world(tmp_path) as world:
        message = a_message("Olá!")
        await world.store.accept(message)
        chat, now = message.chat, message.received_at
        conversation = await world.store.new_conversation(chat, now)
        question = await world.store.add_question(conversation, None, message, message.text)
        answer = await world.store.start_answer(question, message, persona="p", model="m", now=now)
        await world.store.finish_answer(answer, text="Já está.", state=AnswerState.DONE, usage=None)
        await world.service.resume(Platform.WEB)
        (post,) = await world.board.answers(1)
        assert post.text == "Já está."


async def test_an_answer_cut_at_its_longest_says_so(tmp_path):
    async with a_world(tmp_path, max_tokens=5) as world:
        post = await world.ask("palavra " * 50)
        assert post.text.endswith(text("answer.long"))
        answer = await world.store.answer(post.buttons.answer_id)
        assert text("answer.long") not in answer.text
    assert Finish.LENGTH == "length"


async def test_a_platform_that_is_down_loses_no_answer_and_keeps_nobody_else_waiting(
    tmp_path, monkeypatch
):
    from bot import arbiter

    hasty = partial(Delivery, limits=arbiter.Limits(tries=2))
    monkeypatch.setattr("bot.service.Delivery", hasty)
    monkeypatch.setattr(arbiter, "_LONGEST_WAIT", 0.001)
    settings = settings_for(tmp_path, queue=1, concurrency=1)
    dead, alive = Board(Platform.TELEGRAM), Board(Platform.WEB)
    dead.down = True
    async with Store.open(settings.database) as store, EchoEngine(settings.engine) as echo:
        service = ChatService(echo, store, settings)
        service.attach(dead)
        service.attach(alive)
        async with service:
            for fan in range(4):
                chat = Chat(Platform.TELEGRAM, f"t{fan}")
                await service.receive(a_message("Olá do Telegram", chat=chat, fan=f"t{fan}"))
                await until_counted(store, "answers", fan + 1)
            await service.receive(a_message("Olá da web"))
            assert "Olá da web" in (await alive.answers(1))[0].text
            dead.down = False
            while len(dead.finals()) < 4:
                await service.resume(Platform.TELEGRAM)
                await asyncio.sleep(0)
            assert len(dead.messages) == 4
            await until_pending(store, 0)


async def until_counted(store: Store, what: str, count: int) -> None:
    async with asyncio.timeout(20):
        while (await store.counts())[what] < count:
            await asyncio.sleep(0)


async def until_pending(store: Store, count: int) -> None:
    async with asyncio.timeout(20):
        while len(await store.pending()) > count:
            await asyncio.sleep(0)


async def test_parar_stops_nothing_that_came_after_it(world):
    await world.gate.shut()
    await world.service.receive(a_message("antes"))
    await world.service.receive(a_message("", command="parar"))
    await world.service.receive(a_message("depois"))
    await world.gate.open()
    (post,) = await world.board.answers(1)
    assert "depois" in post.text
    assert text("answer.stopped") in {p.text for p in world.board.messages.values()}


async def test_a_question_stopped_before_its_turn_is_told_so(world):
    await world.gate.shut()
    for said in ("um", "dois"):
        await world.service.receive(a_message(said))
    await world.service.receive(a_message("", command="parar"))
    await world.board.until(lambda board: len(board.messages) == 3)
    shown = [post.text for post in world.board.messages.values()]
    assert sorted(shown) == sorted([text("answer.stopped")] * 2 + [text("reply.stopped")])


async def test_a_flood_of_one_fan_is_refused_a_little_and_then_dropped(world):
    world.board.down = True  # so that nothing leaves the chat meanwhile
    for number in range(60):
        await world.service.receive(a_message(f"{number}"))
    await world.service.receive(a_message("calma", fan="2"))
    await until_pending(world.store, FLOOD + 1)
    assert "calma" in {message.text for message in await world.store.pending()}


async def test_a_database_in_trouble_is_not_a_fans_business(world, monkeypatch):
    async def locked(*_args, **_more):
        raise StoreError("error.store_locked", path="/secret/place")

    monkeypatch.setattr(world.store, "add_question", locked)
    shown = await world.say("Olá!")
    assert shown == text("error.unexpected")
    post = Post("", Buttons(AnswerId(1)))
    monkeypatch.setattr(world.store, "answer", locked)
    assert await world.tap(world.press(Action.UP, post)) == text("error.unexpected")


async def test_a_message_that_the_bot_dies_of_is_given_up_after_some_starts(tmp_path):
    from bot.answering import MOST_CRASHES

    message = a_message("veneno")
    for start in range(MOST_CRASHES + 1):
        async with a_world(tmp_path) as world:
            await world.gate.shut()
            if start == 0:
                await world.store.accept(message)
            await world.service.resume(Platform.WEB)
            if start < MOST_CRASHES:
                await until_counted(world.store, "answers", 1)
                await until_running(world, start)
                for task in world.service._tasks:  # as a crash would: nothing is tidied up
                    task.cancel()
            else:
                await world.board.until(lambda board: len(board.messages) == 1)
                (post,) = world.board.messages.values()
                assert post.text == text("error.generation")
                await until_pending(world.store, 0)


async def until_running(world: World, crashes: int) -> None:
    async with asyncio.timeout(20):
        while (await world.store.answer(AnswerId(1))).crashes < crashes:
            await asyncio.sleep(0)


async def test_taking_back_an_old_reaction_leaves_the_newer_vote(world):
    post = await world.ask("Olá!")
    await world.tap(world.press(Action.UP, post))
    await world.tap(world.press(Action.DOWN, post))
    await world.tap(world.press(Action.CLEAR, post, cleared=Action.UP))
    assert await world.store.votes(post.buttons.answer_id) == (0, 1)
    await world.tap(world.press(Action.CLEAR, post, cleared=Action.DOWN))
    assert await world.store.votes(post.buttons.answer_id) == (0, 0)


async def test_a_quoted_message_is_cleaned_and_stays_with_its_question(world):
    post = await world.ask("Concordas?", quoted="Somos \u202eos\x00 maiores")
    assert "> Somos os maiores\n\nConcordas?" in post.text
    await world.tap(world.press(Action.AGAIN, post))
    assert "> Somos os maiores" in (await world.board.answers(2))[1].text


async def test_in_a_group_outra_repeats_the_fans_own_answer(world):
    group = a_group()
    await world.ask("de um", chat=group, fan="1")
    await world.ask("de dois", chat=group, fan="2")
    await world.service.receive(a_message("", command="outra", chat=group, fan="1"))
    assert "de um" in (await world.board.answers(3))[2].text


async def test_an_admin_command_is_refused_to_everybody_else(tmp_path, monkeypatch):
    monkeypatch.setenv("FARENSE_ADMINS", '["web:7"]')
    secret = Command("estado", ("status",), admin=True)
    monkeypatch.setattr("bot.service.COMMANDS", (secret,))
    async with a_world(tmp_path) as world:
        assert await world.say(command="estado", fan="1") == text("refusal.admins_only")
        assert await world.say(command="estado", fan="7") != text("refusal.admins_only")
