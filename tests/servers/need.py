"""What a test needs beyond Python: missing it is an error in CI and a printed reason elsewhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

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
    reason = f"{path_or_command} is missing: {why}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
