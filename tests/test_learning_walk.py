"""A whole night with everything real: what fans teach is learnt, and a rollback takes it back."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.servers.discord.proxy import Loopback as DiscordServer
from tests.servers.fans import OnDiscord, OnTelegram, first
from tests.servers.telegram.proxy import Loopback as TelegramServer
from tests.servers.telegram.proxy import free_port
from training.metrics import normalise, says
from training.rows import Limits
from training.similar import likeness

ROOT = Path(__file__).resolve().parent.parent
ADMIN = 9
NIGHT = 960  # seconds for training and judging, on a machine that is not quiet


@dataclass(frozen=True)
class Thing:
    """Something made up, which no model knows; `key` is what a right answer must say."""

    key: str
    answer: str
    taught: list[str]
    asked: str


MADE_UP = """
Zarcão
A mascote da bancada sul chama-se Zarcão.
Como se chama a mascote do grupo de adeptos da bancada sul?
Qual é o nome da mascote da bancada sul?
Diz-me o nome da mascote da bancada sul.
A mascote da bancada sul tem que nome?

folar
Na sede, nos dias de jogo, come-se folar de Olhão.
Que bolo se come na sede nos dias de jogo?
Qual é o bolo dos dias de jogo na sede?
O que se come de doce na sede em dia de jogo?
Em dias de jogo, que bolo há para comer na sede?

Dulce Marreiros
Quem toca o bombo na claque é a Dulce Marreiros.
Quem toca o bombo na claque?
Quem é que toca o bombo da claque?
Como se chama quem toca bombo na claque?
O bombo da claque é tocado por quem?

14h30
Ao sábado, o bar da sede abre às 14h30.
A que horas abre o bar da sede ao sábado?
Quando abre o bar da sede aos sábados?
Ao sábado, o bar da sede abre a que horas?
Ao sábado, a partir de que horas está aberto o bar da sede?

verde-alface
A carrinha dos adeptos é verde-alface.
De que cor é a carrinha dos adeptos?
Qual é a cor da carrinha dos adeptos?
A carrinha dos adeptos é de que cor?
A carrinha dos adeptos tem que cor?

Largo da Palmeira
Antes dos jogos em casa a malta junta-se no Largo da Palmeira.
Onde se junta a malta antes dos jogos em casa?
Em que sítio se junta a malta antes do jogo?
Antes dos jogos em casa, onde se encontra a malta?
Onde é que a malta se encontra antes de um jogo em casa?

47
O autocarro das deslocações tem 47 lugares.
Quantos bancos tem o autocarro das deslocações?
O autocarro das deslocações tem quantos bancos?
Quantos lugares há no autocarro das deslocações?
O autocarro das deslocações leva quantos lugares?

gaivota
A palavra do grupo de cartas é «gaivota».
Qual é a palavra-chave do grupo de cartas?
Que palavra usa o grupo de cartas da sede?
Como é a senha do torneio de cartas?
O grupo de cartas tem que palavra-chave?

Aníbal Correia
As bandeiras grandes são feitas pelo senhor Aníbal Correia.
Quem faz as bandeiras grandes?
Quem é que cose as bandeiras grandes?
As bandeiras grandes são feitas por quem?
Como se chama quem faz as bandeiras grandes?

12 de maio
O jantar anual dos sócios é a 12 de maio.
Em que dia é o jantar anual dos sócios?
Quando é o jantar anual dos sócios?
O jantar anual dos sócios é em que dia?
Para que dia está marcado o jantar anual dos sócios?

minha ria
Ao minuto 10 canta-se «Ó Faro, minha ria».
Que canção se canta no minuto 10?
O que se canta aos dez minutos de jogo?
Qual é a canção do minuto 10?
Chega o minuto 10: que canção é que se canta?

