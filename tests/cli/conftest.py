"""What the tests of commands share: tiny models that can read, data and a fleet, made once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml

from commands import FLEET, World, run
from cutlayer.testing import tiny


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Models, data and fleet, to be read only."""
    world = World(tmp_path_factory.mktemp("world"))
    for family, task, folder in (
        ("bert", "classification", world.classifier),
        ("llama", "causal-lm", world.writer),
    ):
        tiny.save_tiny_tokenizer(tiny.save_tiny_model(family, task, folder))
    for name, rows in (("train", 24), ("validation", 12)):
        tiny.write_jsonl(world.reviews / f"{name}.jsonl", tiny.reviews(rows, seed=rows))
        tiny.write_jsonl(world.sums / f"{name}.jsonl", tiny.sums(rows, seed=rows))
    world.fleet.write_text(yaml.safe_dump(FLEET))
    return world


@pytest.fixture
def world(made_once: World, tmp_path: Path) -> World:
    """A folder of one's own with links to the same content: what is changed must be replaced by a copy first."""
    return _linked(made_once, tmp_path)


@pytest.fixture(scope="session")
def trained(made_once: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose classifier was trained, to be read only."""
    world = _linked(made_once, tmp_path_factory.mktemp("trained"))
    ran = run("train", *world.classification())
    assert (ran.code, ran.err) == (0, "")
    return world


def _linked(world: World, folder: Path) -> World:
    for path in world.folder.iterdir():
        (folder / path.name).symlink_to(path)
    return World(folder)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """What a command sets in the environment goes with it."""
    with mock.patch.dict(os.environ):
        yield
