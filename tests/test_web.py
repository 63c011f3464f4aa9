"""The web chat over real HTTP on loopback, with a service that does what the test says."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from html.parser import HTMLParser
from types import SimpleNamespace

import aiohttp
import pytest

from adapters.web import WebAdapter
from adapters.web.rooms import ITEMS, TABS, Item, Room, Tab, WebTransport
from adapters.web.server import HEADERS
from adapters.web.sessions import FREE_TRIES, Door
from bot.domain import (
    CARET,
    Action,
    AnswerId,
    AnswerState,
    Asked,
    Buttons,
    Chat,
    Choice,
    Destination,
    Fan,
    Language,
    Message,
    Outcome,
    Platform,
    Post,
    Press,
    QuestionId,
    Source,
    Tap,
    Toast,
    Wanted,
)
from bot.errors import ConfigError, StoreError
from bot.health import Health, State
from bot.records import Answer, Exchange
from config.settings import Settings
from config.texts import text


class ScriptedService:
    """Notes what it is given; a test shows answers through the adapter itself."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.presses: list[Press] = []
        self.corrections: list[tuple[AnswerId, str]] = []
        self.taps: list[tuple[Tap, str | None]] = []
        self.outcome = Outcome("feito")
        self.exchanges: list[Exchange] = []
        self.resumed = asyncio.Event()
        self.fault: Exception | None = None
        self.done = True

    async def resume(self, platform: Platform) -> None:
        assert platform is Platform.WEB
        self.resumed.set()

    async def receive(self, message: Message) -> None:
        if self.fault:
            raise self.fault
        self.messages.append(message)

    async def press(self, press: Press) -> Toast:
        self.presses.append(press)
        return Toast(f"toast {press.action}", self.done)

    async def correct(self, press: Press, correction: str) -> Toast:
        self.corrections.append((press.answer_id, correction))
        return Toast("toast", self.done)

    async def tap(self, tap: Tap) -> Outcome:
        self.taps.append((tap, None))
        return self.outcome

    async def fill(self, tap: Tap, text: str) -> Outcome:
        self.taps.append((tap, text))
        return self.outcome

    async def newest_answer(self, chat: Chat) -> AnswerId | None:
        return self.exchanges[-1].answer.id if self.exchanges else None

    async def transcript(self, chat: Chat, fan: Fan, limit: int = 50) -> list[Exchange]:
        assert fan.key == chat.key
        return self.exchanges