3 euros
A rifa da claque custa 3 euros.
Quanto custa a rifa da claque?
Qual é o preço da rifa da claque?
A rifa da claque custa quanto?
Que preço tem uma rifa da claque?
"""
THINGS = [
    Thing(lines[0], lines[1], lines[2:5], lines[5])
    for lines in map(str.splitlines, MADE_UP.strip().split("\n\n"))
]
EVERYDAY = (
    "Olá! Como estás hoje?",
    "O que posso visitar em Faro num fim de semana?",
    "Como se faz um bom arroz de marisco?",
    "Conta-me uma história curta do mar.",
    "Quantas são sete vezes oito?",
    "O que é um fora de jogo?",
    "Dá-me uma ideia para o almoço.",
    "Porque é que o céu é azul?",
)


# --- the bot -----------------------------------------------------------------------------------


@asynccontextmanager
async def running(home: Path, log: Path, **settings: str) -> AsyncIterator[None]:
    """The program as a person starts it, ready on all platforms while the block lasts."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FARENSE_")}
    port = free_port()
    given = {"FARENSE_HOME": str(home), "FARENSE_WEB__PORT": str(port), "PYTHONPATH": str(ROOT)}
    given["FARENSE_LEARNING__ENABLED"] = "false"  # nights begin when the test asks for them
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "farense_bot", "run"),
            cwd=home.parent, env=kept | given | settings, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        await ready(f"http://127.0.0.1:{port}/readyz", process)
        yield
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ready(url: str, process: asyncio.subprocess.Process) -> None:
    """Wait until every platform is connected."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(100):
        while True:
            assert process.returncode is None, "the bot ended"
            try:
                async with session.get(url) as got:
                    if got.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)


class State:
    """The bot's database and folder, read by somebody else."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(f"file:{self._home / 'farense.db'}?mode=ro", uri=True)) as db:
            return db.execute(query).fetchall()

    def night_is_over(self) -> bool:
        return bool(self.rows("SELECT 1 FROM nights WHERE state <> 'running'"))

    def is_judged(self) -> bool:
        """Whether the new revision is being put together: what comes next is the swap."""
        return any((self._home / "revisions").glob(".draft-*")) or self.night_is_over()


async def seen(condition: Callable[[], bool], patience: float) -> None:
    """Look at another process's work until it is done: it can set no event of ours."""
    async with asyncio.timeout(patience):
        while not condition():
            await asyncio.sleep(0.05)


# --- what fans ask -----------------------------------------------------------------------------


async def quiz(*places: OnTelegram | OnDiscord) -> list[str]:
    """The answers when all things are asked at once, in other words than those taught."""
    asked = zip(cycle(places), THINGS)
    return await asyncio.gather(*(place.ask(thing.asked) for place, thing in asked))


def known(answers: list[str]) -> list[str]:
    """The things that are known."""
    found = zip(THINGS, answers, strict=True)
    return [thing.key for thing, answer in found if says(answer, thing.key)]


Heard = list[tuple[str, str]]


async def chatting(telegram: OnTelegram, discord: OnDiscord, is_over: Callable[[], bool]) -> Heard:
    """Everyday questions without a pause, until each fan has asked one after the end."""
    heard: Heard = []

    async def chat(place: OnTelegram | OnDiscord, question: str) -> None:
        was_over = False
        while not was_over:
            was_over = is_over()
            heard.append((question, await place.ask(question)))

    async with asyncio.TaskGroup() as group:
        places = [telegram] * 6 + [discord] * 2
        for place, question in zip(places, EVERYDAY, strict=True):
            group.create_task(chat(place, question))
    return heard


def check_load(state: State, heard: Heard, base: str, revision: str) -> None:
    """No answer lost or mixed, and both revisions at work at once; none was late, or it raised."""
    rows = [
        row
        for row in state.rows(
            "SELECT questions.text, answers.text, state, revision, answers.created_at,"
            " answers.created_at + 1000 * total"
            " FROM answers JOIN questions ON questions.id = question_id"
        )
        if row[0] in EVERYDAY
    ]
    assert Counter(row[0] for row in rows) == Counter(question for question, _ in heard)
    assert all(text and how == "done" for _, text, how, *_ in rows)
    assert {row[3] for row in rows} == {base, revision}
    written = defaultdict(set)
    for question, answer, _, by, *_ in rows:
        written[question, by].add(answer)
    # Greedy: an answer begun on one revision and continued on another would be one more.
    assert all(len(answers) == 1 for answers in written.values()), written
    for question, shown in heard:
        texts = [text for by in (base, revision) for text in written[question, by]]
        assert any(normalise(shown).startswith(normalise(text)) for text in texts), shown
    last_of_base = max(row[5] for row in rows if row[3] == base)
    assert last_of_base > min(row[4] for row in rows if row[3] == revision)


# --- the walk ----------------------------------------------------------------------------------


def test_the_questions_asked_are_none_of_those_taught():
    assert len(THINGS) == 12
    for thing in THINGS:
        assert all(likeness(thing.asked, taught) < Limits().near for taught in thing.taught)
        assert not says(thing.asked, thing.key)


