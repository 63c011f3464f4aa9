"""The web chat in real Chromium: real page, server, service and store; only the model is ours."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Self

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Locator, Page, async_playwright, expect

from adapters.web import WebAdapter
from bot.domain import (
    AnswerId,
    AnswerState,
    Delta,
    Done,
    EngineStatus,
    Event,
    Finish,
    Queued,
    Request,
    Turn,
    Usage,
)
from bot.health import Health, State
from bot.ports import Engine
from bot.service import ChatService
from bot.store import Store
from config.settings import EngineSettings, Settings
from config.texts import text
from engine.echo import EchoEngine
from tests.servers.need import need

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

MARKDOWN = """Claro! O **Farense** é de *Faro*.

1. Fundado em 1910
2. Joga no [São Luís](https://example.org)

| Época | Lugar |
|:--|--:|
| 1994/95 | 5.º |

```python
print("Goooolo!")
```
"""
EVIL = """<script>document.title = "evil"</script>
<img src=x onerror="document.title = 'evil'">
[carrega](javascript:document.title='evil') <svg onload="document.title='evil'">
```"><script>document.title="evil"</script>
"""


class PenEngine:
    """Writes the answers that a test puts down; with the gate closed it stops half-way."""

    def __init__(self) -> None:
        self.answer = "Sou o **Farense Bot**."
        self.position = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.status = EngineStatus(
            ready=True,
            model="pen",
            revision="base",
            plan="cpu",
            context=4096,
            running=0,
            waiting=0,
            tokens_per_second=1.0,
            cache_bytes=0,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None: ...

    def encode(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        return tuple(range(sum(len(turn.text) // 4 + 1 for turn in turns)))

    async def generate(self, request: Request) -> AsyncGenerator[Event, None]:
        if self.position:
            yield Queued(self.position)
        half = len(self.answer) // 2
        if not self.position:
            yield Delta(self.answer[:half])
        await self.gate.wait()
        yield Delta(self.answer[half:] if not self.position else self.answer)
        usage = Usage("base", len(request.tokens), 0, 2, 0.0, 0.0, 0.0)
        yield Done(Finish.STOP, usage)


class House:
    """The bot behind the page; it can be stopped and started again on the same store and port."""

    def __init__(
        self, home: Path, engine: Engine | None = None, limits: EngineSettings | None = None
    ) -> None:
        self.pen = PenEngine()
        self.engine = engine or self.pen
        self.limits = limits or EngineSettings()
        self.home = home
        self.store: Store
        self.port = 0
        self.password: str | None = None
        self.admins: tuple[str, ...] = ()
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def start(self) -> None:
        web = {"port": self.port, "password": self.password}
        settings = Settings(home=self.home, web=web, engine=self.limits, admins=self.admins)
        store = self.store = await self._stack.enter_async_context(Store.open(settings.database))
        engine = await self._stack.enter_async_context(self.engine)
        service = ChatService(engine, store, settings)
        adapter = WebAdapter(service, settings, lambda: {"engine": Health(State.UP)})
        service.attach(adapter)
        await self._stack.enter_async_context(service)
        serving = asyncio.create_task(adapter.run())
        self._stack.push_async_callback(_end, serving)
        async with asyncio.timeout(10):
            while adapter.health.state is not State.UP:
                assert not serving.done(), serving.exception()
                await asyncio.sleep(0)
        self.port = int(adapter.url.rsplit(":", 1)[1])

    async def stop(self) -> None:
        await self._stack.aclose()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    path = need(Path("/usr/bin/chromium"), "the web chat is tested in it")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="module")
async def house(tmp_path: Path) -> AsyncIterator[House]:
    opened = House(tmp_path)
    await opened.start()
    yield opened
    opened.pen.gate.set()
    await opened.stop()


class Reader:
    """A fan at a browser; at the end nothing may have been written to the console."""

    def __init__(self, context: BrowserContext, house: House) -> None:
        self.context = context
        self.house = house
        self.complaints: list[str] = []

    async def open(self) -> Page:
        page = await self.context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        await page.goto(self.house.url)
        return page

    async def arrive(self) -> Page:
        page = await self.open()
        await expect(page.locator("#dot.up")).to_be_visible()
        return page


@pytest_asyncio.fixture(loop_scope="module")
async def reader(chromium: Browser, house: House) -> AsyncIterator[Reader]:
    context = await chromium.new_context(locale="pt-PT")
    reader = Reader(context, house)
    yield reader
    await context.close()
    assert reader.complaints == []


async def say(page: Page, words: str) -> None:
    await page.fill("#text", words)
    await page.press("#text", "Enter")


def action(page: Page, name: str) -> Locator:
    return page.locator(f"[data-action={name}]").last


def bubbles(page: Page, who: str) -> Locator:
    return page.locator(f"article.{who} .bubble")


async def test_a_question_is_typed_answered_and_rendered(reader, house):
    house.pen.answer = MARKDOWN
    page = await reader.arrive()
    await expect(page.locator("#greeting")).to_be_visible()
    await page.fill("#text", "Olá")
    await page.press("#text", "Shift+Enter")
    await page.type("#text", "Quem és?")
    await page.press("#text", "Enter")
    await expect(page.locator("#greeting")).to_be_hidden()
    await expect(bubbles(page, "fan")).to_have_text("Olá\nQuem és?")
    await expect(page.locator("#text")).to_have_value("")
    answer = bubbles(page, "bot")
    await expect(action(page, "up")).to_be_visible()
    await expect(answer.locator("strong")).to_have_text("Farense")
    await expect(answer.locator("td.right")).to_have_text("5.º")
    await expect(answer.locator("pre")).to_contain_text('print("Goooolo!")')
    await expect(answer.locator("a")).to_have_attribute("target", "_blank")
    await expect(page.locator("#announce")).to_contain_text("Farense")


async def test_a_walk_on_the_echo_engine(chromium, tmp_path):
    steps = asyncio.Semaphore(0)
    house = House(tmp_path, EchoEngine(step=steps.acquire))
    await house.start()
    context = await chromium.new_context(locale="pt-PT")
    reader = Reader(context, house)
    page = await reader.arrive()
    await say(page, "Viva o **Farense**, força!")
    for _ in range(4):
        steps.release()
    await expect(page.locator("article.running .bubble")).to_have_text("Viva o **Far")
    for _ in range(100):
        steps.release()
    await expect(bubbles(page, "bot")).to_have_text("Viva o Farense, força!")
    await action(page, "up").click()
    await say(page, "/estado")
    await expect(bubbles(page, "bot").last).to_contain_text("echo")
    await page.reload()
    await expect(action(page, "up")).to_have_attribute("aria-pressed", "true")
    await context.close()
    await house.stop()
    assert reader.complaints == []


GROWTH = """() => {
  window.seen = [];
  new MutationObserver(() => {
    const bubble = document.querySelector("article.running .bubble");
    if (bubble) window.seen.push(bubble.textContent.length);
  }).observe(document.getElementById("log"), {childList: true, subtree: true, characterData: true});
}"""


@pytest.mark.model
async def test_the_embedded_model_answers_is_seen_writing_and_is_voted_on(
    chromium, tmp_path, embedded_model
):
    from engine.mlx_engine import MLXEngine
    from engine.plan import detect, prepare

    limits = EngineSettings(temperature=0, max_tokens=40)
    house = House(tmp_path, MLXEngine(limits, embedded_model, prepare(detect())), limits)
    await house.start()
    context = await chromium.new_context(locale="pt-PT")
    reader = Reader(context, house)
    page = await reader.arrive()
    await page.evaluate(GROWTH)
    await say(page, "What is the capital of Portugal?")
    await expect(action(page, "up")).to_be_visible(timeout=60_000)
    lengths = await page.evaluate("window.seen")
    assert lengths == sorted(lengths)  # it only ever grows
    assert len(set(lengths)) > 3
    await action(page, "up").click()
    await expect(action(page, "up")).to_have_attribute("aria-pressed", "true")
    answer = await house.store.answer(AnswerId(1))
    assert answer.state in {AnswerState.DONE, AnswerState.STOPPED}
    written, shown = answer.text.split(), await bubbles(page, "bot").first.inner_text()
    assert shown.split()[: len(written)] == written
    await expect(bubbles(page, "bot").nth(1)).to_contain_text("Posso aprender contigo?")
    assert await house.store.votes(AnswerId(1)) == (1, 0)
    await context.close()
    await house.stop()
    assert reader.complaints == []


async def test_a_correction_that_was_refused_keeps_what_was_typed(reader):
    page = await reader.arrive()
    await say(page, "Quem és?")
    await action(page, "fx").click()
    form = page.locator("form.fix")
    most = Settings().conversation.max_chars
    words = "g" * (most + 1)
    await form.locator("textarea").fill(words)
    await form.locator("[type=submit]").click()
    sentence = text("refusal.too_many_chars", most=most)
    await expect(page.locator("#toast.on")).to_have_text(sentence)
    await expect(form.locator("textarea")).to_have_value(words)
    await form.locator("textarea").fill("Sou o bot dos Leões de Faro.")
    await form.locator("[type=submit]").click()
    await expect(page.locator("#toast.on")).to_have_text(text("toast.corrected"))
    await expect(form).to_have_count(0)


async def test_a_lesson_is_taught_confirmed_edited_and_approved_by_taps(reader, house):
    page = await reader.arrive()
    choice = page.locator("button.choice")
    await say(page, "/ensinar Quem fundou o clube?\nUns amigos.")
    await choice.get_by_text(text("choice.yes")).click()
    await expect(page.locator("#toast.on")).to_have_text(text("lesson.thanks"))
    await expect(choice).to_have_count(0)
    lesson = await house.store.lesson(1)
    assert (lesson.question, lesson.state) == ("Quem fundou o clube?", "pending")
    await house.stop()
    house.admins = (lesson.fan_key,)
    await house.start()
    await expect(page.locator("#banner")).to_be_hidden()
    await say(page, "/rever")
    await expect(bubbles(page, "bot").last).to_contain_text("Uns amigos.")
    edit = choice.get_by_text(text("choice.edit"))
    form, words = page.locator("form.fix"), "Uns amigos, em Faro, em 1910."
    await edit.click()
    await expect(form).to_contain_text(text("form.title"))
    await form.locator("textarea").fill(words)
    await form.locator("textarea").press("Escape")
    await expect(edit).to_be_focused()
    await edit.press("Enter")
    await expect(form.locator("textarea")).to_have_value(words)  # it was kept
    await form.locator("[type=submit]").click()
    await expect(page.locator("#toast.on")).to_have_text(text("review.approved"))
    await expect(form).to_have_count(0)
    await expect(bubbles(page, "bot").last).to_have_text(text("review.none"))
    await expect(choice).to_have_count(0)
    lesson = await house.store.lesson(1)
    assert (lesson.answer, lesson.state) == (words, "approved")
    reader.complaints[:] = [told for told in reader.complaints if "ERR_" not in told]


async def test_an_example_question_is_one_tap(reader):
    page = await reader.arrive()
    await page.locator(".chip").nth(2).click()
    await expect(bubbles(page, "fan")).to_have_text(text("web.page.chip3"))
    await expect(action(page, "up")).to_be_visible()


async def test_an_answer_streams_and_can_be_stopped(reader, house):
    house.pen.gate.clear()
    house.pen.answer = "Era uma vez um leão de Faro."
    page = await reader.arrive()
    await say(page, "Conta")
    await expect(bubbles(page, "bot")).to_have_text("Era uma vez um")
    await expect(page.locator("article.running")).to_be_visible()
    await action(page, "st").click()
    await expect(page.locator("article.running")).to_have_count(0)
    await expect(bubbles(page, "bot")).to_have_text("Era uma vez um")
    await expect(action(page, "up")).to_be_visible()


async def test_a_waiting_fan_sees_the_place_in_the_queue(reader, house):
    house.pen.gate.clear()
    house.pen.position = 2
    page = await reader.arrive()
    await say(page, "Quem és?")
    await expect(page.locator("#typing")).to_be_visible()
    await expect(bubbles(page, "bot")).to_have_text(text("queue.position", n=2))
    await expect(page.locator("#typing")).to_be_hidden()
    house.pen.gate.set()
    await expect(bubbles(page, "bot")).to_have_text("Sou o Farense Bot.")


async def test_a_vote_is_shown_kept_and_changed(reader):
    page = await reader.arrive()
    await say(page, "Quem és?")
    await action(page, "up").click()
    await expect(page.locator("#toast.on")).to_have_text(text("toast.up"))
    await expect(action(page, "up")).to_have_attribute("aria-pressed", "true")
    await page.reload()
    await expect(action(page, "up")).to_have_attribute("aria-pressed", "true")
    await action(page, "dn").click()
    await expect(action(page, "up")).to_have_attribute("aria-pressed", "false")
    await expect(action(page, "dn")).to_have_attribute("aria-pressed", "true")
    await action(page, "dn").click()
    await expect(action(page, "dn")).to_have_attribute("aria-pressed", "false")


async def test_a_correction_is_written_in_place(reader):
    page = await reader.arrive()
    await say(page, "Quem és?")
    await action(page, "fx").click()
    form = page.locator("form.fix")
    await expect(form.locator("textarea")).to_be_focused()
    await expect(form.locator("textarea")).to_have_value("Sou o **Farense Bot**.")
    await page.keyboard.press("Escape")
    await expect(form).to_have_count(0)
    await expect(action(page, "fx")).to_be_focused()
    await say(page, "/corrigir")
    await form.locator("textarea").fill("  ")
    await form.locator("[type=submit]").click()
    await expect(form.locator("textarea")).to_be_focused()
    await form.locator("textarea").fill("Sou o bot dos Leões de Faro.")
    await form.locator("[type=submit]").click()
    await expect(page.locator("#toast.on")).to_have_text(text("toast.corrected"))
    await expect(form).to_have_count(0)
    await action(page, "fx").click()  # to say it still better
    await expect(form.locator("textarea")).to_have_value("Sou o bot dos Leões de Faro.")
    await expect(bubbles(page, "fan")).to_have_count(1)


async def test_another_answer_and_a_new_conversation(reader, house):
    page = await reader.arrive()
    await say(page, "Quem és?")
    await expect(action(page, "ag")).to_be_visible()
    house.pen.answer = "Sou um leão."
    await action(page, "ag").click()
    await expect(bubbles(page, "bot").last).to_have_text("Sou um leão.")
    for start in (page.locator("#new").click, partial(say, page, "/novo")):
        await start()
        await expect(page.locator("article.fan")).to_have_count(0)
        await expect(page.locator("#greeting")).to_be_visible()
        await expect(bubbles(page, "bot")).to_have_text(text("reply.new"))
        await page.reload()
        await expect(page.locator("#greeting")).to_be_visible()


async def test_a_reload_and_a_second_tab_show_the_same(reader, house):
    one = await reader.arrive()
    await say(one, "Quem és?")
    await expect(action(one, "up")).to_be_visible()
    await one.reload()
    await expect(bubbles(one, "fan")).to_have_text("Quem és?")
    await expect(bubbles(one, "bot")).to_have_text("Sou o Farense Bot.")
    two = await reader.arrive()
    await expect(bubbles(two, "bot")).to_have_text("Sou o Farense Bot.")
    house.pen.answer = "Em Faro."
    await say(two, "Onde jogas?")
    for page in (one, two):
        await expect(bubbles(page, "fan")).to_have_text(["Quem és?", "Onde jogas?"])
        await expect(bubbles(page, "bot").last).to_have_text("Em Faro.")
        await expect(page.locator("article.running")).to_have_count(0)
    await action(two, "up").click()
    await expect(action(one, "up")).to_have_attribute("aria-pressed", "true")


async def test_nothing_that_anybody_writes_runs_in_the_page(reader, house):
    house.pen.answer = EVIL
    page = await reader.arrive()
    await say(page, EVIL)
    await expect(action(page, "up")).to_be_visible()
    await expect(bubbles(page, "fan")).to_have_text(EVIL.strip(), use_inner_text=True)
    await expect(bubbles(page, "bot")).to_contain_text("<script>")
    await page.reload()
    await expect(bubbles(page, "bot")).to_contain_text("<script>")
    for locator in ("#log script", "#log img", "#log svg", '#log [href^="javascript"]'):
        await expect(page.locator(locator)).to_have_count(0)
    assert await page.title() == text("web.page.title")


async def test_the_page_survives_a_restart_of_the_bot(reader, house):
    page = await reader.arrive()
    await say(page, "Quem és?")
    await expect(action(page, "up")).to_be_visible()
    await house.stop()
    await expect(page.locator("#banner")).to_have_text(text("web.js.offline"))
    await say(page, "Estás aí?")
    await expect(page.locator("article.failed")).to_be_visible()
    house.pen.answer = "Estou."
    await house.start()
    await expect(page.locator("#banner")).to_be_hidden()
    await expect(page.locator("#dot.up")).to_be_visible()
    await expect(bubbles(page, "fan").first).to_have_text("Quem és?")
    await page.locator("article.failed").click()
    await expect(bubbles(page, "bot")).to_have_text(["Sou o Farense Bot.", "Estou."])
    await expect(page.locator("article.failed")).to_have_count(0)
    await page.reload()
    await expect(bubbles(page, "fan")).to_have_text(["Quem és?", "Estás aí?"])
    reader.complaints[:] = [told for told in reader.complaints if "ERR_" not in told]


async def test_the_reader_s_place_is_kept_while_an_answer_grows(reader, house):
    house.pen.answer = "\n\n".join(f"Golo número {number}" for number in range(60))
    page = await reader.arrive()
    await say(page, "Conta")
    await expect(action(page, "up")).to_be_in_viewport()
    house.pen.gate.clear()
    await say(page, "Mais")
    await expect(page.locator("article.running")).to_be_visible()
    await page.locator("article.fan").first.scroll_into_view_if_needed()
    await expect(page.locator("#down")).to_be_visible()
    house.pen.gate.set()
    await expect(page.locator("article.running")).to_have_count(0)
    await expect(page.locator("article.fan").first).to_be_in_viewport()
    await page.locator("#down").click()
    await expect(action(page, "up")).to_be_in_viewport()
    await expect(page.locator("#down")).to_be_hidden()


async def test_light_and_dark_follow_the_system_until_chosen(chromium, house):
    context = await chromium.new_context(color_scheme="dark", locale="pt-PT")
    reader = Reader(context, house)
    page = await reader.arrive()
    await expect(page.locator("body")).to_have_css("background-color", "rgb(18, 16, 14)")
    await page.locator("#theme").click()
    await expect(page.locator("body")).to_have_css("background-color", "rgb(246, 243, 238)")
    await page.reload()
    await expect(page.locator("html")).to_have_attribute("data-theme", "light")
    await expect(page.locator("body")).to_have_css("background-color", "rgb(246, 243, 238)")
    await context.close()
    assert reader.complaints == []


@pytest.mark.parametrize("width", [320, 390])
async def test_on_a_phone_everything_fits_the_width(chromium, house, width):
    house.pen.answer = MARKDOWN + "\n" + "g" * 300 + "\n\n```\n" + "x" * 300 + "\n```"
    context = await chromium.new_context(
        viewport={"width": width, "height": 844}, has_touch=True, is_mobile=True, locale="pt-PT"
    )
    reader = Reader(context, house)
    page = await reader.arrive()
    await page.locator(".chip").first.tap()
    await expect(action(page, "up")).to_be_in_viewport()
    await action(page, "fx").tap()
    await expect(page.locator("form.fix [type=submit]")).to_be_in_viewport()
    for part in ("header", "#write", "article.bot .bubble", "form.fix", "#send", "#theme"):
        box = await page.locator(part).last.bounding_box()
        assert box is not None
        assert box["x"] >= 0, part
        assert box["x"] + box["width"] <= width, part
    assert await page.locator("#scroll").evaluate("e => e.scrollWidth - e.clientWidth") == 0
    await context.close()
    assert reader.complaints == []


async def test_the_language_switch(reader):
    page = await reader.arrive()
    await page.locator("nav a").click()
    await expect(page.locator("#greeting h2")).to_have_text(text("web.page.hello", "en"))
    await expect(page.locator("html")).to_have_attribute("lang", "en")
    await expect(page.locator("#dot.up")).to_be_visible()
    await say(page, "/help")
    await expect(bubbles(page, "bot")).to_contain_text(text("command.novo.summary", "en"))


async def test_everything_can_be_reached_with_the_keyboard(reader):
    page = await reader.arrive()
    await expect(page.locator("#text")).to_be_focused()
    await say(page, "Quem és?")
    await expect(action(page, "up")).to_be_visible()
    await action(page, "up").focus()
    await page.keyboard.press("Enter")
    await expect(action(page, "up")).to_have_attribute("aria-pressed", "true")
    await expect(action(page, "up")).to_be_focused()  # although the row was drawn anew
    for name in ("dn", "fx", "ag"):
        await page.keyboard.press("Tab")
        await expect(action(page, name)).to_be_focused()
        await expect(action(page, name)).to_have_attribute("aria-label", text(f"web.js.{name}"))


async def test_with_a_password_the_chat_opens_after_it(chromium, house):
    await house.stop()
    house.password = "força"
    await house.start()
    context = await chromium.new_context(locale="pt-PT")
    reader = Reader(context, house)
    page = await reader.open()
    await page.fill("#password", "fraca")
    await page.press("#password", "Enter")
    await expect(page.locator("#toast.on")).to_have_text(text("web.wrong_password"))
    await page.fill("#password", "força")
    await page.press("#password", "Enter")
    await expect(page.locator("#dot.up")).to_be_visible()
    await say(page, "Quem és?")
    await expect(action(page, "up")).to_be_visible()
    await context.close()
    assert [told for told in reader.complaints if not re.search("403", told)] == []