class Visitor:
    """One browser: cookies, and the headers that our page sends."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.http = session

    async def get(self, path: str, **headers: str) -> SimpleNamespace:
        async with self.http.get(
            self.url + path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        ) as response:
            return await _told(response)

    async def post(
        self, path: str, body: object = None, *, data: bytes = b"", **headers: str | None
    ) -> SimpleNamespace:
        sent = {
            "Origin": self.url,
            "X-Farense": "1",
            "Content-Type": "application/json",
            "Accept-Language": "pt-PT",
        } | {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.http.post(
            self.url + path,
            data=data or json.dumps(body).encode(),
            headers={name: value for name, value in sent.items() if value is not None},
        ) as response:
            return await _told(response)

    async def say(self, words: str, update: str = "update-0001") -> SimpleNamespace:
        return await self.post("/api/message", {"text": words, "id": update})

    async def items(self) -> list[dict[str, object]]:
        return (await self.get("/api/history")).json

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[AsyncIterator[tuple[str, object]]]:
        async with self.http.get(self.url + "/api/events") as response:
            assert response.status == 200
            assert response.content_type == "text/event-stream"
            yield _events(response)


async def _told(response: aiohttp.ClientResponse) -> SimpleNamespace:
    body = await response.text()
    is_json = response.content_type == "application/json"
    return SimpleNamespace(
        status=response.status,
        headers=response.headers,
        cookies=response.cookies,
        text=body,
        json=json.loads(body) if is_json else None,
    )


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, object]]:
    event = ""
    async for line in response.content:
        name, _, value = line.decode().strip().partition(": ")
        if name == "event":
            event = value
        elif name == "data":
            yield event, json.loads(value)


class House:
    """A running web chat and its visitors."""

    def __init__(self, adapter: WebAdapter, service: ScriptedService) -> None:
        self.adapter = adapter
        self.service = service
        self.parts = {"engine": Health(State.UP), "telegram": Health(State.OFF)}

    @asynccontextmanager
    async def visitor(self, *, arrived: bool = True) -> AsyncIterator[Visitor]:
        jar = aiohttp.CookieJar(unsafe=True)  # cookies of an IP address
        async with aiohttp.ClientSession(
            cookie_jar=jar, timeout=aiohttp.ClientTimeout(total=20)
        ) as http:
            visitor = Visitor(self.adapter.url, http)
            if arrived:
                await visitor.get("/")
            yield visitor

    async def chat_of(self, visitor: Visitor) -> Destination:
        await visitor.say("Quem és?", "chat-of-1")
        return Destination(self.service.messages[-1].chat)


@asynccontextmanager
async def open_house(**web: object) -> AsyncIterator[House]:
    service = ScriptedService()
    house: House
    adapter = WebAdapter(service, Settings(web={"port": 0} | web), lambda: house.parts)
    house = House(adapter, service)
    task = asyncio.create_task(adapter.run())
    try:
        async with asyncio.timeout(10):
            await service.resumed.wait()
        yield house
    finally:
        task.cancel()
        async with asyncio.timeout(10):
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with open_house() as opened:
        yield opened


@pytest.fixture
async def visitor(house: House) -> AsyncIterator[Visitor]:
    async with house.visitor() as arrived:
        yield arrived


def exchange(number: int, question: str, words: str, vote: int = 0) -> Exchange:
    answer = Answer(
        id=AnswerId(number),
        question_id=QuestionId(number),
        conversation_id=1,
        chat_key="web:x",
        fan_key="web:x",
        text=words,
        state=AnswerState.DONE,
        attempt=1,
        persona="p",
        model="m",
        revision="r",
        created_at=datetime.now(UTC),
    )
    return Exchange(QuestionId(number), question, answer, vote)


# --- who a browser is ----------------------------------------------------------------------


async def test_a_browser_gets_a_secret_cookie_once_and_keeps_its_chat(house):
    async with house.visitor(arrived=False) as visitor:
        first = await visitor.get("/")
        cookie = first.cookies["farense"]
        assert cookie["httponly"]
        assert cookie["samesite"] == "Strict"
        assert not cookie["secure"]
        assert (await visitor.get("/")).cookies["farense"].value == cookie.value
        await visitor.say("Olá", "update-0001")
        await visitor.say("Olá outra vez", "update-0002")
    fans = {message.fan.key for message in house.service.messages}
    assert len(fans) == 1
    assert cookie.value not in fans.pop()  # logs and backups never hold the secret


async def test_behind_https_the_cookie_is_secure(visitor):
    page = await visitor.get("/", X_Forwarded_Proto="https")
    assert page.cookies["farense"]["secure"]


async def test_two_browsers_see_only_their_own(house, visitor):
    async with house.visitor() as other:
        await visitor.say("segredo")
        await house.adapter.send(
            Destination(house.service.messages[0].chat), Post("resposta", Buttons(AnswerId(7)))
        )
        assert len(await visitor.items()) == 2
        assert await other.items() == []
        refused = await other.post("/api/press", {"action": "up", "answer_id": 7})
        assert refused.status == 422
        assert refused.json == {"error": text("refusal.answer_gone")}
    assert house.service.presses == []


async def test_without_the_cookie_there_is_no_api(house):
    async with house.visitor(arrived=False) as stranger:
        assert (await stranger.say("Olá")).status == 401
        assert (await stranger.get("/api/history")).status == 401
        assert (await stranger.get("/api/events")).status == 401
    assert house.service.messages == []


@pytest.mark.parametrize("forged", ["x", "a" * 44, "ção" * 20, "../" * 20])
async def test_a_forged_cookie_is_nobody(house, forged):
    async with house.visitor(arrived=False) as stranger:
        answer = await stranger.get("/api/history", Cookie=f"farense={forged}")
        assert answer.status == 401


# --- what is let in ------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "[::1", "a:b:c", "@"])
async def test_a_foreign_host_name_is_turned_away(visitor, host):
    for path in ("/", "/api/history", "/readyz"):
        assert (await visitor.get(path, Host=host)).status in {400, 421}


@pytest.mark.parametrize("host", ["localhost:1", "127.0.0.1", "[::1]:8910", "LOCALHOST"])
async def test_our_own_names_are_let_in(visitor, host):
    assert (await visitor.get("/", Host=host)).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"X_Farense": None}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
@pytest.mark.parametrize("path", ["message", "command", "press", "correct", "tap"])
async def test_only_our_own_page_may_post(house, visitor, path, headers, status):
    body = {"text": "Olá", "id": "update-0001"}
    assert (await visitor.post(f"/api/{path}", body, **headers)).status == status
    assert house.service.messages == []


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"text": "a"}',
        b'{"text": "a", "id": "short"}',
        b'{"text": "a", "id": "../../../etc/passwd"}',
        b'{"text": 1, "id": "update-0001"}',
        b'{"text": "\\ud800", "id": "update-0001"}',
        b'{"text": "a", "id": "update-0001", "fan": "other"}',
    ],
)
async def test_a_malformed_message_is_refused_with_a_sentence(house, visitor, data):
    answer = await visitor.post("/api/message", data=data)
    assert answer.status == 400
    assert answer.json == {"error": text("web.refused")}
    assert house.service.messages == []


async def test_a_message_of_a_megabyte_is_refused_with_a_sentence(house, visitor):
    answer = await visitor.say("g" * 1_000_000)
    assert answer.status == 413
    assert answer.json == {"error": text("web.too_big")}
    assert await visitor.items() == []


async def test_every_response_has_the_policy_and_no_other_origin_is_allowed(house, visitor):
    for path in ("/", "/static/chat.js", "/static/none", "/healthz", "/api/history", "/none"):
        headers = (await visitor.get(path)).headers
        for name in HEADERS.keys() - {"Cache-Control"}:
            assert headers[name] == HEADERS[name], (path, name)
        assert "Access-Control-Allow-Origin" not in headers
    policy = HEADERS["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy


@pytest.mark.parametrize("path", ["/static/index.html", "/static/..%2fserver.py", "/static/"])
async def test_nothing_but_the_page_s_files_is_served(visitor, path):
    assert (await visitor.get(path)).status == 404


class Inline(HTMLParser):
    """Finds what the content policy would block, and what comes from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "style" or (tag == "script" and "src" not in given):
            self.found.append(tag)
        self.found += [name for name in given if name.startswith("on") or name == "style"]
        for name in ("src", "href"):
            if name in given and not (given[name] or "").startswith("/"):
                self.found.append(f"{name}={given[name]}")


