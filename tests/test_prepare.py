"""What a run is made of, from a config. What is refused: cli/test_bad_input.py."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cutlayer.config import RunConfig, read_config
from cutlayer.coordinator import Logbook
from cutlayer.prepare import prepare
from cutlayer.simulation import known_of
from tiny import CLASSES, reviews, save_tiny_model, save_tiny_tokenizer, sums, write_jsonl


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for family, task, made in (("bert", "classification", reviews), ("llama", "causal-lm", sums)):
        save_tiny_model(family, task, folder / family)
        save_tiny_tokenizer(folder / family)
        write_jsonl(folder / task / "train.jsonl", made(60, seed=1))
        write_jsonl(folder / task / "validation.jsonl", made(12, seed=2))
    return folder


def config_for(inputs: Path, family: str, task: str, *more: str) -> RunConfig:
    overrides = (f"model.name={inputs / family}", f"data.path={inputs / task}", f"data.task={task}", *more)
    return read_config(None, (*overrides, "data.max_length=32"))


def test_planners_know_each_devices_classes(inputs: Path) -> None:
    ingredients = prepare(config_for(inputs, "bert", "classification", "data.spread=dirichlet:0.3"))
    known = known_of(ingredients, Logbook())
    assert list(known.label_counts) == [device.name for device in ingredients.fleet.devices]
    assert ingredients.labels == CLASSES
    rows = reviews(60, seed=1)
    for device, part in zip(ingredients.fleet.devices, ingredients.parts, strict=True):
        by_hand = Counter(rows[row]["label"] for row in part)
        assert known.label_counts[device.name] == tuple(by_hand[label] for label in CLASSES)
    assert len(set(known.label_counts.values())) > 1


def test_a_language_model_has_no_classes(inputs: Path) -> None:
    columns = ("data.prompt=question", "data.answer=reply")
    ingredients = prepare(config_for(inputs, "llama", "causal-lm", *columns))
    assert known_of(ingredients, Logbook()).label_counts == {}
