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
    # On top of the environment: nothing of what is in it already.
    "requirements-torch.txt": (
        *("pyproject.toml", "--group", "dev", "--group", "interchange"),
        *("-c", "requirements-dev.txt"),
    ),
}
ON_TOP = "requirements-torch.txt"


def installed() -> list[str]:
    """Names of the packages that the environment for developers has."""
    lines = (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    return sorted({line.split("==")[0] for line in lines if "==" in line and "'never'" not in line})


def main() -> None:
    """Write the requirements files."""
    for name, options in FILES.items():
        left_out = [f"--no-emit-package={each}" for each in installed()] if name == ON_TOP else []
        subprocess.run([*COMPILE, *options, *left_out, "-o", name], cwd=ROOT, check=True)
        print(f"{name}: {sum('==' in line for line in (ROOT / name).open())} packages")


if __name__ == "__main__":
    main()