@pytest.mark.parametrize("language", ["pt", "en"])
async def test_the_page_holds_nothing_inline_and_nothing_foreign(visitor, language):
    page = await visitor.get("/", Accept_Language=language)
    finder = Inline()
    finder.feed(page.text)
    assert finder.found == []
    assert text("web.page.hello", language) in page.text


# --- language ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "language"),
    [
        ("", Language.PT),
        ("fr, de;q=0.8", Language.PT),
        ("en-GB,en;q=0.9", Language.EN),
        ("fr, en;q=0.5, pt;q=0.7", Language.PT),
        ("pt-BR;q=0.3, en;q=0.9", Language.EN),
        (";;;q=x,en", Language.EN),
    ],
)
async def test_the_browser_s_languages_choose_the_texts(house, visitor, wish, language):
    page = await visitor.get("/", Accept_Language=wish)
    assert text("web.page.hello", language) in page.text
    body = {"text": "Hi", "id": "update-0001"}
    await visitor.post("/api/message", body, Accept_Language=wish)
    assert house.service.messages[0].fan.language is language


async def test_the_switch_is_remembered_and_stronger(visitor):
    await visitor.get("/?lang=en")
    page = await visitor.get("/", Accept_Language="pt")
    assert 'lang="en"' in page.text
    assert text("web.page.hello", "en") in page.text


