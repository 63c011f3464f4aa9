"""Who a browser is, and what is let in: cookies, password, host, origin and size of requests."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from aiohttp import web

from bot.domain import Chat, Fan, Language, Platform
from config.settings import Settings
from config.texts import LANGUAGES

SESSION, LOGIN, LANGUAGE, THEME = "farense", "farense_login", "farense_lang", "farense_theme"
HEADER = "X-Farense"  # a page of another origin cannot send it without asking, and we never allow
YEAR = 365 * 24 * 3600
LOGIN_DAYS = 90
FREE_TRIES = 3
LONGEST_WAIT = 300.0  # seconds
REMEMBERED = 1000  # addresses with failed logins

_HOST = re.compile(r"(?:\[([0-9a-f:]+)\]|([^:\[\]]+))(?::\d+)?", re.IGNORECASE)
_SECRET = re.compile(r"[\w-]{43}")
_PREFERENCE = re.compile(r"\s*([a-z]{2})[\w-]*\s*(?:;\s*q=([01](?:\.\d+)?))?", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _host_name(header: str) -> str:
    match = _HOST.fullmatch(header)
    return (match[1] or match[2]).lower() if match else ""


@dataclass(frozen=True, slots=True)
class Browser:
    """One browser: the secret in its cookie, and the name that it has outside of it.

    The name is a hash, so that a log, a backup or the list of admins never holds the secret.
    """

    secret: str
    language: Language

    @property
    def id(self) -> str:
        """The name of fan and chat."""
        return hashlib.sha256(self.secret.encode()).hexdigest()[:24]

    @property
    def fan(self) -> Fan:
        """The fan at this browser."""
        return Fan(Platform.WEB, self.id, language=self.language)

    @property
    def chat(self) -> Chat:
        """The browser's own chat."""
        return Chat(Platform.WEB, self.id)


BROWSER = web.RequestKey("browser", Browser)


class Door:
    """Lets requests in or turns them away."""

    def __init__(self, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        web_settings = settings.web
        self._default = Language(settings.conversation.language)
        self._key = (
            _stretch(web_settings.password.get_secret_value()) if web_settings.password else None
        )
        self._hosts: frozenset[str] | None = None
        if self._key is None and is_loopback(web_settings.host):
            self._hosts = frozenset({"localhost", "127.0.0.1", "::1", web_settings.host.lower()})
        self._clock = clock
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    @property
    def needs_password(self) -> bool:
        """Whether a password is set."""
        return self._key is not None

    def check_host(self, request: web.Request) -> None:
        """Refuse names that are not ours: a foreign name that resolves to this machine."""
        if self._hosts is not None and _host_name(request.host) not in self._hosts:
            raise web.HTTPMisdirectedRequest

    def check_post(self, request: web.Request) -> None:
        """Refuse what our own page did not send."""
        _, _, origin = request.headers.get("Origin", "").partition("://")
        if origin.lower() != request.host.lower() or request.headers.get(HEADER) != "1":
            raise web.HTTPForbidden
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType

    def browser(self, request: web.Request) -> Browser | None:
        """The browser that a request's cookie names."""
        secret = request.cookies.get(SESSION, "")
        return Browser(secret, self.language(request)) if _SECRET.fullmatch(secret) else None

    def new_browser(self, request: web.Request) -> Browser:
        """A browser that was never here."""
        return Browser(secrets.token_urlsafe(32), self.language(request))

    def language(self, request: web.Request) -> Language:
        """What the fan chose, else the first of the browser's languages that we speak."""
        chosen = request.cookies.get(LANGUAGE, "")
        if chosen in LANGUAGES:
            return Language(chosen)
        wishes = _PREFERENCE.findall(request.headers.get("Accept-Language", ""))
        for name, _ in sorted(wishes, key=lambda wish: -float(wish[1] or 1)):
            if name.lower() in LANGUAGES:
                return Language(name.lower())
        return self._default

    # --- password --------------------------------------------------------------------------

    def is_in(self, browser: Browser | None, request: web.Request) -> bool:
        """Whether this browser may chat: it has been on the page, and gave the password if any."""
        if self._key is None:
            return browser is not None
        until, _, mac = request.cookies.get(LOGIN, "").partition(".")
        if browser is None or not until.isdecimal() or int(until) < time.time():
            return False
        return hmac.compare_digest(mac.encode(), self._mac(browser, until).encode())

    def wait(self, request: web.Request) -> float:
        """Seconds until this address may try a password again."""
        _, until = self._failures.get(request.remote or "", (0, 0.0))
        return max(0.0, until - self._clock())

    def check_password(self, request: web.Request, password: str) -> bool:
        """Compare in constant time; each failure after the first few doubles the wait."""
        address = request.remote or ""
        if self._key and hmac.compare_digest(_stretch(password), self._key):
            self._failures.pop(address, None)
            return True
        count = self._failures.get(address, (0, 0.0))[0] + 1
        wait = min(LONGEST_WAIT, 2.0 ** (count - FREE_TRIES)) if count >= FREE_TRIES else 0.0
        self._failures[address] = count, self._clock() + wait
        self._failures.move_to_end(address)
        while len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)
        return False

    def remember(
        self, response: web.StreamResponse, request: web.Request, browser: Browser
    ) -> None:
        """Set the cookie that says who the browser is."""
        _cookie(response, request, SESSION, browser.secret, YEAR)

    def let_in(self, response: web.StreamResponse, request: web.Request, browser: Browser) -> None:
        """Set the cookie that says that it gave the password; it ends when the password changes."""
        seconds = LOGIN_DAYS * 24 * 3600
        until = str(int(time.time()) + seconds)
        _cookie(response, request, LOGIN, f"{until}.{self._mac(browser, until)}", seconds)

    def _mac(self, browser: Browser, until: str) -> str:
        return hmac.digest(self._key or b"", f"{browser.id} {until}".encode(), "sha256").hex()


def _stretch(password: str) -> bytes:
    """A key that is slow to guess from a stolen cookie: some 20 ms."""
    return hashlib.scrypt(password.encode(), salt=b"farense web chat", n=2**13, r=8, p=1)


def _cookie(
    response: web.StreamResponse, request: web.Request, name: str, value: str, seconds: int
) -> None:
    https = request.secure or request.headers.get("X-Forwarded-Proto") == "https"
    response.set_cookie(
        name, value, max_age=seconds, path="/", httponly=True, secure=https, samesite="Strict"
    )


def set_language(response: web.StreamResponse, request: web.Request, language: str) -> None:
    """Remember the language that the fan chose."""
    _cookie(response, request, LANGUAGE, language, YEAR)
