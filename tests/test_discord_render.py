"""What an answer looks like on Discord, and that nothing breaks its markup."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.discord_render import render
from adapters.discord_transport import DiscordTransport, _nonce

TRANSPORT = DiscordTransport(MagicMock(return_value=None))


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("**golo** e __golo__ e *já* e _já_", "**golo** e **golo** e *já* e *já*"),
        ("~~fora~~", "~~fora~~"),
        ("# Um\n### Três\n#### Quatro", "# Um\n### Três\n**Quatro**"),
        ("um_dois_três e 2 * 3 * 4", r"um\_dois\_três e 2 \* 3 \* 4"),
        ("isto é || segredo ||?", r"isto é \|\| segredo \|\|?"),
        ("a\n\nb\nc", "a\n\nb\nc"),
        ("* a\n* b\n   1. c\n   2. d", "- a\n- b\n  1. c\n  2. d"),
        ("3. três\n4. quatro", "3. três\n4. quatro"),
        ("> dito\n> > antes", "> dito\n> \n> antes"),
        ("um\n\n---\n\ndois", "um\n\n───────\n\ndois"),
        ("`a` e `` b`c ``", "`a` e `` b`c ``"),
        ("![bola](https://a.pt/b.png)", "[bola](https://a.pt/b.png)"),
        ("[aqui](https://a.pt/x_(y))", "[aqui](<https://a.pt/x_(y)>)"),
        ("<https://a.pt/b_c>", "https://a.pt/b_c"),
        ("[ficheiro](/tmp/a)", "ficheiro (/tmp/a)"),
        ("<b>olá</b>", "<b>olá</b>"),
        ("```py\nx = '`'\n```", "```py\nx = '`'\n```"),
        ("````\n```\n````", "```\n``\u200b`\n```"),
        ("```c 1\nx", "```c\nx\n```"),
        ("\\# nada", r"\# nada"),
    ],
)
def test_markdown_is_written_as_discord_reads_it(written, shown):
    assert render(written) == shown


def test_a_table_becomes_columns():
    table = "| Jogo | Golos |\n|---|---|\n| **Porto** | 1 |\n| Sporting | 10 |"
    assert render(table) == (
        "```\nJogo      Golos\n────────  ─────\nPorto     1\nSporting  10\n```"
    )


@pytest.mark.parametrize("mention", ["@everyone", "@here", "<@1>", "<@!1>", "<@&1>"])
def test_no_mention_survives(mention):
    for text in (mention, f"`{mention}`", f"```\n{mention}\n```", f"**{mention}**"):
        assert mention not in render(text)


@given(st.text(alphabet="ab *_~`|>#-\n1.[](){}<@!&\\é👍", max_size=300))
@settings(deadline=None)
def test_nothing_that_is_written_stops_the_rendering(text):
    rendered = render(text)
    assert not rendered.startswith("@everyone")
    assert rendered.count("```") % 2 == 0 or "\\`" in rendered


@given(st.lists(st.sampled_from(["palavra ", "_x_", "\n\n", "| a | b |\n", "```\nx\n```\n", "# "])))
@settings(deadline=None)
def test_every_piece_fits_one_message(parts):
    text = "".join(parts) * 40
    pieces = TRANSPORT.split(text)
    assert all(len(render(piece)) <= 2000 for piece in pieces)
    assert sum(piece.count("palavra") for piece in pieces) == text.count("palavra")


def test_pieces_that_are_done_stay_while_the_text_grows():
    text = "_sob_ **o** sol de Faro. " * 400
    whole = TRANSPORT.split(text)
    for end in range(2000, len(text), 700):
        done = TRANSPORT.split(text[:end])[:-1]
        assert whole[: len(done)] == done


def test_a_nonce_is_as_short_as_discord_wants_it_and_still_its_own():
    assert _nonce("answer-7-0") == "answer-7-0"
    long = [_nonce(f"discord:{number}") for number in (10**18, 10**18 + 1)]
    assert all(len(nonce) == 25 for nonce in long)
    assert long[0] != long[1]