async def test_the_theme_is_in_the_first_byte_and_only_one_of_two(visitor):
    assert 'data-theme="dark"' in (await visitor.get("/", Cookie="farense_theme=dark")).text
    assert "data-theme" not in (await visitor.get("/", Cookie='farense_theme=x"onload=1')).text


# --- talking -------------------------------------------------------------------------------


async def test_a_message_reaches_the_service_once_for_each_update(house, visitor):
    for _ in range(2):  # the first reply was lost, the page sends again
        assert (await visitor.say("Quem és?")).status == 200
    first, second = house.service.messages
    assert first.update_id == second.update_id == f"{first.fan.id}:update-0001"
    assert (first.text, first.source, first.command) == ("Quem és?", Source.WEB, None)
    assert (first.fan.key, first.chat.platform) == (first.chat.key, Platform.WEB)
    assert await visitor.items() == [{"id": "update-0001", "fan": True, "text": "Quem és?"}]


async def test_a_typed_command_is_a_command(house, visitor):
    await visitor.say("/ask  Quem\nés?", "update-0001")
    await visitor.say("/AJUDA", "update-0002")
    await visitor.say("/nada disto", "update-0003")
    heard = [(message.command, message.text) for message in house.service.messages]
    assert heard == [("perguntar", "Quem\nés?"), ("ajuda", ""), (None, "/nada disto")]
    assert [item["text"] for item in await visitor.items()] == [
        "/ask  Quem\nés?",
        "/AJUDA",
        "/nada disto",
    ]


async def test_an_unknown_command_of_the_api_is_refused(house, visitor):
    for body in ({"name": "rm", "id": "update-0001"}, {"name": "ask", "id": "update-0001"}):
        assert (await visitor.post("/api/command", body)).status == 400
    assert house.service.messages == []


async def test_a_new_conversation_empties_the_page_and_stops_what_is_written(house, visitor):
    to = await house.chat_of(visitor)
    message_id = await house.adapter.send(to, Post("era", Buttons(AnswerId(5), running=True)))
    answer = await visitor.post("/api/command", {"name": "novo", "id": "update-0009"})
    assert answer.status == 200
    assert [(press.action, press.answer_id) for press in house.service.presses] == [("st", 5)]
    assert house.service.messages[-1].command == "novo"
    await house.adapter.edit(to, message_id, Post("era uma vez", Buttons(AnswerId(5))))
    assert await visitor.items() == []  # its end does not come back


async def test_correcting_without_a_text_names_the_newest_answer(house, visitor):
    refused = await visitor.say("/corrigir")
    assert refused.json == {"error": text("refusal.no_answer_yet")}
    house.service.exchanges = [exchange(3, "Quem és?", "Um bot.")]
    async with house.visitor() as other:
        assert (await other.say("/corrigir")).json == {"shown": False, "correct": 3}
        assert len(await other.items()) == 2  # the command itself is not shown
        for done in (False, True):  # the page keeps its form open until it is done
            house.service.done = done
            answer = await other.post("/api/correct", {"answer_id": 3, "text": "Um leão."})
            assert answer.json == {"toast": "toast", "done": done}
    assert house.service.corrections == [(3, "Um leão.")] * 2
    assert house.service.messages == []


async def test_a_store_that_fails_is_told_and_the_words_are_not_shown_as_sent(house, visitor):
    house.service.fault = StoreError("store.locked", path="/secret")
    answer = await visitor.say("Olá")
    assert (answer.status, answer.json) == (503, {"error": text("error.unexpected")})
    assert await visitor.items() == []
    house.service.fault = None
    assert (await visitor.say("Olá")).status == 200


async def test_a_fault_of_ours_is_a_sentence_and_no_traceback(house, visitor):
    house.service.fault = RuntimeError("secret path")
    answer = await visitor.say("Olá")
    assert (answer.status, answer.json) == (500, {"error": text("error.unexpected")})


# --- votes ---------------------------------------------------------------------------------


