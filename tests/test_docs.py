"""The documents say what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bot.commands import COMMANDS
from config.settings import Settings
from tools import docs

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def test_the_configuration_page_is_made_from_the_settings():
    made = docs.page()
    assert docs.TARGET.read_text(encoding="utf-8") == made, "run: python -m tools.docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    words = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", words):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", ["README.md", "README.pt.md"])
def test_the_readme_names_every_command_and_setting_as_it_is(page):
    words = (ROOT / page).read_text(encoding="utf-8")
    for command in COMMANDS:
        assert command.name == "perguntar" or f"/{command.name}" in words
    for name in re.findall(r"FARENSE_([A-Z]+)", words):
        assert name.lower() in Settings.model_fields


@pytest.mark.parametrize("command", ["run", "chat", "ask", "doctor", "model install"])
def test_every_command_has_help(command):
    result = subprocess.run(
        [sys.executable, "-m", "farense_bot", *command.split(), "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0
    assert "--home" in result.stdout


def test_no_file_names_a_package_registry_or_this_machine():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    pattern = re.compile(r"pypi\.org/simple|pythonhosted|registry\.npmjs|(?<![\w.])/work/main")
    kinds = {".py", ".md", ".txt", ".toml", ".json", ".js", ".html"}
    for path in (ROOT / name for name in listed):
        if path.is_file() and path.suffix in kinds and path != Path(__file__):
            found = pattern.search(path.read_text(encoding="utf-8"))
            assert not found, f"{path.name}: {found and found.group()}"
