"""The door of Farense Bot: puts the five folders on the path, then opens the command line."""

from __future__ import annotations

import sys
from pathlib import Path

_here = Path(__file__).resolve().parent
# In a wheel the folders sit inside this package; in a checkout they are its neighbours.
_root = str(_here if (_here / "bot").is_dir() else _here.parent)
if _root not in sys.path:
    sys.path.insert(0, _root)


def main() -> None:
    """Run the command line."""
    from farense_bot.cli import app

    app()