async def test_a_vote_can_be_given_changed_and_taken_back(house, visitor):
    to = await house.chat_of(visitor)
    await house.adapter.send(to, Post("resposta", Buttons(AnswerId(7))))
    seen = []
    for action in ("up", "dn", "dn"):
        answer = await visitor.post("/api/press", {"action": action, "answer_id": 7})
        seen.append((answer.json["toast"], (await visitor.items())[-1]["vote"]))
    assert seen == [("toast up", "up"), ("toast dn", "dn"), ("toast cl", None)]
    assert len({press.update_id for press in house.service.presses}) == 3
    assert [press.cleared for press in house.service.presses] == [None, None, Action.DOWN]


async def test_a_vote_that_was_not_kept_is_not_shown(house, visitor):
    to = await house.chat_of(visitor)
    await house.adapter.send(to, Post("resposta", Buttons(AnswerId(7))))
    house.service.done = False
    answer = await visitor.post("/api/press", {"action": "up", "answer_id": 7})
    assert answer.json == {"toast": "toast up", "done": False}
    assert (await visitor.items())[-1]["vote"] is None


async def test_stop_and_again_are_passed_on_and_change_no_vote(house, visitor):
    to = await house.chat_of(visitor)
    await house.adapter.send(to, Post("resposta", Buttons(AnswerId(7), running=True)))
    for action in ("st", "ag"):
        assert (await visitor.post("/api/press", {"action": action, "answer_id": 7})).status == 200
    assert [press.action for press in house.service.presses] == [Action.STOP, Action.AGAIN]
    assert (await visitor.items())[-1]["vote"] is None


@pytest.mark.parametrize("action", ["fx", "cl", "xx"])
async def test_other_presses_are_refused(house, visitor, action):
    to = await house.chat_of(visitor)
    await house.adapter.send(to, Post("resposta", Buttons(AnswerId(7))))
    answer = await visitor.post("/api/press", {"action": action, "answer_id": 7})
    assert answer.status in {400, 422}
    assert house.service.presses == []


# --- cards with choices --------------------------------------------------------------------

CARD = Post("Em **1910**?", choices=(Choice("Aprovar", "ok:7"), Choice("Editar", "?ed:7")))


async def test_a_card_becomes_what_a_tap_makes_of_it(house, visitor):
    card = await house.adapter.send(await house.chat_of(visitor), CARD)
    item = (await visitor.items())[-1]
    assert item["choices"] == [
        {"label": "Aprovar", "data": "ok:7"}, {"label": "Editar", "data": "?ed:7"},
    ]  # fmt: skip
    house.service.outcome = Outcome("certo?", Post("Mesmo?", choices=(Choice("Sim", "sure"),)))
    answer = await visitor.post("/api/tap", {"id": card, "data": "ok:7"})
    assert answer.json == {"toast": "certo?"}
    assert [each["data"] for each in (await visitor.items())[-1]["choices"]] == ["sure"]
    house.service.outcome = Outcome("pronto", Post("Aprovado."))
    await visitor.post("/api/tap", {"id": card, "data": "sure"})
    item = (await visitor.items())[-1]
    assert (item["id"], item["text"], item["choices"]) == (card, "Aprovado.", [])
    [first, second] = [tap for tap, _ in house.service.taps]
    assert (first.data, first.message_id, first.source) == ("ok:7", card, Source.WEB)
    assert first.fan.key == first.chat.key
    assert first.update_id != second.update_id


async def test_a_form_takes_what_is_typed(house, visitor):
    card = await house.adapter.send(await house.chat_of(visitor), CARD)
    tapped = {"id": card, "data": "?ed:7", "text": "Em 1910, em Faro."}
    assert (await visitor.post("/api/tap", tapped)).json == {"toast": "feito"}
    assert [(tap.data, typed) for tap, typed in house.service.taps] == [
        ("?ed:7", "Em 1910, em Faro.")
    ]
    assert len((await visitor.items())[-1]["choices"]) == 2  # nothing came of it: it stays


