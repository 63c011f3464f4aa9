"""The notebook: a fan runs it from top to bottom, and the bot has learnt what was taught."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from config.texts import LANGUAGES, catalogue

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "mistral_qlora_training.ipynb"


@pytest.fixture
def cells():
    return nbformat.read(NOTEBOOK, as_version=4).cells


def test_it_is_kept_without_outputs_and_its_code_only_calls(cells):
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    forbidden = ("def ", "class ", "for ", "while ", "if ")
    lines = [line for cell in code for line in cell.source.splitlines()]
    assert not [line for line in lines if line.lstrip().startswith(forbidden)]


def test_every_step_is_told_before_it_is_made(cells):
    kinds = [cell.cell_type for cell in cells]
    assert kinds[0] == kinds[-1] == "markdown"
    headings = [
        line for cell in cells if cell.cell_type == "markdown" for line in cell.source.splitlines()
        if line.startswith("## ")
    ]  # fmt: skip
    assert [heading.split(" ")[1] for heading in headings] == [str(n) for n in range(1, 10)]


def test_its_words_are_there_in_both_languages():
    keys = [key for key in catalogue() if key.startswith("notebook.")]
    assert keys
    assert all(set(catalogue()[key]) == set(LANGUAGES) for key in keys)


@pytest.mark.model
@pytest.mark.timeout(1500)
def test_it_runs_from_top_to_bottom_on_the_embedded_model(tmp_path, monkeypatch):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    monkeypatch.setenv("CADERNO_PASTA", str(tmp_path / "oficina"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    client = NotebookClient(notebook, timeout=1400, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = {
        cell.source: "".join(
            str(output.get("data", {}).get("text/plain", output.get("text", "")))
            for output in cell.outputs
        )
        for cell in notebook.cells
        if cell.cell_type == "code"
    }
    (folder,) = (tmp_path / "oficina").glob("*-peft")
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    (answers,) = (said for source, said in shown.items() if "answers(" in source)
    assert "Búzio" in answers
    (night,) = (cell for cell in notebook.cells if "oficina.night()" in cell.source)
    assert any("image/svg+xml" in output.get("data", {}) for output in night.outputs)
    (revision,) = (tmp_path / "oficina" / "revisions").glob("*/metadata.json")
    assert json.loads(revision.read_text())["rows"]
