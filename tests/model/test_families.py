"""Every row of the family table points at things that are there, and errors say what a row needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cutlayer.errors import ModelError
from cutlayer.model.cut import head_modules
from cutlayer.model.families import FAMILIES, family_of
from cutlayer.testing.tiny import CONFIGS

CASES = [(row.name, task) for row in FAMILIES.values() for task in row.tasks]


def meta_model(family: str, task: str) -> Any:
    maker = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    with torch.device("meta"):
        return maker.from_config(CONFIGS[family]())


@pytest.mark.parametrize(("family", "task"), CASES)
def test_every_path_of_a_row_is_there(family: str, task: str) -> None:
    row, model = FAMILIES[family], meta_model(family, task)
    backbone = getattr(model, model.base_model_prefix)
    blocks = backbone.get_submodule(row.blocks)
    assert isinstance(blocks, nn.ModuleList)
    for path in (row.embeddings, *row.positions, *row.final, *row.after_embeddings):
        parent, _, name = path.rpartition(".")
        assert hasattr(backbone.get_submodule(parent), name), path  # may be None: an optional norm or projection
    if row.pooler is not None:
        assert isinstance(backbone.get_submodule(row.pooler), nn.Module)
    linear = [name for name, module in blocks[0].named_modules() if "Linear" in str(module) or "Conv1D" in str(module)]
    for target in row.attention:
        assert any(f".{name}".endswith(f".{target}") for name in linear), target


@pytest.mark.parametrize("family", sorted(name for name, row in FAMILIES.items() if "classification" in row.tasks))
def test_the_head_of_a_row_is_the_whole_head(family: str) -> None:
    """What a classifier trains is every module outside the backbone that has parameters."""
    model = meta_model(family, "classification")
    outside = head_modules(model, getattr(model, model.base_model_prefix))
    with_parameters = {name for name in outside if any(True for _ in model.get_submodule(name).parameters())}
    assert with_parameters == set(FAMILIES[family].head)


def test_the_table_is_keyed_by_name() -> None:
    assert all(name == row.name for name, row in FAMILIES.items())
    assert FAMILIES.keys() == CONFIGS.keys(), "every row has a tiny model, so that parity runs on it"


def test_an_unknown_architecture_says_what_a_row_needs() -> None:
    with pytest.raises(ModelError) as error:
        family_of("mamba", "causal-lm")
    message = str(error.value)
    assert "\n" not in message
    for word in ("'mamba'", "bert, distilbert", "blocks", "embeddings", "attention", "docs/adding-a-family.md"):
        assert word in message


def test_a_family_that_does_not_do_the_task() -> None:
    assert family_of("bert", "classification").name == "bert"
    with pytest.raises(ModelError, match=r"expected a family that does causal-lm, got 'bert'.*--task classification"):
        family_of("bert", "causal-lm")