@pytest.mark.parametrize(
    "forged",
    [
        {"id": "{card}", "data": "ok:8"},
        {"id": "{card}", "data": "?ed:7"},  # a form without its text
        {"id": "{card}", "data": "ok:7", "text": "x"},
        {"id": "{card}", "data": ""},
        {"id": "nada", "data": "ok:7"},
        {"id": "chat-of-1", "data": "ok:7"},
        {"id": "{card}"},
    ],
)
async def test_a_choice_that_is_not_there_cannot_be_taken(house, visitor, forged):
    card = await house.adapter.send(await house.chat_of(visitor), CARD)
    body = {name: value.format(card=card) for name, value in forged.items()}
    assert (await visitor.post("/api/tap", body)).status in {400, 422}
    async with house.visitor() as other:  # the card of somebody else
        answer = await other.post("/api/tap", {"id": card, "data": "ok:7"})
        assert (answer.status, answer.json) == (422, {"error": text("refusal.choice_gone")})
    assert house.service.taps == []


async def test_teaching_is_typed_as_a_command(house, visitor):
    await visitor.say("/ensinar Quem fundou?\nAmigos.")
    [message] = house.service.messages
    assert (message.command, message.text) == ("ensinar", "Quem fundou?\nAmigos.")


async def test_what_is_asked_for_is_answered_by_the_next_words(house, visitor):
    to = await house.chat_of(visitor)
    asked = await house.adapter.send(to, Post("Como deve ficar?", ask=Asked(Wanted.LESSON)))
    await visitor.say("/estado", "update-0001")
    house.service.fault = StoreError()
    await visitor.say("Em 1910.", "update-0002")
    house.service.fault = None
    await visitor.say("Em 1910.", "update-0002")
    await visitor.say("E agora?", "update-0003")
    assert [message.reply_to for message in house.service.messages[1:]] == [None, asked, None]


# --- the stream of events ------------------------------------------------------------------


async def test_all_tabs_of_a_browser_follow_an_answer(house, visitor):
    async with visitor.stream() as one, visitor.stream() as two:
        for stream in (one, two):
            assert await anext(stream) == ("sync", [])
        to = await house.chat_of(visitor)
        await house.adapter.typing(to)
        for stream in (one, two):
            assert (await anext(stream))[1]["text"] == "Quem és?"
            assert await anext(stream) == ("typing", True)
        message_id = await house.adapter.send(
            to, Post(f"**Sou{CARET}", Buttons(AnswerId(1), running=True))
        )
        for stream in (one, two):
            event, item = await anext(stream)
            assert (event, item["id"], item["html"]) == ("item", message_id, "<p>**Sou</p>\n")
            assert (item["final"], item["buttons"]) == (False, ["st"])
        await house.adapter.edit(to, message_id, Post("**Sou**", Buttons(AnswerId(1))))
        for stream in (one, two):
            _, item = await anext(stream)
            assert item["html"] == "<p><strong>Sou</strong></p>\n"
            assert (item["final"], item["buttons"]) == (True, ["up", "dn", "fx", "ag"])


async def test_a_tab_that_connects_again_gets_everything(house, visitor):
    to = await house.chat_of(visitor)
    async with visitor.stream() as stream:
        assert len((await anext(stream))[1]) == 1
    await house.adapter.send(to, Post("entretanto", Buttons(AnswerId(1))))
    async with visitor.stream() as stream:
        event, items = await anext(stream)
    assert event == "sync"
    assert [item["text"] for item in items] == ["Quem és?", "entretanto"]


async def test_after_a_restart_the_page_shows_the_store(house, visitor):
    house.service.exchanges = [
        exchange(1, "Quem és?", "Um **bot**."),
        exchange(2, "Certo?", "Sim.", vote=1),
        exchange(3, "Não?", "Não.", vote=-1),
    ]
    items = await visitor.items()
    assert [item["text"] for item in items if item["fan"]] == ["Quem és?", "Certo?", "Não?"]
    answers = [item for item in items if not item["fan"]]
    assert [answer["vote"] for answer in answers] == [None, "up", "dn"]
    assert answers[0]["html"] == "<p>Um <strong>bot</strong>.</p>\n"


