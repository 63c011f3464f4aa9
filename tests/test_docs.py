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


@pytest.mark.parametrize(
    "command",
    [
        *("run", "chat", "ask", "doctor", "model install", "train", "evaluate"),
        *(f"revisions {name}" for name in ("list", "show", "use", "rollback", "verify")),
    ],
)
def test_every_command_has_help(command):
    result = subprocess.run(
        [sys.executable, "-m", "farense_bot", *command.split(), "--help"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0
    assert "--home" in result.stdout


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def test_the_pinned_packages_name_no_address():
    for path in tracked():
        if path.name.startswith("requirements"):
            assert "://" not in path.read_text(encoding="utf-8"), path.name
        if path.name == "package-lock.json":
            assert '"resolved"' not in path.read_text(encoding="utf-8"), path


def test_no_file_knows_where_this_checkout_is():
    kinds = {".py", ".md", ".txt", ".toml", ".json", ".js", ".html", ""}
    for path in tracked():
        if path.suffix in kinds:
            assert f"{ROOT}/" not in path.read_text(encoding="utf-8"), path.name
