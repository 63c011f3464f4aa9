"""What a test needs beyond Python: missing it is an error in CI and a printed reason elsewhere."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest


def need(path_or_command: Path | str, why: str) -> str:
    """The path of a file or command; the running test ends here when there is none."""
    found = (
        str(path_or_command)
        if isinstance(path_or_command, Path) and path_or_command.exists()
        else shutil.which(str(path_or_command))
    )
    if found:
        return found
    return _miss(str(path_or_command), why)


def need_module(name: str, why: str) -> None:
    """A Python package; the running test ends here when there is none."""
    if importlib.util.find_spec(name) is None:
        _miss(name, why)


def _miss(name: str, why: str) -> NoReturn:
    reason = f"{name} is missing: {why}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
