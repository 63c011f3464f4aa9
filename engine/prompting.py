"""From turns to tokens: the model's chat template, with nothing a fan writes acting as markup.

Two promises. Special tokens come from the template only: whatever looks like one inside a turn is
broken by a space. And the persona comes first and stays byte for byte the same: where a template
has no place for it, or moves it about (Mistral's puts it before the newest message), it is folded
into the first message of the fan.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Any

from bot.domain import Role, Turn

# Markup of templates, also where this model's tokenizer does not know it: models have read others'.
FOREIGN = (
    "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]",
    "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "<bos>", "<eos>", "<pad>", "<unk>", "<start_of_turn>",
    "<end_of_turn>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>",
    "</tool_response>",
)  # fmt: skip
PIPED = r"<[|｜][^\s<>]{1,64}[|｜]>"  # <|im_start|>, <|eot_id|> and their whole family
# Beginnings of a message that could grow together with the end of a prefix, one of each kind.
PROBES = ("a", "Z", "é", "7", " x", "\n\ny", "'s", ".", "?!", "<", "[", "🦁", "中", "_", "\t")
SEPARATOR = "\n\n"
NO_CLOCK = "{%- macro strftime_now(format) %}{% endmacro -%}"


def encode(tokenizer: Any, turns: Sequence[Turn]) -> tuple[int, ...]:
    """Render the chat template and tokenize, as `bot.ports.Engine.encode` promises."""
    return _prompter(tokenizer).encode(turns)


class Prompter:
    """What is worth working out once per tokenizer: its markers, and where its persona goes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._markers = marker_pattern(_special_tokens(tokenizer))
        self._template = without_clock(tokenizer.chat_template)
        self._native = self._persona_stays_first()

    def encode(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """The prompt's tokens; of a system turn alone, the prefix that every prompt shares."""
        inert = [Turn(turn.role, make_inert(turn.text, self._markers)) for turn in turns]
        if [turn.role for turn in inert] == [Role.SYSTEM]:
            return self._prefix(inert[0])
        return self._tokens(settle(inert, native=self._native))

    def _prefix(self, persona: Turn) -> tuple[int, ...]:
        """The tokens that prompts with this persona share, whatever the fan's message."""
        prompts = [
            self._tokens(settle([persona, Turn(Role.USER, probe)], native=self._native))
            for probe in PROBES
        ]
        same = takewhile(lambda column: len(set(column)) == 1, zip(*prompts, strict=False))
        return tuple(column[0] for column in same)

    def _tokens(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        text = self._render(turns)
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def _render(self, turns: Sequence[Turn]) -> str:
        rendered = self._tokenizer.apply_chat_template(
            [{"role": str(turn.role), "content": turn.text} for turn in turns],
            tokenize=False,
            add_generation_prompt=not turns or turns[-1].role is not Role.ASSISTANT,
            enable_thinking=False,
            date_string="",  # Llama 3's name for today
            **self._template,
        )
        return str(rendered)

    def _persona_stays_first(self) -> bool:
        """Whether the template renders a system turn, and always before all else."""
        persona, first = Turn(Role.SYSTEM, "qzpersona"), Turn(Role.USER, "qzfirst")
        later = (Turn(Role.ASSISTANT, "qzanswer"), Turn(Role.USER, "qzsecond"))
        try:
            short = self._render((persona, first))
            long = self._render((persona, first, *later))
        except Exception:  # noqa: BLE001 (templates refuse a role with whatever they like)
            return False
        head = short.partition(first.text)[0]
        return persona.text in head and long.startswith(head)


def without_clock(template: object) -> dict[str, str]:
    """The argument that keeps a template from printing today's date: the prefix must not age."""
    if isinstance(template, str) and "strftime_now" in template:
        return {"chat_template": NO_CLOCK + template}
    return {}


def settle(turns: Iterable[Turn], *, native: bool) -> list[Turn]:
    """Turns as every template takes them: a fan's first, then by turns, at most one system turn.

    Answers whose question is gone are dropped, later system turns and, unless the template is
    `native` to them, the first too, become part of the fan's message that follows.
    """
    settled: list[Turn] = []
    asked = False
    for index, turn in enumerate(turns):
        asked = asked or turn.role is Role.USER
        stays = turn.role is not Role.SYSTEM or (native and index == 0)
        role = turn.role if stays else Role.USER
        if role is Role.ASSISTANT and not asked:
            continue
        if settled and settled[-1].role is role:
            settled[-1] = Turn(role, settled[-1].text + SEPARATOR + turn.text)
        else:
            settled.append(Turn(role, turn.text))
    return settled


def marker_pattern(special: Iterable[str]) -> re.Pattern[str]:
    """What must not stay whole in a turn: the tokenizer's special tokens, and others' markup."""
    # Two visible characters first: others a space would not break.
    tokens = {*FOREIGN, *(token for token in special if re.match(r"\S\S", token))}
    patterns = {_family(token) for token in tokens}
    return re.compile("|".join([PIPED, *sorted(patterns, key=len, reverse=True)]))


def _family(token: str) -> str:
    """A pattern for a token and those that differ by number: Gemma has 6,000 `<unused…>`."""
    head, tail = re.escape(token[:2]), re.escape(token[2:])
    return head + re.sub(r"[0-9]+", "[0-9]+", tail)


def make_inert(text: str, markers: re.Pattern[str]) -> str:
    """Break each marker after its first character; people and models still read what it says."""
    while markers.search(text):
        text = markers.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
    return text


@functools.lru_cache(maxsize=4)
def _prompter(tokenizer: Any) -> Prompter:
    return Prompter(tokenizer)


def _special_tokens(tokenizer: Any) -> set[str]:
    """Every token that stands for markup: marked special, or added and written like a tag."""
    added = tokenizer.added_tokens_decoder.values()
    tags = {
        str(token) for token in added if token.special or re.fullmatch(r"[<\[].+[>\]]", str(token))
    }
    return tags | set(tokenizer.all_special_tokens)
