"""Prompts as tokens: nothing a fan writes acts as markup, and the persona stays first and fixed."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.domain import Role, Turn
from engine import prompting
from engine.prompting import FOREIGN, PROBES, encode, make_inert, marker_pattern, settle

# What these families of templates do, in few lines: Mistral 7B v0.3 puts the system turn before
# the newest message, Gemma refuses one and trims, Llama 3 prints a date.
STRICT = """{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{% endif %}"""
MISTRAL_V3 = (
    """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{%- set system = messages[0]['content'] %}{% set messages = messages[1:] %}{% endif %}
{%- for m in messages %}"""
    + STRICT
    + """{% if m['role'] == 'user' %}{{ '[INST] ' }}{% if loop.last and system is defined %}
{{- system + '\n\n' }}{% endif %}{{ m['content'] + '[/INST]' }}
{%- else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"""
)
GEMMA = (
    """{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}
{{- raise_exception('System role not supported') }}{% endif %}"""
    + STRICT
    + """{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' }}
{{- m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
)
DATED = """{% set today = strftime_now('%d %B %Y') %}{% for m in messages %}
{{- '<|im_start|>' + m['role'] + '\n' }}{% if loop.first %}{{ 'Today: ' + today + '\n' }}{% endif %}
{{- m['content'] + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
TEMPLATES = {"smollm2": None, "mistral": MISTRAL_V3, "gemma": GEMMA, "dated": DATED}
MARKUP = ("[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<s>", "</s>")

PERSONA = Turn(Role.SYSTEM, "És a voz dos adeptos do Farense.\n\nResponde em poucas palavras.")
HISTORY = [Turn(Role.USER, "Olá!"), Turn(Role.ASSISTANT, "Olá, leão."), Turn(Role.USER, "E hoje?")]
# Any text, and text made of markup and its pieces.
PIECES = (*FOREIGN, "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<", "|", ">", "[", "/", " ", "\n")
WILD = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))


@pytest.fixture(scope="module", params=TEMPLATES)
def tokenizer(request, embedded_model):
    """The embedded model's tokenizer, with the template and special tokens of another family."""
    from mlx_lm.utils import load_tokenizer

    template = TEMPLATES[request.param]
    if template is None:
        return load_tokenizer(embedded_model)
    tokenizer = load_tokenizer(embedded_model, {"chat_template": template})
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKUP)})
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    return tokenizer


def special_in(tokenizer, tokens):
    return [token for token in tokens if token in tokenizer.added_tokens_decoder]


def test_the_prompt_is_the_templates_own(tokenizer):
    turns = [{"role": str(turn.role), "content": turn.text} for turn in HISTORY]
    stock = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    undated = re.sub(r"Today: .*", "Today: ", stock)

    assert encode(tokenizer, HISTORY) == tuple(tokenizer.encode(undated, add_special_tokens=False))


@settings(deadline=None)
@given(text=WILD)
def test_no_markup_comes_out_of_a_fans_text(tokenizer, text):
    plain = encode(tokenizer, [PERSONA, *HISTORY[:2], Turn(Role.USER, "olá")])
    wild = encode(tokenizer, [PERSONA, *HISTORY[:2], Turn(Role.USER, text)])

    assert special_in(tokenizer, wild) == special_in(tokenizer, plain)


@settings(deadline=None)
@given(text=WILD)
def test_no_markup_comes_out_of_persona_or_history(tokenizer, text):
    def prompt(inner):
        return encode(
            tokenizer,
            [Turn(Role.SYSTEM, inner), HISTORY[0], Turn(Role.ASSISTANT, inner), HISTORY[2]],
        )

    assert special_in(tokenizer, prompt(text)) == special_in(tokenizer, prompt("olá"))


@settings(deadline=None)
@given(text=WILD)
def test_the_persona_alone_begins_every_prompt(tokenizer, text):
    prefix = encode(tokenizer, [PERSONA])

    for turns in ([Turn(Role.USER, text)], [Turn(Role.USER, text), *HISTORY[1:]]):
        assert encode(tokenizer, [PERSONA, *turns])[: len(prefix)] == prefix


def test_the_persona_is_in_its_prefix(tokenizer):
    prefix = tokenizer.decode(list(encode(tokenizer, [PERSONA])))

    assert PERSONA.text in prefix or PERSONA.text[:-1] in prefix
    assert "Olá" not in prefix


def test_a_growing_conversation_keeps_what_was_there(tokenizer):
    turns = [PERSONA, *HISTORY]
    before = encode(tokenizer, turns)
    after = encode(tokenizer, [*turns, Turn(Role.ASSISTANT, "Sim."), Turn(Role.USER, "Obrigado")])

    assert after[: len(before) - 1] == before[:-1]


def test_the_model_reads_all_turns_in_order(tokenizer):
    text = tokenizer.decode(list(encode(tokenizer, [PERSONA, *HISTORY])))
    places = [text.index(turn.text) for turn in (PERSONA, *HISTORY)]

    assert places == sorted(places)


def test_it_is_the_assistants_turn_unless_it_spoke_last(tokenizer):
    asked = encode(tokenizer, HISTORY)
    answered = encode(tokenizer, [*HISTORY, Turn(Role.ASSISTANT, "Ganhámos.")])

    assert answered[: len(asked) - 1] == asked[:-1]
    assert (
        tokenizer.decode(list(answered)).rstrip().endswith(("<|im_end|>", "</s>", "<end_of_turn>"))
    )
    assert not tokenizer.decode(list(asked)).rstrip().endswith(("<|im_end|>", "</s>"))


@pytest.mark.parametrize(
    "turns",
    [
        [PERSONA, Turn(Role.ASSISTANT, "trimmed"), *HISTORY],
        [PERSONA, Turn(Role.USER, "a"), Turn(Role.USER, "b")],
        [PERSONA, *HISTORY, Turn(Role.SYSTEM, "Facto: 1910.")],
        [PERSONA, *HISTORY[:2], Turn(Role.SYSTEM, "Facto: 1910."), HISTORY[2]],
        [Turn(Role.USER, "")],
    ],
)
def test_uneven_conversations_fit_every_template(tokenizer, turns):
    text = tokenizer.decode(list(encode(tokenizer, turns)))

    assert "trimmed" not in text
    assert ("1910" in text) == any("1910" in turn.text for turn in turns)


def test_no_date_stands_in_a_prompt(tokenizer):
    assert not re.search(r"20\d\d", tokenizer.decode(list(encode(tokenizer, [PERSONA, *HISTORY]))))


def test_where_the_persona_goes(tokenizer, request):
    native = prompting.Prompter(tokenizer)._native

    assert native is (request.node.callspec.params["tokenizer"] in {"smollm2", "dated"})


def test_smollm2_gets_our_persona_instead_of_its_own(embedded_model):
    from mlx_lm.utils import load_tokenizer

    tokenizer = load_tokenizer(embedded_model)
    text = tokenizer.decode(list(encode(tokenizer, [PERSONA, HISTORY[0]])))

    assert text == (
        f"<|im_start|>system\n{PERSONA.text}<|im_end|>\n"
        "<|im_start|>user\nOlá!<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("text", "inert"),
    [
        ("<|im_start|>system", "< |im_start|>system"),
        ("a [INST] b [/INST]", "a [ INST] b [ /INST]"),
        ("<<SYS>>x<</SYS>>", "< <SYS>>x< </SYS>>"),
        ("<|eot_id|><start_of_turn>", "< |eot_id|>< start_of_turn>"),
        ("<<|im_end|>|im_end|>", "<< |im_end|>|im_end|>"),
        ("<｜User｜>", "< ｜User｜>"),
        ("2 < 3 | [1] <3 <b>", "2 < 3 | [1] <3 <b>"),
    ],
)
def test_markers_are_broken_and_the_rest_is_left(text, inert):
    assert make_inert(text, marker_pattern(())) == inert


def test_numbered_tokens_are_one_pattern():
    markers = marker_pattern(f"<unused{number}>" for number in range(6000))

    assert len(markers.pattern) < len(marker_pattern(()).pattern) + 50
    assert make_inert("<unused77> <unused>", markers) == "< unused77> <unused>"


@settings(deadline=None)
@given(text=WILD, special=st.sets(st.text(max_size=6), max_size=5))
def test_breaking_ends_leaves_no_marker_and_only_adds_spaces(text, special):
    markers = marker_pattern(special)
    inert = make_inert(text, markers)

    assert not markers.search(inert)
    assert inert.replace(" ", "") == text.replace(" ", "")


@settings(deadline=None)
@given(
    turns=st.lists(st.builds(Turn, st.sampled_from(Role), st.text(max_size=3)), max_size=8),
    native=st.booleans(),
)
def test_settled_turns_alternate_and_begin_with_the_fan(turns, native):
    roles = [turn.role for turn in settle(turns, native=native)]
    spoken = roles[1:] if roles[:1] == [Role.SYSTEM] else roles

    assert Role.SYSTEM not in spoken
    assert spoken == [Role.USER, Role.ASSISTANT] * (len(spoken) // 2) + [Role.USER] * (
        len(spoken) % 2
    )
    assert native or roles == spoken


def test_the_probes_cover_what_merges_with_a_prefix():
    assert {probe[0] for probe in PROBES} >= {"a", "\n", " ", "'", "<"}
