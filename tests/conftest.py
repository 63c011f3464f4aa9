"""The embedded model, converted once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import embedded, plan

# Before any test module imports MLX.
plan.prepare(plan.detect())


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The folder of the embedded model; kept between runs."""
    root = Path(__file__).resolve().parent.parent
    return embedded.install(root / ".cache" / "models" / embedded.NAME)
