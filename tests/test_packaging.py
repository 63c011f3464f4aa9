"""The wheel: everything inside one package, with its data, and it starts from there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ("config/texts.toml", "config/personas/farense.md", "adapters/web/page/index.html")


def test_the_wheel_holds_one_package_with_its_data_and_runs(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as packed:
        tops = {name.split("/")[0] for name in packed.namelist()}
        assert {top for top in tops if not top.endswith(".dist-info")} == {"farense_bot"}
        packed.extractall(site)
    for name in DATA:
        assert (site / "farense_bot" / name).is_file()
    program = "import sys, farense_bot; sys.argv[1:] = ['ask', '--help']; farense_bot.main()"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "--home" in result.stdout
