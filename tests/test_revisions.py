"""Revisions on disk: whole or not there, looked at before they are loaded, and a way back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from training import files
from training.revisions import BASE, RevisionError, Revisions

BASE_PRINT = "f" * 16
METADATA = {
    "created_at": "2026-11-24T03:30:00+00:00",
    "promoted": True,
    "base": {"name": "embedded", "fingerprint": BASE_PRINT},
    "rows": [],
}


def weights(rank=2, name="model.layers.0.self_attn.q_proj"):
    return {
        f"{name}.lora_a": np.ones((8, rank), np.float32),
        f"{name}.lora_b": np.ones((rank, 6), np.float32),
    }


def fill(draft, tensors=None, *, rank=2, scale=2.0, kind="lora"):
    save_file(tensors if tensors is not None else weights(rank), draft / "adapters.safetensors")
    parameters = {"rank": rank, "scale": scale, "dropout": 0.0, "keys": ["self_attn.q_proj"]}
    config = {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": parameters}
    (draft / "adapter_config.json").write_text(json.dumps(config))
    (draft / "report.md").write_text("# Relatório")


@pytest.fixture
def revisions(tmp_path):
    return Revisions(tmp_path / "revisions")


def make(revisions, name, tensors=None, **how):
    draft = revisions.draft(name)
    fill(draft, tensors, **how)
    return revisions.commit(name, draft, METADATA)


def test_a_revision_is_committed_verified_and_listed_newest_first(revisions):
    first, second = make(revisions, "20261123-1"), make(revisions, "20261124-2")
    assert revisions.verify(first.id, BASE_PRINT).digest == first.digest
    assert [revision.id for revision in revisions.all()] == [second.id, first.id]
    assert first.metadata["files"].keys() == {
        "adapters.safetensors",
        "adapter_config.json",
        "report.md",
    }
    assert not list(revisions.folder.glob(".draft*"))


def test_the_digest_is_that_of_weights_and_config_alone(revisions):
    first = make(revisions, "a")
    draft = revisions.draft("b")
    fill(draft)
    (draft / "report.md").write_text("outro texto")
    same = revisions.commit("b", draft, METADATA)
    other = make(revisions, "c", scale=3.0)
    assert first.digest == same.digest != other.digest


def test_a_folder_without_metadata_does_not_count(revisions):
    revision = make(revisions, "a")
    (revision.folder / "metadata.json").unlink()
    assert revisions.all() == []
    with pytest.raises(RevisionError):
        revisions.get("a")
    assert make(revisions, "a").id == "a"  # what an interrupted commit left is in nobody's way


def test_a_revision_is_immutable(revisions):
    make(revisions, "a")
    draft = revisions.draft("a")
    fill(draft)
    with pytest.raises(RevisionError, match="exists"):
        revisions.commit("a", draft, METADATA)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", ".draft-a", "current.json", "nada"])
def test_only_names_of_revisions_are_found(revisions, name):
    make(revisions, "a")
    with pytest.raises(RevisionError):
        revisions.get(name)


def test_another_base_is_refused(revisions):
    make(revisions, "a")
    with pytest.raises(RevisionError, match="base"):
        revisions.verify("a", "0" * 16)


@pytest.mark.parametrize("file", ["adapters.safetensors", "adapter_config.json", "report.md"])
def test_a_changed_or_missing_file_is_noticed(revisions, file):
    revision = make(revisions, "a")
    path = revision.folder / file
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(RevisionError, match="damaged"):
        revisions.verify("a")
    path.unlink()
    with pytest.raises(RevisionError, match="damaged"):
        revisions.verify("a")


def nan():
    tensors = weights()
    tensors["model.layers.0.self_attn.q_proj.lora_b"][0, 0] = np.nan
    return tensors


def lacking():
    tensors = weights()
    del tensors["model.layers.0.self_attn.q_proj.lora_b"]
    return tensors


@pytest.mark.parametrize(
    ("tensors", "how"),
    [
        (nan(), {}),
        (lacking(), {}),
        ({}, {}),
        (weights(rank=3), {"rank": 2}),
        (weights(), {"scale": float("inf")}),
        (weights(), {"scale": 0.0}),
        (weights(), {"kind": "dora"}),  # its magnitudes are missing
        ({**weights(), "odd": np.ones(3, np.float32)}, {}),
    ],
    ids=["nan", "lacking", "empty", "rank", "infinite scale", "no scale", "dora", "too many"],
)
def test_what_must_not_be_loaded_is_not(revisions, tensors, how):
    make(revisions, "a", tensors, **how)
    with pytest.raises(RevisionError, match="damaged"):
        revisions.verify("a")


def test_the_pointer_goes_forth_and_back(revisions):
    assert (revisions.current, revisions.before) == (BASE, None)
    revisions.use("a")
    revisions.use("b")
    revisions.use("b")
    assert (revisions.current, revisions.before) == ("b", "a")
    assert revisions.roll_back() == "a"
    assert revisions.roll_back() == BASE
    with pytest.raises(RevisionError, match="first"):
        revisions.roll_back()
    assert revisions.step_back() == BASE


@given(st.lists(st.one_of(st.sampled_from("abc"), st.none()), max_size=30))
@settings(deadline=None, max_examples=30)
def test_the_way_back_is_that_of_a_stack(tmp_path_factory, script):
    revisions = Revisions(tmp_path_factory.mktemp("revisions"))
    stack = [BASE]
    for name in script:
        if name is None:
            revisions.step_back()
            stack = stack[:-1] or [BASE]
        else:
            revisions.use(name)
            stack += [name] if name != stack[-1] else []
        assert revisions.current == stack[-1]


def test_a_pointer_that_cannot_be_read_is_told_and_can_be_mended(revisions):
    revisions.use("a")
    revisions.pointer.write_bytes(b"{")
    with pytest.raises(RevisionError, match="pointer"):
        _ = revisions.current
    revisions.use("b")
    assert (revisions.current, revisions.before) == ("b", None)


def test_old_revisions_go_but_none_that_is_needed(revisions):
    for name in "abcdef":
        make(revisions, name)
    revisions.use("a")
    revisions.use("b")
    assert sorted(revisions.prune(2)) == ["c", "d"]
    assert [revision.id for revision in revisions.all()] == ["f", "e", "b", "a"]


@pytest.mark.parametrize("moment", ["part", "replace"])
def test_a_write_that_dies_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "x.json"
    files.write(path, b"old")

    def die(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if moment == "part":
            patch.setattr(files.os, "fsync", die)
        else:
            patch.setattr("pathlib.Path.replace", die)
        with pytest.raises(OSError, match="space"):
            files.write(path, b"new")
    assert path.read_bytes() == b"old"
    files.write(path, b"new")
    assert path.read_bytes() == b"new"
