"""Every row of the family table points at things that are there, and errors say what a row needs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Olmo2Config

from cutlayer import Method, cut_at, everyone, mean_per_block, relay
from cutlayer.errors import ModelError
from cutlayer.model.base import Base
from cutlayer.model.cut import check_paths, head_modules
from cutlayer.model.families import FAMILIES, Family, family_content, family_of, read_family
from cutlayer.model.settings import ModelSettings
from cutlayer.testing.playground import learning_rate, plain_training, played
from cutlayer.testing.tiny import BLOCKS, CONFIGS
from turns import CASES


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
    """A classifier trains every module outside the backbone that has parameters."""
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
    for word in (
        "'mamba'",
        "bert, deberta-v2, distilbert",
        "blocks",
        "embeddings",
        "attention",
        "docs/adding-a-family.md",
    ):
        assert word in message


def test_a_family_that_does_not_do_the_task() -> None:
    assert family_of("bert", "classification").name == "bert"
    with pytest.raises(ModelError, match=r"expected a family that does causal-lm, got 'bert'.*--task classification"):
        family_of("bert", "causal-lm")


# ------------------------------------------------------------------ rows of somebody's own


def test_a_file_is_a_row(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: olmo2\nfinal: [norm]\ntasks: [causal-lm]\nhead_width: null\n")
    row = read_family(str(file))
    assert row == Family("olmo2", tasks=("causal-lm",), head_width=None)
    assert read_family({"name": "olmo2"}) == Family("olmo2")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_row_of_the_table_written_out_is_that_row(family: str) -> None:
    content = yaml.safe_load(yaml.safe_dump(family_content(FAMILIES[family])))
    assert read_family(content) == FAMILIES[family]


def test_a_row_of_ones_own_comes_before_the_tables() -> None:
    own = replace(FAMILIES["bert"], attention=("query",))
    assert family_of("bert", "classification", own) is own
    with pytest.raises(ModelError, match=r"whose config\.json says 'llama', got one with the name 'bert'"):
        family_of("llama", "causal-lm", own)
    with pytest.raises(ModelError, match="expected a family that does causal-lm"):
        family_of("bert", "causal-lm", own)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "model.family: expected a name, which is model_type"),
        ({"name": "x", "block": "h"}, r"got the key 'block'\. Did you mean 'blocks'\?"),
        ({"name": "x", "zzz": "h"}, r"got the key 'zzz'\. Remove it\."),
        ({"name": 3}, "model.family: name: expected a name, got 3"),
        ({"name": "x", "blocks": None}, "blocks: expected a name, got None"),
        ({"name": "x", "final": "norm"}, "final: expected a list of names, got 'norm'"),
        ({"name": "x", "final": [3]}, r"final: expected a list of names, got \[3\]"),
        ({"name": "x", "pooler": 3}, "pooler: expected a name or null, got 3"),
        (
            {"name": "x", "poolings": ["first"]},
            r"poolings: expected a list of pooler, mean, cls, last, got \['first'\]",
        ),
        ({"name": "x", "tasks": []}, r"tasks: expected a list of classification, causal-lm, got \[\]"),
    ],
)
def test_what_is_no_row(content: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as error:
        read_family(content)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "expected a text file, got No such file"), ("a: [", "expected YAML, got "), ("- a", "expected fields")],
)
def test_what_is_no_file(text: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ModelError, match=said) as error:
        read_family(str(file))
    assert str(error.value).startswith(f"{file}:")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"blocks": "encoder.layers"}, r"blocks: .* 'encoder\.layers': BertEncoder has no 'layers', but layer\."),
        ({"blocks": "encoder"}, r"blocks: expected the ModuleList of the blocks, got 'encoder', which is BertEncoder"),
        ({"embeddings": "embed_tokens"}, "embeddings: .* BertModel has no 'embed_tokens', but embeddings, encoder"),
        ({"final": ("norm",)}, "final: .* BertModel has no 'norm'"),
        ({"positions": ("wpe",)}, "positions: "),
        ({"after_embeddings": ("drop",)}, "after_embeddings: "),
        ({"pooler": "pool"}, "pooler: "),
        ({"head": ("score",)}, "head: expected a module of BertForSequenceClassification"),
    ],
)
def test_a_path_that_the_model_has_not(change: dict[str, Any], said: str) -> None:
    model = meta_model("bert", "classification")
    check_paths(model, model.bert, FAMILIES["bert"])
    with pytest.raises(ModelError, match=said) as error:
        check_paths(model, model.bert, replace(FAMILIES["bert"], **change))
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("model.family: ")


def olmo2(folder: Path) -> Path:
    """A tiny model of a family that has no row."""
    torch.manual_seed(0)
    config = Olmo2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("cut", range(BLOCKS + 1))
def test_a_family_by_file_is_plain_training_at_every_cut(cut: int, tmp_path: Path) -> None:
    """All that a row of the table is held to (`test_parity.py`), for one that is none."""
    file = tmp_path / "olmo2.yaml"
    file.write_text("name: olmo2\ntasks: [causal-lm]\n")
    assert "olmo2" not in FAMILIES
    settings = ModelSettings(str(olmo2(tmp_path / "model")), "causal-lm", family=read_family(str(file)))
    base = Base(settings)
    start = base.initial_adapter(0)
    vanilla = Method((everyone(), cut_at(cut)), relay(), mean_per_block())
    run = played(vanilla, base=base, num_devices=1, rounds=1)
    plain, _ = plain_training(base, start, run.streams["device-0"].given, [learning_rate(0, step) for step in range(2)])
    assert plain.keys() == run.adapter.keys()
    assert all(torch.equal(plain[name], run.adapter[name]) for name in plain)
    assert not all(torch.equal(plain[name], start[name]) for name in plain)
