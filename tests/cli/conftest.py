"""An environment that stays as it was, whatever commands set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Undoes what a command has set in the environment."""
    with mock.patch.dict(os.environ):
        yield