async def test_an_answer_shown_again_after_a_restart_stays_one(house, visitor):
    house.service.exchanges = [exchange(1, "Quem és?", "Um bot.")]
    await visitor.items()
    to = await house.chat_of(visitor)
    await house.adapter.edit(to, "id-of-before", Post("Um bot melhor.", Buttons(AnswerId(1))))
    assert [item["text"] for item in await visitor.items()][:2] == ["Quem és?", "Um bot melhor."]
    await house.adapter.send(to, Post("Aviso", nonce="n-1"))
    await house.adapter.send(to, Post("Aviso", nonce="n-1"))
    assert [item["text"] for item in await visitor.items()].count("Aviso") == 1


async def test_closing_the_chat_ends_the_streams(house, visitor):
    async with open_house() as other, other.visitor() as guest:
        stream = guest.stream()
        events = await stream.__aenter__()
        assert await anext(events) == ("sync", [])
        other.adapter.end_streams()
        with pytest.raises(StopAsyncIteration):
            await anext(events)
        await stream.__aexit__(None, None, None)


@contextmanager
def room_with_tab() -> Iterator[tuple[Room, Tab]]:
    room = Room()
    with room.tab() as tab:
        yield room, tab


async def test_a_slow_tab_gets_the_newest_text_and_no_queue_grows():
    with room_with_tab() as (room, tab):
        chunks = tab.chunks()
        assert (await anext(chunks)).startswith(b"retry")
        assert b"sync" in await anext(chunks)
        for length in range(5000):
            room.show("m", Post("a" * length, Buttons(AnswerId(1), running=True)))
        assert len(tab._pending) == 1
        chunk = await anext(chunks)
        assert json.loads(chunk.split(b"data: ")[1])["html"] == f"<p>{'a' * 4999}</p>\n"
        assert tab._pending == {}


async def test_a_silent_stream_has_a_heartbeat():
    with room_with_tab() as (_, tab):
        chunks = tab.chunks(heartbeat=0)
        assert [await anext(chunks) for _ in range(3)][2] == b":\n\n"


async def test_one_browser_has_a_bounded_number_of_tabs_and_items():
    room = Room()
    with room.tab() as first:
        opened = [room.tab() for _ in range(TABS)]
        for tab in opened:
            tab.__enter__()
        assert [chunk async for chunk in first.chunks()] == [b"retry: 1500\n\n"]  # it was closed
        for number in range(ITEMS + 5):
            room.put(Item(f"i{number}", "a", fan=True))
        assert next(iter(room.items)) == "i5"
        for tab in opened:
            tab.__exit__(None, None, None)
    assert room.idle


async def test_rooms_that_nobody_looks_at_are_forgotten_and_come_back(monkeypatch):
    monkeypatch.setattr("adapters.web.rooms.ROOMS", 2)
    loaded = []

    async def load(session: str) -> list[Exchange]:
        loaded.append(session)
        return [exchange(1, "Quem és?", "Um bot.")]

    transport = WebTransport(load)
    with (await transport.room("watched")).tab():
        for session in ("a", "b", "watched", "a", "watched"):
            await transport.room(session)
    assert loaded == ["watched", "a", "b", "a"]
    assert len((await transport.room("a")).view()) == 2


# --- health --------------------------------------------------------------------------------


async def test_health_needs_no_cookie_and_tells_states(house):
    house.parts["discord"] = Health(State.BROKEN, "token errado")
    async with house.visitor(arrived=False) as probe:
        assert (await probe.get("/healthz")).status == 200
        answer = await probe.get("/readyz")
        assert answer.status == 503
        assert answer.json["ready"] is False
        assert answer.json["parts"]["discord"] == {"state": "broken", "detail": "token errado"}
        house.parts["discord"] = Health(State.UP)
        answer = await probe.get("/readyz")
        assert (answer.status, answer.json["ready"]) == (200, True)
    assert house.adapter.health.state is State.UP


async def test_a_taken_port_is_an_error_for_the_admin():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        adapter = WebAdapter(ScriptedService(), Settings(web={"port": port}), dict)
        with pytest.raises(ConfigError) as error:
            await adapter.run()
    assert error.value.key == "web.port_taken"
    assert str(port) in text(error.value.key, **error.value.values)
    assert adapter.health.state is not State.UP


