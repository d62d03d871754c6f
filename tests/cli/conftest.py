"""What the tests of commands share beside their world: a trained one, and an environment that stays as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest import mock

import pytest

from commands import World, run


@pytest.fixture(scope="session")
def trained(made_once: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose classifier was trained, to be read only."""
    world = made_once.linked(tmp_path_factory.mktemp("trained"))
    ran = run("train", *world.classification())
    assert (ran.code, ran.err) == (0, "")
    return world


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What a command sets in the environment goes with it."""
    with mock.patch.dict(os.environ):
        yield
