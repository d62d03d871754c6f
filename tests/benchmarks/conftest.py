"""The benchmarks are scripts that import each other by name, as when one of them is run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], None]:
    """Lets a script's `main` measure in this process: quick, and no figure is believed here."""
    return lambda script: monkeypatch.setattr(script, "in_fresh_process", lambda function, *args: function(*args))