async def test_an_address_that_is_not_ours_is_an_error_for_the_admin():
    settings = Settings(web={"host": "192.0.2.1", "port": 0, "password": "leao"})
    with pytest.raises(ConfigError) as error:
        await WebAdapter(ScriptedService(), settings, dict).run()
    assert error.value.key == "web.host_wrong"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "farense.example"])
async def test_other_machines_are_let_in_only_with_a_password(host):
    with pytest.raises(ConfigError) as error:
        await WebAdapter(ScriptedService(), Settings(web={"host": host, "port": 0}), dict).run()
    assert error.value.key == "web.password_needed"


# --- password ------------------------------------------------------------------------------


async def test_a_password_stands_before_everything_but_health():
    async with open_house(password="força leão") as house, house.visitor() as visitor:
        page = await visitor.get("/")
        assert 'id="login"' in page.text
        assert 'id="write"' not in page.text
        assert (await visitor.get("/healthz")).status == 200
        assert (await visitor.get("/readyz")).status == 200
        assert (await visitor.say("Olá")).status == 401
        wrong = await visitor.post("/login", {"password": "força benfica"})
        assert (wrong.status, wrong.json) == (403, {"error": text("web.wrong_password")})
        right = await visitor.post("/login", {"password": "força leão"})
        assert right.status == 200
        assert right.cookies["farense_login"]["httponly"]
        assert "força" not in right.cookies["farense_login"].value
        assert 'id="write"' in (await visitor.get("/")).text
        assert (await visitor.say("Olá")).status == 200
        login = right.cookies["farense_login"].value
        async with house.visitor() as thief:  # the cookie belongs to one browser
            stolen = await thief.get("/", Cookie=f"farense_login={login}")
            assert 'id="login"' in stolen.text
    assert len(house.service.messages) == 1


async def test_a_login_ends_when_the_password_changes():
    async with open_house(password="antiga") as house, house.visitor() as visitor:
        right = await visitor.post("/login", {"password": "antiga"})
        cookies = "; ".join(
            f"{name}={right.cookies[name].value}" for name in ("farense", "farense_login")
        )
    async with open_house(password="antiga") as house, house.visitor(arrived=False) as visitor:
        assert (await visitor.get("/api/history", Cookie=cookies)).status == 200
    async with open_house(password="nova") as house, house.visitor(arrived=False) as visitor:
        assert (await visitor.get("/api/history", Cookie=cookies)).status == 401


@pytest.mark.parametrize("login", ["", ".", "9999999999.", "9999999999.x", "x.y", "²9.ç"])
async def test_a_forged_login_is_no_login(login):
    async with open_house(password="leao") as house, house.visitor() as visitor:
        assert (await visitor.get("/api/history", Cookie=f"farense_login={login}")).status == 401


async def test_the_right_password_after_many_wrong_ones_has_to_wait():
    async with open_house(password="leao") as house, house.visitor() as visitor:
        for _ in range(FREE_TRIES):
            assert (await visitor.post("/login", {"password": "x"})).status == 403
        answer = await visitor.post("/login", {"password": "leao"})
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) >= 1


def test_the_wait_doubles_to_a_limit_and_a_success_forgives():
    now = 0.0
    door = Door(Settings(web={"password": "leao"}), clock=lambda: now)
    request = SimpleNamespace(remote="10.0.0.9")
    waits = []
    for _ in range(14):
        assert not door.check_password(request, "x")
        waits.append(door.wait(request))
    assert waits[:6] == [0, 0, 1, 2, 4, 8]
    assert max(waits) == waits[-1] == 300
    assert door.wait(SimpleNamespace(remote="10.0.0.8")) == 0
    now = 300.0
    assert door.wait(request) == 0
    assert door.check_password(request, "leao")
    assert not door.check_password(request, "x")
    assert door.wait(request) == 0


async def test_with_a_password_any_host_name_may_be_used():
    async with open_house(password="leao") as house, house.visitor() as visitor:
        assert (await visitor.get("/", Host="chat.farense.example")).status == 200
