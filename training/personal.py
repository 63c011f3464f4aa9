"""Personal data taken out of what fans wrote, before anything of it is written anywhere.

What is found becomes neutral words that read on ("um e-mail", "alguém"). Scores, seasons, years,
minutes and attendances are no personal data and stay. Check digits decide where a number could be
something else; where it cannot, a mistyped number goes as well.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass

from stdnum import iban, luhn
from stdnum.pt import nif

_MAIL = (
    r"(?<![\w.+%-])[\w.+%-]++@[\w-]+(?:\.[\w-]+)*\.\w{2,}"
    r"|(?<![\w.+%-])[\w.+%-]++ ?[\[(](?:at|arroba)[\])] ?[\w-]+"
    r"(?:(?:\.| ?[\[(](?:dot|ponto)[\])] ?)\w+)+"
)
_LINK = (
    r"(?<![\w.-])(?:https?://|tg://)?(?:www\.)?(?:t\.me|telegram\.(?:me|dog)|discord\.gg|"
    r"discord(?:app)?\.com/(?:invite|users|channels)|wa\.me|chat\.whatsapp\.com|signal\.me|"
    r"(?:\w+\.)?(?:instagram|facebook|twitter|tiktok|linkedin|threads)\.(?:com|net)|"
    r"fb\.com|x\.com)/\S*[\w/]|tg://\S+"
)
# Not a part of a longer number, and no sum or crowd: "250 000 000 euros", "912 345 678 pessoas".
_FROM = r"(?<![\w+])(?<!\d[.,-])"
_TO = r"(?!\w)(?![.,-]\d)(?!\s*(?:€|euros?\b|pessoas\b|espectadores\b|adeptos\b|sócios\b))"
_S = r"[ .\u00a0-]"  # what stands between the groups of a number
_PHONE = (
    rf"(?<!\w)(?:\+|00)\(?\d{{1,3}}\)?(?:{_S}?\(?\d\)?){{7,12}}(?!\d)"
    rf"|{_FROM}(?:[29]\d{{8}}|\([29]\d\d?\) ?\d{{3}}{_S}?\d{{3,4}}"
    rf"|[29]\d\d{_S}\d{{3}}{_S}\d{{3}}|[29]\d{_S}\d{{3}}{_S}\d{{2}}{_S}\d{{2}}"
    rf"|[29]\d{_S}\d{{3}}{_S}\d{{4}}|9\d\d{_S}(?:\d{{6}}|\d\d{_S}\d\d{_S}\d\d)|[29]\d{_S}\d{{7}}){_TO}"
)
_TAX = rf"{_FROM}(?:PT ?)?\d{{3}}({_S}?)\d{{3}}\1\d{{3}}{_TO}"
_NAMED = (  # said to be one: no check digit is asked for
    r"\b(?:NIF|NISS|contribuinte|(?:BI|CC|cart[ãa]o de cidad[ãa]o)(?=\D{0,12}\d{6}))"
    rf"\D{{0,12}}\d(?:{_S}?\d){{5,10}}(?:{_S}?\d?{_S}?[A-Z]{{2}}\d)?(?!\w)"
)
_CARD = (
    rf"{_FROM}(?:[3-6]\d{{3}}|2[2-7]\d\d)({_S}?)\d{{4}}\1\d{{4}}\1\d{{1,7}}{_TO}"
    rf"|{_FROM}3[47]\d\d({_S}?)\d{{6}}\2\d{{5}}{_TO}"
)
_IBAN = (
    rf"\bPT\d\d(?:{_S}?\d){{21}}(?!\w)"  # ours go even when mistyped
    r"|\b[A-Z]{2}\d\d(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"
)


def _is_iban(text: str) -> bool:
    number = re.sub(r"[\s.\u00a0-]", "", text)
    return number[:2].upper() == "PT" or iban.is_valid(number, check_country=False)


def _is_card(text: str) -> bool:
    return luhn.is_valid(re.sub(r"\D", "", text))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return re.search(r":|\d\d", text) is not None  # 4.2.3.1 is how a team stands


@dataclass(frozen=True, slots=True)
class _Rule:
    """Where it may be, what stands there afterwards, and whether it really is one."""

    found: re.Pattern[str]
    instead: str
    check: Callable[[str], bool] = bool

    def apply(self, text: str, instead: str) -> str:
        return self.found.sub(lambda m: instead if self.check(m[0]) else m[0], text)


def _rule(pattern: str, instead: str, check: Callable[[str], bool] = bool) -> _Rule:
    return _Rule(re.compile(pattern, re.IGNORECASE), instead, check)


_RULES = (  # the longest first: what one leaves is not taken for another
    _rule(_MAIL, "um e-mail"),
    _rule(_LINK, "uma ligação"),
    _rule(r"<[@#][!&]?\d+>", "alguém"),
    _rule(r"(?:\b[oa] )?(?<![\w@])@[\w.]*\w", "alguém"),
    _rule(r"\b\w[\w.]{1,31}#\d{4}\b", "alguém"),
    _rule(_IBAN, "um IBAN", _is_iban),
    _rule(_CARD, "um número", _is_card),
    _rule(_NAMED, "um número"),
    _rule(rf"\b\d{{8}}{_S}?\d{_S}?[A-Z]{{2}}\d\b", "um número"),  # a citizen card
    _rule(_PHONE, "um número"),
    _rule(_TAX, "um número", nif.is_valid),
    _rule(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\d)", "um endereço", _is_address),
    _rule(r"(?<![\w:])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{1,4}(?![\w:])", "um endereço", _is_address),
    _rule(r"\d{9,}", "um número"),  # ids: nothing in football is as long without a space
)
_WORD = re.compile(r"[^\W\d_]{2,}")
_FILLERS = frozenset(
    re.findall(
        r"\w+",
        "meu minha número telefone telemóvel mail email nif iban é o a de do da está aqui "
        "chama-se sou my number phone is here the at em no na fala com contacta liga para",
    )
)


def remove(text: str) -> str:
    """The text without personal data; "" when nothing worth keeping is left.

    A text without any comes back as it is, and a second pass changes nothing.
    """
    clean = text
    for rule in _RULES:
        clean = rule.apply(clean, rule.instead)
    if clean == text:
        return text
    bare = text
    for rule in _RULES:
        bare = rule.apply(bare, " ")
    left = {word.casefold() for word in _WORD.findall(bare)} - _FILLERS
    return clean if left else ""
