"""Telegram, in pieces: what is meant for the bot, how a post looks, what an error means."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from telegram import Update, User, error

from adapters.telegram_inbound import ALBUMS_KEPT, Albums, Translator
from adapters.telegram_limits import BURST, LATE, RATE, Limiter
from adapters.telegram_render import (
    LABELS,
    LIMIT,
    keyboard,
    parse_choice,
    parse_data,
    render,
    split,
)
from adapters.telegram_transport import core_errors
from bot.domain import Action, AnswerId, Buttons, ChatKind, Choice, Language, Source
from bot.errors import (
    DeliveryError,
    DeliveryFailed,
    DeliveryUnknown,
    MessageGone,
    NotModified,
    RetryAfter,
)
from bot.text import utf16_length

BOT = User(42, "Leão", is_bot=True, username="LeaoBot")
ANA = {"id": 1, "is_bot": False, "first_name": "Ana", "last_name": "Sá", "language_code": "pt-PT"}
PRIVATE = {"id": 1, "type": "private", "first_name": "Ana"}
GROUP = {"id": -100, "type": "supergroup", "title": "Adeptos"}
TRANSLATE = Translator(BOT, Language.PT)


def update(**message: Any) -> Update:
    base = {"message_id": 9, "date": 1_790_000_000, "chat": PRIVATE, "from": ANA}
    return Update.de_json({"update_id": 3, "message": base | message}, None)


def message(**fields: Any):
    return TRANSLATE.message(update(**fields))


def mention(text: str, name: str = "@LeaoBot") -> dict[str, Any]:
    offset = utf16_length(text[: text.index(name)])
    return {
        "text": text,
        "entities": [{"type": "mention", "offset": offset, "length": utf16_length(name)}],
    }


def reply(sender: dict[str, Any], **fields: Any) -> dict[str, Any]:
    answered = {"message_id": 5, "date": 1, "chat": GROUP, "from": sender, **fields}
    return {"reply_to_message": answered}


BOT_JSON = BOT.to_dict()


# --- what is meant for the bot ----------------------------------------------------------------


def test_a_private_message_is_the_fans_question():
    got = message(text="Quando joga o Farense?")
    assert got.text == "Quando joga o Farense?"
    assert (got.update_id, got.message_id, got.chat.key) == ("42:3", "9", "telegram:1")
    assert (got.fan.key, got.fan.name, got.fan.language) == ("telegram:1", "Ana Sá", "pt")
    assert (got.source, got.command) == (Source.TELEGRAM_PRIVATE, None)
    assert got.received_at == datetime.fromtimestamp(1_790_000_000, UTC)


@pytest.mark.parametrize(
    ("code", "language"),
    [("en-GB", "en"), ("EN", "en"), ("pt-br", "pt"), ("fr", "pt"), (None, "pt")],
)
def test_the_language_is_the_apps_or_the_default(code, language):
    got = message(text="x", **{"from": ANA | {"language_code": code}})
    assert got.fan.language == language


def test_another_default_language_holds_for_those_who_speak_neither():
    translate = Translator(BOT, Language.EN)
    assert translate.fan(User(1, "A", is_bot=False, language_code="fr")).language == "en"
    assert translate.fan(User(1, "A", is_bot=False, language_code="pt")).language == "pt"


@pytest.mark.parametrize(
    ("text", "command", "rest"),
    [
        ("/novo", "novo", ""),
        ("/NEW", "novo", ""),
        ("/start", "ajuda", ""),
        ("/perguntar quem és tu?", "perguntar", "quem és tu?"),
        ("/ask@leaobot who\nare you", "perguntar", "who\nare you"),
        ("/privacy", "privacidade", ""),
        ("/inventado coisa", "ajuda", ""),
        ("/", None, "/"),
        ("/etc/passwd?", None, "/etc/passwd?"),
        ("diz /novo", None, "diz /novo"),
    ],
)
def test_commands_in_private(text, command, rest):
    got = message(text=text)
    assert (got.command, got.text) == (command, rest)


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("/novo", "novo"),
        ("/novo@LeaoBot", "novo"),
        ("/inventado@LeaoBot", "ajuda"),
        ("/inventado", None),
        ("/novo@OutroBot", None),
    ],
)
def test_commands_in_a_group_unless_they_are_another_bots(text, command):
    got = message(text=text, chat=GROUP)
    assert (got.command if got else None) == command


def test_a_command_for_another_bot_is_not_ours_even_in_a_reply_to_us():
    assert message(text="/novo@OutroBot", chat=GROUP, **reply(BOT_JSON)) is None


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("@LeaoBot quando joga?", "quando joga?"),
        ("@leaobot: quando joga?", "quando joga?"),
        ("😀 Ó @LeaoBot, quando joga?", "😀 Ó, quando joga?"),
        ("quando joga @LeaoBot?", "quando joga?"),
        ("@LeaoBot", ""),
        ("@LeaoBot /novo", ""),
    ],
)
def test_in_a_group_a_mention_calls_the_bot_and_is_no_part_of_the_question(text, rest):
    named = next(part for part in ("@LeaoBot", "@leaobot") if part in text)
    got = message(chat=GROUP, **mention(text, named))
    assert got.text == rest
    assert got.command == ("novo" if "/novo" in text else None)
    assert (got.source, got.chat.kind) == (Source.TELEGRAM_GROUP, ChatKind.GROUP)


def test_a_mention_of_a_bot_without_a_name_counts():
    spot = {"type": "text_mention", "offset": 0, "length": 4, "user": BOT_JSON}
    assert message(chat=GROUP, text="Leão olá", entities=[spot]).text == "olá"


@pytest.mark.parametrize("text", ["olá a todos", "fala com @OutroBot", "mail@LeaoBot.pt"])
def test_in_a_group_nothing_else_is_read(text):
    entities = mention(text, "@OutroBot") if "@Outro" in text else {"text": text}
    assert message(chat=GROUP, **entities) is None


def test_a_reply_to_the_bot_calls_it_and_quotes_nothing():
    got = message(chat=GROUP, text="e depois?", **reply(BOT_JSON, text="No domingo."))
    assert (got.text, got.reply_to, got.quoted) == ("e depois?", "5", None)


def test_a_reply_to_somebody_else_with_a_mention_brings_that_text_along():
    other = ANA | {"id": 2}
    got = message(chat=GROUP, **mention("@LeaoBot é verdade?"), **reply(other, text="Ganhámos!"))
    assert (got.reply_to, got.quoted) == ("5", "Ganhámos!")
    part = {"quote": {"text": "Ganh", "position": 0}}
    got = message(chat=GROUP, **mention("@LeaoBot?"), **reply(other, caption="Ganhámos!"), **part)
    assert got.quoted == "Ganh"


def test_a_topic_is_a_chat_of_its_own_and_its_beginning_is_no_reply():
    topic = {"name": "Jogos", "icon_color": 1}
    began = reply(BOT_JSON, forum_topic_created=topic)
    place = {"is_topic_message": True, "message_thread_id": 77, "chat": GROUP}
    assert message(text="olá", **place, **began) is None
    got = message(**mention("@LeaoBot olá"), **place, **began)
    assert (got.chat.key, got.reply_to) == ("telegram:-100/77", None)


def test_captions_count_as_text_and_files_alone_are_attachments():
    photo = [{"file_id": "a", "file_unique_id": "b", "width": 1, "height": 1}]
    got = message(photo=photo, caption="quem é?")
    assert (got.text, got.attachments) == ("quem é?", 1)
    voice = {"file_id": "a", "file_unique_id": "b", "duration": 1}
    got = message(voice=voice)
    assert (got.text, got.attachments) == ("", 1)
    assert message(voice=voice, chat=GROUP) is None
    spot = {"type": "mention", "offset": 0, "length": 8}
    got = message(photo=photo, caption="@LeaoBot quem?", caption_entities=[spot], chat=GROUP)
    assert got.text == "quem?"


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "olá", "from": ANA | {"is_bot": True}},
        {"text": "olá", "via_bot": BOT_JSON},
        {"text": "olá", "sender_chat": GROUP},
        {"new_chat_members": [ANA]},
    ],
)
def test_bots_channels_and_notices_are_ignored(fields):
    assert message(**fields) is None


@pytest.mark.parametrize("kind", ["edited_message", "channel_post", "edited_channel_post"])
def test_edits_and_channel_posts_are_ignored(kind):
    body = {"message_id": 9, "date": 1, "chat": PRIVATE, "from": ANA, "text": "olá"}
    assert TRANSLATE.message(Update.de_json({"update_id": 3, kind: body}, None)) is None


def reaction(old: list[str], new: list[str], **fields: Any):
    sides = {
        name: [{"type": "emoji", "emoji": emoji} for emoji in emojis]
        for name, emojis in (("old_reaction", old), ("new_reaction", new))
    }
    body = {"chat": GROUP, "message_id": 9, "date": 1, "user": ANA, **sides} | fields
    seen = Update.de_json({"update_id": 3, "message_reaction": body}, None)
    return TRANSLATE.vote(seen, seen.message_reaction)


@pytest.mark.parametrize(
    ("old", "new", "action", "cleared"),
    [
        ([], ["👍"], Action.UP, None),
        (["👍"], ["👎"], Action.DOWN, None),
        (["❤"], ["❤", "👎"], Action.DOWN, None),
        (["👍", "👎"], ["👎"], Action.DOWN, None),
        (["👍"], [], Action.CLEAR, Action.UP),
        (["👎", "🔥"], ["❤"], Action.CLEAR, Action.DOWN),
        (["👍", "👎"], [], Action.CLEAR, None),
    ],
)
def test_thumbs_are_votes_and_one_that_is_taken_back_clears_itself_alone(old, new, action, cleared):
    press = reaction(old, new)
    assert (press.action, press.cleared) == (action, cleared)
    assert (press.via, press.fan.key) == ("reaction", "telegram:1")


# --- albums -----------------------------------------------------------------------------------

PHOTO = {"photo": [{"file_id": "a", "file_unique_id": "b", "width": 1, "height": 1}]}


def photos(*captions: str, album: str = "77", first: int = 1, **fields: Any) -> list[Update]:
    """An album as it comes: one update a photo."""
    return [
        Update.de_json(
            {"update_id": number}
            | {"message": update(**PHOTO, media_group_id=album, **fields).message.to_dict()}
            | ({} if not words else {"message": captioned(words, album, **fields)}),
            None,
        )
        for number, words in enumerate(captions, first)
    ]


def captioned(words: str, album: str, **fields: Any) -> dict[str, Any]:
    spot = mention(words)["entities"] if "@LeaoBot" in words else []
    more = {"caption": words, "caption_entities": spot, "media_group_id": album}
    return update(**PHOTO, **more, **fields).message.to_dict()


def heard(albums: Albums, batch: list[Update]) -> list[str]:
    """The words of what is handed on."""
    said = []
    for each in batch:
        if got := albums.message(TRANSLATE, each, batch):
            albums.remember(each, got)
            said.append(got.text)
    return said


@pytest.mark.parametrize(
    ("captions", "words"),
    [
        (["", "", ""], [""]),
        (["quem é?", "", ""], ["quem é?"]),
        (["", "quem é?", "e este?"], ["quem é?"]),
    ],
)
def test_an_album_is_one_message_and_its_words_win(captions, words):
    albums = Albums()
    assert heard(albums, photos(*captions)) == words
    assert heard(albums, photos("", "", first=9)) == []  # the rest came later
    assert heard(albums, photos("", album="78")) == [""]
    assert heard(albums, [update(**PHOTO), update(text="olá")]) == ["", "olá"]


def test_the_words_of_an_album_count_although_they_come_last():
    albums = Albums()
    assert heard(albums, photos("", "")) == [""]
    assert heard(albums, photos("", "quem é?", first=5)) == ["quem é?"]
    assert heard(albums, photos("e este?", first=9)) == []


def test_in_a_group_the_words_for_the_bot_stand_for_the_album():
    batch = photos("olhem", "@LeaoBot quem é?", "", chat=GROUP)
    assert heard(Albums(), batch) == ["quem é?"]


def test_an_album_that_could_not_be_stored_comes_again():
    batch, albums = photos("", ""), Albums()
    for _ in range(2):
        assert albums.message(TRANSLATE, batch[0], batch) is not None


def test_old_albums_are_forgotten():
    albums = Albums()
    for number in range(ALBUMS_KEPT + 1):
        assert heard(albums, photos("", album=str(number))) == [""]
    assert len(albums._taken) == ALBUMS_KEPT


def test_other_reactions_and_nameless_ones_are_no_votes():
    assert reaction([], ["❤"]) is None
    assert reaction(["👍"], ["👍", "🔥"]) is None
    assert reaction([], ["👍"], user=None, actor_chat=GROUP) is None


# --- how a post looks -------------------------------------------------------------------------


def kinds(text: str) -> list[str]:
    return [entity.type for entity in render(text)[1]]


def parts(text: str) -> dict[str, str]:
    """What each entity covers."""
    shown, entities = render(text)
    units = shown.encode("utf-16-le")
    return {
        entity.type: units[2 * entity.offset : 2 * (entity.offset + entity.length)].decode(
            "utf-16-le"
        )
        for entity in entities
    }


def test_markdown_becomes_entities():
    assert render("## Jogo\n\nÉ **hoje** às `19:00`.")[0] == "Jogo\n\nÉ hoje às 19:00."
    assert parts("😀 **hoje** `19:00` [aqui](https://farense.pt)") == {
        "bold": "hoje", "code": "19:00", "text_link": "aqui",
    }  # fmt: skip
    assert parts("```python\nprint(1)\n```") == {"pre": "print(1)"}
    assert "pre" in kinds("| a | b |\n|---|---|\n| 1 | 2 |")
    assert render("- um\n- dois")[0].strip() == "• um\n• dois"


@pytest.mark.parametrize(
    "text", ["**aberto", "a * b * c", "[x](", "<b>olá</b>", "<div>\nolá\n</div>", "vector<int> x",
             "<!-- nota -->", "[](http://x.pt)", "1 < 2 > 0", "\\"],
)  # fmt: skip
def test_broken_markup_and_angle_brackets_stay_readable(text):
    shown, entities = render(text)
    assert shown == text
    assert not entities


def test_nobody_is_called():
    assert kinds("[Ana](tg://user?id=1)") == []
    shown, entities = render("😀 @Joaquim, **@Manuel** e `@dataclass`: ana@farense.pt")
    assert shown == "😀 @\u2060Joaquim, @\u2060Manuel e @dataclass: ana@farense.pt"
    assert [entity.type for entity in entities] == ["bold", "code"]
    assert parts("😀 @Joaquim, **@Manuel** e `@dataclass`") == {
        "bold": "@\u2060Manuel", "code": "@dataclass",
    }  # fmt: skip


MARKS = "*_`~|[]()<>#-+.! \n\t@$\\&;aé1😀\u200d\x00\ud800\ufdd0"
TEXTS = st.text() | st.text(alphabet=MARKS) | st.lists(
    st.sampled_from(
        ["**", "__", "`", "```\n", "```py\n", "> ", ">> ", "- ", "1. ", "| a | b |\n", "|-|-|\n",
         "||", "~~", "<b>", "</b>", "[x](http://y.pt)", "[x](tg://user?id=1)", "![i](http://y.pt)",
         "# ", "---\n", "\n\n", "\n", " ", "olá", "😀", "@joaquim", "$x^2$",
         "\\(\\frac12\\)", "&#0;"]
    )
).map("".join)  # fmt: skip


@settings(deadline=None)
@given(TEXTS)
@example("@\ud800aaaa")
@example("`@joaquim`@joaquim")
def test_any_text_gives_valid_entities(text):
    shown, entities = render(text)
    assert shown.strip()
    edges = {0}
    for character in shown:
        edges.add(max(edges) + utf16_length(character))
    for entity in entities:
        assert entity.length > 0
        assert {entity.offset, entity.offset + entity.length} <= edges
        assert (entity.url or "http://").startswith(("http://", "https://"))
    shown.encode()


@settings(deadline=None)
@given(TEXTS, st.integers(1, 400))
@example("0000000:@A", 373)
def test_every_piece_fits_one_message(text, times):
    for piece in split(text * times):
        assert utf16_length(render(piece)[0]) <= LIMIT


def test_a_table_that_would_grow_too_wide_is_shown_as_it_was_written():
    table = "| a | b |\n|---|---|\n" + "| 1 | 2 |\n" * 20 + f"| {'x' * 3000} | 2 |"
    assert render(table) == (table, [])


def test_a_long_answer_loses_nothing():
    words = [f"palavra{number}" for number in range(2000)]
    shown = " ".join(render(piece)[0] for piece in split(" ".join(words)))
    assert shown.split() == words


# --- buttons ----------------------------------------------------------------------------------


def test_buttons_say_what_they_do():
    rows = keyboard(Buttons(AnswerId(7))).inline_keyboard
    assert [[button.text for button in row] for row in rows] == [["👍", "👎", "✏️", "🔁"]]
    assert [
        button.text for button in keyboard(Buttons(AnswerId(7), running=True)).inline_keyboard[0]
    ] == ["⏹"]
    assert keyboard(None) is None


@given(st.sampled_from(list(LABELS)), st.integers(1, 10**18 - 1))
def test_what_a_button_says_comes_back(action, answer_id):
    data = f"{action}:{answer_id}"
    assert len(data.encode()) <= 64
    assert parse_data(data) == (action, answer_id)


@given(st.text() | st.none())
@example("cl:7")
@example("up:0")
@example("up:٣")
@example("up:7\n")
@example("UP:7")
@example("up:-7")
@example("up:" + "9" * 60)
def test_forged_buttons_mean_nothing(data):
    assert parse_data(data) is None


def test_choices_stand_in_a_row_under_a_notice():
    [row] = keyboard(None, (Choice("Aprovar", "ok:7"), Choice("Editar", "?ed:7"))).inline_keyboard
    assert [(each.text, each.callback_data) for each in row] == [
        ("Aprovar", "c:ok:7"), ("Editar", "c:?ed:7"),
    ]  # fmt: skip


@given(
    st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40)
)
def test_what_a_choice_says_comes_back(data):
    assert len(f"c:{data}".encode()) <= 64
    assert parse_choice(f"c:{data}") == data
    assert parse_data(f"c:{data}") is None


@pytest.mark.parametrize("data", [None, "", "c:", "c:" + "x" * 41, "c:a\n", "c:é", "up:7", "C:x"])
def test_forged_choices_mean_nothing(data):
    assert parse_choice(data) is None


@pytest.mark.parametrize("kind", ["private", "supergroup", "too old to see"])
def test_a_tap_says_who_chose_what_under_which_message(kind):
    place = PRIVATE if kind == "private" else GROUP
    under = {"message_id": 9, "date": 0 if kind == "too old to see" else 1, "chat": place}
    query = {"id": "5", "from": ANA, "chat_instance": "1", "data": "c:ok:7", "message": under}
    seen = Update.de_json({"update_id": 3, "callback_query": query}, None)
    tap = TRANSLATE.tap(seen, seen.callback_query, "ok:7")
    assert (tap.data, tap.fan.key, tap.message_id, tap.update_id) == (
        "ok:7",
        "telegram:1",
        "9",
        "42:3",
    )
    private = kind == "private"
    assert tap.source is (Source.TELEGRAM_PRIVATE if private else Source.TELEGRAM_GROUP)
    assert tap.handle == (None if private else "1:Ana")  # whom a guided reply names


# --- errors -----------------------------------------------------------------------------------


def caused(problem: Exception, cause: Exception) -> Exception:
    problem.__cause__ = cause
    return problem


@pytest.mark.parametrize(
    ("problem", "meaning"),
    [
        (error.RetryAfter(3), RetryAfter),
        (error.Forbidden("Forbidden: bot was blocked by the user"), MessageGone),
        (error.ChatMigrated(-5), MessageGone),
        (error.BadRequest("Chat not found"), MessageGone),
        (error.BadRequest("Message to edit not found"), MessageGone),
        (error.BadRequest("Message can't be edited"), MessageGone),
        (error.BadRequest("Message is not modified: specified new …"), NotModified),
        (error.BadRequest("Message text is empty"), DeliveryFailed),
        (error.NetworkError("Bad Gateway (502)"), DeliveryFailed),
        (caused(error.NetworkError("x"), httpx.ConnectError("x")), DeliveryFailed),
        (caused(error.TimedOut(), httpx.ConnectTimeout("x")), DeliveryFailed),
        (caused(error.TimedOut(), httpx.PoolTimeout("x")), DeliveryFailed),
        (caused(error.TimedOut(), httpx.ReadTimeout("x")), DeliveryUnknown),
        (caused(error.NetworkError("x"), httpx.RemoteProtocolError("x")), DeliveryUnknown),
        (error.TelegramError("Invalid server response"), DeliveryUnknown),
        (error.InvalidToken(), DeliveryFailed),
    ],
)
def test_errors_mean_what_the_core_must_do(problem, meaning):
    with pytest.raises(DeliveryError) as caught, core_errors():
        raise problem
    assert type(caught.value) is meaning


def test_the_wait_that_telegram_asks_for_is_kept():
    with pytest.raises(RetryAfter) as caught, core_errors():
        raise error.RetryAfter(17)
    assert caught.value.seconds == 17


# --- the limit of the whole bot ---------------------------------------------------------------


def test_calls_go_at_once_until_the_burst_is_used_and_evenly_after_it():
    now = 100.0
    limiter = Limiter(lambda: now)
    waits = [limiter.reserve(9.0) for _ in range(BURST + 4)]
    assert waits[: BURST + 1] == pytest.approx([0.0] * (BURST + 1), abs=1e-6)
    assert waits[BURST + 1 :] == pytest.approx([1 / RATE, 2 / RATE, 3 / RATE])
    now += 60
    assert limiter.reserve(9.0) == 0


async def test_a_full_line_drops_signs_of_life_and_turns_others_back_but_never_a_toast():
    limiter = Limiter(lambda: 100.0)
    while limiter.reserve(20.0) is not None:
        pass
    done: list[str] = []

    async def call(endpoint: str) -> bool:
        done.append(endpoint)
        return True

    async def through(endpoint: str) -> Any:
        return await limiter.process_request(call, (endpoint,), {}, endpoint, {}, None)

    assert await through("sendChatAction") is True
    with pytest.raises(error.RetryAfter):
        await through("sendMessage")
    await through("answerCallbackQuery")
    assert done == ["answerCallbackQuery"]


async def test_a_call_waits_for_its_turn():
    clock = 100.0
    limiter = Limiter(lambda: clock)
    while (wait := limiter.reserve(LATE)) == 0:
        pass
    assert wait is not None
    done = asyncio.Event()

    async def call() -> bool:
        done.set()
        return True

    task = asyncio.create_task(limiter.process_request(call, (), {}, "sendMessage", {}, None))
    await asyncio.sleep(0)
    assert not done.is_set()
    assert await task is True
