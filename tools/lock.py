"""Pin the dependencies of pyproject.toml with hashes, for macOS and Linux, without any address."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILE = (
    *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--no-header"),
    *("--generate-hashes", "--no-emit-index-url", "--python-version", "3.11"),
)
FILES = {
    "requirements-uv.txt": ("--group", "bootstrap"),
    "requirements.txt": ("pyproject.toml", "--group", "build", "--group", "embedded"),
    "requirements-dev.txt": (
        *("pyproject.toml", "--group", "build", "--group", "embedded"),
        *("--group", "dev", "--group", "bootstrap", "-c", "requirements.txt"),
    ),
}


def main() -> None:
    """Write the three requirements files."""
    for name, options in FILES.items():
        subprocess.run([*COMPILE, *options, "-o", name], cwd=ROOT, check=True)
        print(f"{name}: {sum('==' in line for line in (ROOT / name).open())} packages")


if __name__ == "__main__":
    main()
