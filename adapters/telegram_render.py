"""How Telegram shows a post: Markdown as entities, pieces that fit a message, buttons."""

from __future__ import annotations

import re
from collections.abc import Sequence

import structlog
from telegram import InlineKeyboardButton, InlineKeyboardMarkup, MessageEntity
from telegram.constants import MessageLimit
from telegramify_markdown import RenderConfig, convert

from bot.domain import Action, AnswerId, Buttons, Choice
from bot.text import split as cut
from bot.text import utf16_length

log = structlog.get_logger(__name__)

LIMIT = int(MessageLimit.MAX_TEXT_LENGTH)  # UTF-16 units of the text as it is shown
PIECE = LIMIT - 96  # of the source: bullets and rules may come out longer than they went in
MOST_ENTITIES = int(MessageLimit.MESSAGE_ENTITIES)

LABELS = {
    Action.UP: "👍",
    Action.DOWN: "👎",
    Action.FIX: "✏️",
    Action.AGAIN: "🔁",
    Action.STOP: "⏹",
}
_DATA = re.compile(rf"({'|'.join(LABELS)}):([1-9][0-9]{{0,17}})")
_CHOICE = re.compile(r"c:([ -~]{1,40})")

# Links are kept to the web: `tg://user` would be a mention, `tg://` more.
_KINDS = frozenset(
    {"bold", "italic", "underline", "strikethrough", "spoiler", "code", "pre"}
    | {"blockquote", "expandable_blockquote", "text_link"}
)
_CODE = frozenset({"code", "pre"})
_WEB = ("http://", "https://")

_SURROGATES = re.compile(r"[\ud800-\udfff]")
# The converter drops HTML, and with it what fans and models write in angle brackets. A
# noncharacter of the same width stands in for the bracket meanwhile.
_TAG = re.compile(r"<(?=[A-Za-z/!?])")
_STAND_IN = "\ufdd0"
_MENTION = re.compile(r"(?<![\w/.+-])@(?=[A-Za-z]\w{3})")
_JOINER = "\u2060"


def _style() -> RenderConfig:
    """The converter's style: headings are bold, without its pictograms."""
    style = RenderConfig.isolated()
    for level in range(1, 7):
        setattr(style.markdown_symbol, f"heading_level_{level}", "")
    style.markdown_symbol.unordered_list_item = "•"
    return style


_STYLE = _style()


def split(text: str) -> list[str]:
    """Cut CommonMark into pieces that `render` makes a message of."""
    return cut(_SURROGATES.sub("\ufffd", text), PIECE, _room)


def _room(text: str) -> int:
    """How long a source is in a message, with a joiner behind every @."""
    return utf16_length(text) + text.count("@")


def render(text: str) -> tuple[str, list[MessageEntity]]:
    """Markdown as text with entities; as it is where it cannot be converted."""
    plain = _SURROGATES.sub("\ufffd", text).replace(_STAND_IN, "")
    try:
        shown, found = convert(_TAG.sub(_STAND_IN, plain), config=_STYLE)
    except Exception as error:  # noqa: BLE001 (whatever it is, the fan must see the text)
        log.warning("markdown not converted", error=type(error).__name__)
        shown, found = "", []
    entities = [
        MessageEntity(kind.type, kind.offset, kind.length, url=kind.url, language=kind.language)
        for kind in found
        if kind.length and kind.type in _KINDS
        if kind.type != "text_link" or str(kind.url).lower().startswith(_WEB)
    ]
    shown, entities = _quiet(shown.replace(_STAND_IN, "<"), entities)
    if not shown.strip() or utf16_length(shown) > LIMIT:
        shown, entities = _quiet(plain, [])
    return (shown if shown.strip() else "…"), entities[:MOST_ENTITIES]


def _quiet(text: str, entities: list[MessageEntity]) -> tuple[str, list[MessageEntity]]:
    """Put an invisible joiner behind every @ that would call somebody, outside code."""
    code = [(each.offset, each.offset + each.length) for each in entities if each.type in _CODE]
    places: list[int] = []  # UTF-16 offsets in the text as it was
    parts: list[str] = []
    done = units = 0
    for match in _MENTION.finditer(text):
        units += utf16_length(text[done : match.end()])
        parts.append(text[done : match.end()])
        done = match.end()
        if not any(start < units <= end for start, end in code):
            places.append(units)
            parts.append(_JOINER)
    moved = []
    for each in entities:
        start = each.offset + sum(place <= each.offset for place in places)
        end = each.offset + each.length
        end += sum(place < end for place in places)
        moved.append(
            MessageEntity(each.type, start, end - start, url=each.url, language=each.language)
        )
    return "".join(parts) + text[done:], moved


def keyboard(
    buttons: Buttons | None, choices: Sequence[Choice] = ()
) -> InlineKeyboardMarkup | None:
    """The row under an answer or a notice; each button says in its data all that it means."""
    row = [
        InlineKeyboardButton(choice.label, callback_data=f"c:{choice.data}") for choice in choices
    ]
    if buttons is not None:
        row += [
            InlineKeyboardButton(LABELS[action], callback_data=f"{action}:{buttons.answer_id}")
            for action in buttons.actions
        ]
    return InlineKeyboardMarkup([row]) if row else None


def parse_data(data: str | None) -> tuple[Action, AnswerId] | None:
    """What a button means; None when it is not one of ours."""
    match = _DATA.fullmatch(data or "")
    return (Action(match[1]), AnswerId(int(match[2]))) if match else None


def parse_choice(data: str | None) -> str | None:
    """What a choice under a notice stands for; None when it is not one of ours."""
    match = _CHOICE.fullmatch(data or "")
    return match[1] if match else None