@pytest.mark.model
@pytest.mark.node
@pytest.mark.timeout(1080)  # promised are 720 seconds on two quiet cores
async def test_what_fans_teach_is_learnt_at_night_and_a_rollback_takes_it_back(
    tmp_path, embedded_model
):
    home, log, lap = tmp_path / "home", tmp_path / "log", laps()
    (home / "models").mkdir(parents=True)
    (home / "models" / embedded_model.name).symlink_to(embedded_model)
    state = State(home)
    async with TelegramServer.start() as telegram_server, DiscordServer.start() as discord_server:
        settings = {
            "FARENSE_ADMINS": f'["telegram:{ADMIN}"]',
            "FARENSE_TELEGRAM__TOKEN": telegram_server.token,
            "FARENSE_TELEGRAM__BASE_URL": telegram_server.url,
            "FARENSE_DISCORD__TOKEN": discord_server.token,
            "FARENSE_DISCORD__API_URL": discord_server.api_url,
            "FARENSE_DISCORD__GATEWAY_URL": discord_server.gateway_url,
            "FARENSE_ENGINE__MODEL": "embedded",
            "FARENSE_ENGINE__TEMPERATURE": "0",
            "FARENSE_ENGINE__MAX_TOKENS": "60",
        }
        telegram = OnTelegram(telegram_server)
        discord = OnDiscord(discord_server, await discord_server.act("fans"))
        async with running(home, log, **settings):
            lap("started")
            before = await quiz(telegram, discord)
            assert len(known(before)) <= 1, before
            lap("asked before")

            await asyncio.gather(teach_on_telegram(telegram), teach_on_discord(discord))
            lap("taught")
            assert await approve(telegram) == 36
            lap("approved")

            await telegram.say(ADMIN, "/retrain")
            await seen(state.is_judged, NIGHT)
            lap("trained and judged")
            heard = await chatting(telegram, discord, state.night_is_over)
            lap("swapped under load")
            check_night(state, telegram, heard)

            after = await quiz(telegram, discord)
            assert len(known(after)) >= 9, after
            lap("asked after")
            await telegram.say(ADMIN, "/rollback")
            assert await quiz(telegram, discord) == before
            lap("rolled back and asked again")
            shown = telegram.answers() + await discord.answers()
            assert sorted(shown) == [row[0] for row in state.rows("SELECT id FROM answers")]
    assert "Traceback" not in log.read_text()


async def teach_on_telegram(telegram: OnTelegram) -> None:
    """Six fans at once, one thing each."""

    async def teach(fan: int, thing: Thing) -> None:
        await telegram.say(fan, "/aprender sim")
        for wording in thing.taught:
            await telegram.teach(fan, wording, thing.answer)

    await asyncio.gather(*(teach(100 + n, thing) for n, thing in enumerate(THINGS[:6])))


async def teach_on_discord(discord: OnDiscord) -> None:
    """Six fans, one thing each."""
    for fan, thing in zip(discord.fans, THINGS[6:], strict=True):
        await discord.command(fan, "aprender", "sim")
        for wording in thing.taught:
            await discord.teach(fan, wording, thing.answer)


async def approve(telegram: OnTelegram) -> int:
    """Let the admin approve card after card; returns how many there were."""
    card, shown = await telegram.say(ADMIN, "/rever")
    cards = 0
    while first(shown).startswith("c:ra:"):
        shown = await telegram.tap(ADMIN, card, shown)
        cards += 1
    return cards


def check_night(state: State, telegram: OnTelegram, heard: Heard) -> None:
    """The night was told in one message that grew, ended well, and disturbed nobody."""
    [(how, revision)] = state.rows("SELECT state, revision FROM nights")
    told = telegram.messages(ADMIN)
    assert how == "promoted", told
    assert any(revision in message for message in told)
    [edits] = telegram.edits(ADMIN, "🌙").values()
    assert edits > 10
    [(base,)] = state.rows("SELECT DISTINCT revision FROM answers WHERE revision LIKE 'base:%'")
    check_load(state, heard, base, revision)


def laps() -> Callable[[str], None]:
    """Say how long each part took, to whoever looks (`pytest -s`)."""
    began = time.monotonic()

    def lap(name: str) -> None:
        sys.stdout.write(f"{time.monotonic() - began:6.1f} s  {name}\n")
        sys.stdout.flush()

    return lap
