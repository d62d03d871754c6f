"""Fixtures that every test shares: one thread, tiny models made once, the real data where it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import yaml

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

import torch

from browser import Browser, open_browser
from commands import FLEET, World, run
from cutlayer.testing import tiny

torch.set_num_threads(1)

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ModelMaker:
    """`tiny_model(family, task)` is the folder of a tiny random model, saved once per session."""
    made: dict[tuple[str, str], Path] = {}

    def make(family: str, task: str) -> Path:
        key = (family, task)
        if key not in made:
            made[key] = tiny.save_tiny_model(family, task, tmp_path_factory.mktemp(f"{family}-{task}"))
        return made[key]

    return make


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Leaves out `fsync`: no test can bring about the loss of power that it is for; the order of calls is tested."""
    with mock.patch.object(os, "fsync", return_value=None):
        yield


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A headless browser; skips where there is none."""
    with open_browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and ninety reviews, as `real.values_for` takes them; to be read only."""
    return tiny.save_inputs(tmp_path_factory.mktemp("inputs"), rows=90)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Models, data and fleet for commands, to be read only."""
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
def world(made_once: World, tmp_path: Path) -> Iterator[World]:
    """A folder of one's own with links to the same content: what is changed must be replaced by a copy first.

    What a command sets in the environment goes with it.
    """
    with mock.patch.dict(os.environ):
        yield made_once.linked(tmp_path)


@pytest.fixture(scope="session")
def trained(made_once: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world whose classifier was trained, to be read only."""
    world = made_once.linked(tmp_path_factory.mktemp("trained"))
    ran = run("train", *world.classification())
    assert (ran.code, ran.err) == (0, "")
    return world


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; skips where it is absent."""
    given = os.environ.get("CUTLAYER_SHARED_DATA")
    folder = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real data absent: no folder {folder} (set CUTLAYER_SHARED_DATA to try elsewhere)")
    return folder
