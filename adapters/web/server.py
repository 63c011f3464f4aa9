"""The server of the web chat: the page, its small API, and the health checks."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog
from aiohttp import web
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from adapters.web.api import Body, ChatApi, body
from adapters.web.rooms import WebTransport
from adapters.web.sessions import (
    BROWSER,
    THEME,
    Door,
    is_loopback,
    set_language,
)
from bot.domain import Chat, Fan, Platform
from bot.errors import ConfigError, FarenseError, Refusal, explain
from bot.health import Health, State
from bot.records import Exchange
from bot.service import ChatService
from config.settings import Settings
from config.texts import LANGUAGES, catalogue, text

BODY_LIMIT = 256 * 1024  # the service refuses much less, with a sentence
PAGE = Path(__file__).parent / "page"
STATIC = {"style.css": "text/css", "chat.js": "text/javascript", "icon.svg": "image/svg+xml"}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}

log = structlog.get_logger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Password(Body):
    password: str


class WebAdapter(WebTransport):
    """The web chat, as the supervisor runs it."""

    def __init__(
        self,
        service: ChatService,
        settings: Settings,
        readiness: Callable[[], Mapping[str, Health]],
    ) -> None:
        super().__init__(self._history)
        self._service = service
        self._settings = settings.web
        self._readiness = readiness
        self._door = Door(settings)
        self._health = Health(State.STARTING)
        self._url = ""
        self._files = {name: (PAGE / name).read_bytes() for name in STATIC}
        version = hashlib.sha256(b"".join(self._files.values())).hexdigest()[:12]
        pages = Environment(
            loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined
        )
        self._page = pages.get_template("index.html", globals={"version": version})

    @property
    def transport(self) -> WebTransport:
        """The way to show things: the adapter itself."""
        return self

    @property
    def health(self) -> Health:
        """How it is doing right now."""
        return self._health

    @property
    def url(self) -> str:
        """Where the page is; empty until it is served."""
        return self._url

    async def run(self) -> None:
        """Serve until cancelled."""
        host = self._settings.host
        if not is_loopback(host) and not self._door.needs_password:
            raise ConfigError("web.password_needed", host=host)
        runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=2)
        await runner.setup()
        try:
            await self._listen(runner)
            self._health = Health(State.UP, self._url)
            log.info("web chat is open", url=self._url)
            await self._service.resume(Platform.WEB)
            await asyncio.Event().wait()
        finally:
            self._health = Health(State.DOWN)
            self.end_streams()
            await runner.cleanup()

    async def close(self) -> None:
        """Nothing is left open: `run` closes what it opened."""

    async def _listen(self, runner: web.AppRunner) -> None:
        host, port = self._settings.host, self._settings.port
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            key = "web.port_taken" if error.errno == errno.EADDRINUSE else "web.host_wrong"
            raise ConfigError(key, host=host, port=port) from error
        port = runner.addresses[0][1]
        self._url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def application(self) -> web.Application:
        """The routes, behind the door."""
        app = web.Application(middlewares=[self._guard], client_max_size=BODY_LIMIT)
        app.on_response_prepare.append(_add_headers)
        app.add_routes(
            [
                web.get("/", self._get_page),
                web.get("/static/{name}", self._get_static),
                web.get("/healthz", self._get_alive),
                web.get("/readyz", self._get_ready),
                web.post("/login", self._post_login),
                *ChatApi(self._service, self).routes(),
            ]
        )
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Check who asks, and answer every fault with a sentence."""
        language = self._door.language(request)
        try:
            self._check(request)
            return await handler(request)
        except web.HTTPError as error:
            is_too_big = isinstance(error, web.HTTPRequestEntityTooLarge)
            return _sorry(
                error.status, text("web.too_big" if is_too_big else "web.refused", language)
            )
        except FarenseError as error:
            status = 422 if isinstance(error, Refusal) else 503
            return _sorry(status, explain(error, language))
        except Exception:
            log.exception("web request failed", path=request.path)
            return _sorry(500, text("error.unexpected", language))

    def _check(self, request: web.Request) -> None:
        self._door.check_host(request)
        if request.method == "POST":
            self._door.check_post(request)
        browser = self._door.browser(request)
        if browser:
            request[BROWSER] = browser
        if request.path.startswith("/api/") and not self._door.is_in(browser, request):
            raise web.HTTPUnauthorized

    # --- page and health -------------------------------------------------------------------

    async def _get_page(self, request: web.Request) -> web.Response:
        if (chosen := request.query.get("lang")) in LANGUAGES:
            redirect = web.Response(status=303, headers={"Location": "/"})
            set_language(redirect, request, chosen)
            return redirect
        browser = request.get(BROWSER) or self._door.new_browser(request)
        theme = request.cookies.get(THEME)
        html = self._page.render(
            t=lambda key, **values: text(f"web.page.{key}", browser.language, **values),
            form={name: text(f"form.{name}", browser.language) for name in ("title", "label")},
            texts=_script_texts(browser.language),
            language=browser.language.value,
            theme=theme if theme in ("light", "dark") else "",
            login=not self._door.is_in(browser, request),
        )
        response = web.Response(text=html, content_type="text/html")
        self._door.remember(response, request, browser)
        return response

    async def _get_static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._files:
            raise web.HTTPNotFound
        headers = {"Cache-Control": "public, max-age=31536000, immutable"}
        return web.Response(
            body=self._files[name], content_type=STATIC[name], charset="utf-8", headers=headers
        )

    async def _get_alive(self, _request: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def _get_ready(self, _request: web.Request) -> web.Response:
        parts = self._readiness()
        ready = all(part.state in (State.UP, State.OFF) for part in parts.values())
        shown = {name: {"state": part.state, "detail": part.detail} for name, part in parts.items()}
        return web.json_response({"ready": ready, "parts": shown}, status=200 if ready else 503)

    async def _post_login(self, request: web.Request) -> web.Response:
        browser = request.get(BROWSER) or self._door.new_browser(request)
        if wait := self._door.wait(request):
            seconds = max(1, round(wait))
            answer = _sorry(429, text("web.slow_down", browser.language, seconds=seconds))
            answer.headers["Retry-After"] = str(seconds)
            return answer
        asked = await body(request, _Password)
        if not self._door.check_password(request, asked.password):
            log.warning("wrong password for the web chat", address=request.remote)
            return _sorry(403, text("web.wrong_password", browser.language))
        response = web.json_response({})
        self._door.remember(response, request, browser)
        self._door.let_in(response, request, browser)
        return response

    async def _history(self, session: str) -> list[Exchange]:
        return await self._service.transcript(
            Chat(Platform.WEB, session), Fan(Platform.WEB, session)
        )


def _sorry(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)


def _script_texts(language: str) -> str:
    """The texts of the script, for a data attribute: the page holds no inline script."""
    prefix = "web.js."
    keys = [key for key in catalogue() if key.startswith(prefix)]
    return json.dumps({key.removeprefix(prefix): text(key, language) for key in keys})


async def _add_headers(_request: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
