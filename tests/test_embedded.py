"""The model that comes along: converted whole or not at all, and really the GGUF's."""

from __future__ import annotations

import json
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.errors import ModelError
from engine import embedded, models, weights
from engine.plan import Backend, ComputePlan

# The vocabulary lacks the bytes of some control characters and of planes without any character.
WRITTEN = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn"), include_characters="\n\t"))
FAST = ComputePlan(Backend.CPU, None, dequantise=True, why="tests")


@pytest.fixture(scope="module")
def metadata():
    import mlx.core as mx

    _, values = mx.load(str(embedded.find_gguf()), return_metadata=True)
    return values


@pytest.fixture(scope="module")
def tokenizer(embedded_model):
    from mlx_lm.utils import load_tokenizer

    return load_tokenizer(embedded_model)


def test_the_file_is_found_without_importing_its_package():
    assert embedded.find_gguf().suffix == ".gguf"
    assert embedded.PACKAGE not in sys.modules


def test_a_missing_package_is_said_by_name(monkeypatch, tmp_path):
    monkeypatch.setattr(embedded, "PACKAGE", "no_such_package")

    with pytest.raises(ModelError) as caught:
        embedded.install(tmp_path / "model")

    assert caught.value.key == "error.model_embedded_missing"
    assert caught.value.values == {"package": "no-such-package"}


def test_a_second_conversion_gives_the_same_model(embedded_model, tmp_path):
    told = []
    again = embedded.install(tmp_path / "models" / "small", told.append)

    assert told == [embedded.find_gguf().name]
    assert {file.name for file in again.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for file in again.iterdir():
        assert file.read_bytes() == (embedded_model / file.name).read_bytes(), file.name


def test_an_installed_model_is_left_alone(embedded_model):
    before = {file.name: file.stat().st_mtime_ns for file in embedded_model.iterdir()}

    assert embedded.install(embedded_model, pytest.fail) == embedded_model
    assert {file.name: file.stat().st_mtime_ns for file in embedded_model.iterdir()} == before


def test_what_an_interrupted_conversion_left_is_cleaned_away(tmp_path, monkeypatch):
    target = tmp_path / "small"

    def broken(gguf, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embedded, "convert", broken)
        with pytest.raises(KeyboardInterrupt):
            embedded.install(target)
    assert not target.exists()

    leftover = tmp_path / f".{target.name}.draft-killed"
    leftover.mkdir()
    target.mkdir()
    (target / "config.json").write_text("{}")
    embedded.install(target)

    assert embedded.is_complete(target)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["small"]


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(ModelError) as caught:
        embedded.install(tmp_path / "file" / "small")

    assert caught.value.key == "error.model_unwritable"


def test_two_at_once_convert_only_once(tmp_path, monkeypatch):
    calls = []
    convert = embedded.convert
    monkeypatch.setattr(embedded, "convert", lambda *args: calls.append(args) or convert(*args))
    threads = [
        threading.Thread(target=embedded.install, args=(tmp_path / "small",)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert embedded.is_complete(tmp_path / "small")
    assert len(calls) == 1


def test_the_config_says_what_the_file_says(embedded_model):
    config = json.loads((embedded_model / "config.json").read_text())

    assert config["quantization"] == {"group_size": 32, "bits": 4}
    assert config["tie_word_embeddings"] is True
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (9, 3)
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-5, 100_000.0)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


def test_q_and_k_rows_are_in_the_order_of_mlx(embedded_model):
    import mlx.core as mx

    tensors, _ = mx.load(str(embedded.find_gguf()), return_metadata=True)
    converted = mx.load(str(embedded_model / "model.safetensors"))
    theirs = tensors["blk.3.attn_k.weight"].tolist()
    ours = converted["model.layers.3.self_attn.k_proj.weight"].tolist()

    # In each head of 64 rows llama.cpp puts row i and row i + 32 side by side.
    for head in range(3):
        for row in range(32):
            assert ours[head * 64 + row] == theirs[head * 64 + 2 * row]
            assert ours[head * 64 + 32 + row] == theirs[head * 64 + 2 * row + 1]


def test_special_tokens_are_the_files(tokenizer, metadata):
    tokens = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    special = [i for i, kind in enumerate(kinds) if kind == embedded.SPECIAL]

    assert sorted(tokenizer.added_tokens_decoder) == special
    for index in special:
        assert tokenizer.encode(tokens[index], add_special_tokens=False) == [index]
    assert len(tokenizer) == len(tokens)
    assert tokenizer.eos_token_ids == {2}
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert tokenizer.chat_template == metadata["tokenizer.chat_template"]


def test_digits_stand_alone(tokenizer):
    assert [tokenizer.decode([t]) for t in tokenizer.encode("em 1910!")] == [
        "em", " ", "1", "9", "1", "0", "!",
    ]  # fmt: skip


@settings(deadline=None)
@given(text=WRITTEN)
def test_any_text_comes_back_from_its_tokens(tokenizer, text):
    tokens = tokenizer.encode(text, add_special_tokens=False)

    assert tokenizer.decode(tokens) == text


@settings(deadline=None)
@given(text=WRITTEN)
def test_the_streamed_text_is_the_same(tokenizer, text):
    stream = tokenizer.detokenizer
    for token in tokenizer.encode(text, add_special_tokens=False):
        stream.add_token(token)
    stream.finalize()

    assert stream.text == text.removeprefix(" ")  # mlx-lm drops a space that an answer begins with


@pytest.mark.model
def test_stock_mlx_lm_loads_it_and_it_knows_the_capital_of_portugal(embedded_model):
    import mlx.core as mx
    import mlx_lm

    model, tokenizer = mlx_lm.load(str(embedded_model))
    # Stock int4 would take a minute on a CPU; float32 holds the same numbers.
    model.set_dtype(mx.float32)
    model = mlx_lm.utils.dequantize_model(model)
    ask = [{"role": "user", "content": "What is the capital of Portugal? Answer with one word."}]
    prompt = tokenizer.apply_chat_template(ask, add_generation_prompt=True)

    assert "Lisbon" in mlx_lm.generate(model, tokenizer, prompt, max_tokens=12)


@pytest.mark.model
def test_float32_gives_the_int4_answer(embedded_model):
    import mlx.core as mx
    import mlx_lm

    stock, tokenizer = mlx_lm.load(str(embedded_model))
    ours = models.load(embedded_model, FAST).model
    prompt = mx.array([tokenizer.encode("The capital of Portugal is")])
    expected, got = stock(prompt)[0, -1], ours(prompt)[0, -1]

    assert tokenizer.decode([mx.argmax(expected).item()]).strip() == "Lisbon"
    assert mx.argmax(got).item() == mx.argmax(expected).item()
    # Not nearer, because the stock embedding comes out in float16.
    assert mx.abs(got - expected).max().item() < 0.05
    assert got.dtype == mx.float32


def test_the_weights_need_what_their_numbers_take(embedded_model):
    config, files = weights.read_config(embedded_model), weights.check(embedded_model)

    assert weights.memory_needed(config, files, dequantise=False) == files[0].size
    assert weights.memory_needed(config, files, dequantise=True) == 4 * 134_515_008
