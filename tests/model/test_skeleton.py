"""The task model on the meta device: its config is the run's, and what no model can be made of is refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bases import open_base, settings_for
from cutlayer.errors import ConfigError, ModelError
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.families import FAMILIES
from cutlayer.model.skeleton import Skeletons, backbone_of
from cutlayer.model.source import ModelFiles
from cutlayer.testing.tiny import BLOCKS, LABELS

ModelMaker = Callable[[str, str], Path]


def skeletons(folder: Path, task: str, *, depth: int | None = None, where: str = "cpu") -> Skeletons:
    settings = settings_for(folder, task)
    return Skeletons(settings, ModelFiles(settings.name), torch.device(where), depth)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_parameters_have_no_values_and_buffers_have_transformers_own(family: str, tiny_model: ModelMaker) -> None:
    task = FAMILIES[family].tasks[0]
    folder = tiny_model(family, task)
    model = skeletons(folder, task).make()
    assert all(parameter.is_meta for parameter in model.parameters())
    whole = type(model).from_pretrained(folder)
    expected = dict(whole.named_buffers())
    assert dict(model.named_buffers()).keys() == expected.keys()
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, expected[name]), name


def test_each_is_a_model_of_its_own_and_on_the_meta_device_nothing_has_values(tiny_model: ModelMaker) -> None:
    made = skeletons(tiny_model("llama", "causal-lm"), "causal-lm", where="meta")
    one, other = made.make(), made.make()
    assert one is not other
    assert all(value.is_meta for value in [*one.parameters(), *one.buffers()])
    assert backbone_of(one) is one.model


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama", "gemma3_text"])
def test_it_may_have_another_depth(family: str, tiny_model: ModelMaker) -> None:
    task = FAMILIES[family].tasks[0]
    for depth in (1, BLOCKS, BLOCKS + 4):
        made = skeletons(tiny_model(family, task), task, depth=depth)
        backbone = backbone_of(made.make())
        assert len(backbone.get_submodule(made.family.blocks)) == depth


def test_the_pooler_is_trained_only_where_it_is_used(tiny_model: ModelMaker) -> None:
    folder = tiny_model("bert", "classification")
    assert open_base(folder, "classification").trained_heads == ("bert.pooler", "classifier")
    assert open_base(folder, "classification", pooling="mean").trained_heads == ("classifier",)
    assert open_base(tiny_model("llama", "causal-lm"), "causal-lm").trained_heads == ()
    assert open_base(tiny_model("llama", "classification"), "classification").trained_heads == ("score",)
    with pytest.raises(ConfigError, match=r"model\.pooling"):
        open_base(folder, "classification", pooling="last")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_dropout_is_off_unless_asked_for(family: str, tiny_model: ModelMaker) -> None:
    folder = tiny_model(family, "classification")

    def base(**changes: object) -> Base:
        return Base(settings_for(folder, "classification", **changes), device="meta")

    def rates(model: nn.Module) -> set[float]:
        modules = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
        attributes = [getattr(m, name) for m in model.modules() for name in vars(m) if "drop" in name]
        return {float(rate) for rate in [*modules, *attributes] if isinstance(rate, (int, float))}

    model = base().whole().model
    assert model.training
    assert rates(model) <= {0.0}
    if family in ("gpt2", "bert", "roberta", "distilbert", "opt"):  # the others have none
        assert 0.1 in rates(base(base_dropout=True).whole().model)
    assert 0.3 in rates(base(lora=LoraSettings(dropout=0.3)).device_part(1).model)


def test_labels_of_the_run_are_in_the_config_and_its_pad_id_is_the_models(tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("llama", "classification"), "classification", pad_id=5)
    assert (base.config.num_labels, base.config.pad_token_id, base.config.use_cache) == (LABELS, 0, False)
    nameless = open_base(tiny_model("gpt2", "classification"), "classification", pad_id=5)
    assert nameless.config.pad_token_id == 5, "transformers asks for one"


@pytest.mark.parametrize(
    "change", [{"hidden_size": "x"}, {"num_attention_heads": 3}, {"hidden_act": "nope"}, {"vocab_size": -1}], ids=str
)
def test_a_config_that_makes_no_model(change: dict[str, object], tiny_model: ModelMaker, tmp_path: Path) -> None:
    config = json.loads((tiny_model("llama", "causal-lm") / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError) as error:
        open_base(tmp_path, "causal-lm")
    assert "\n" not in str(error.value)
    assert f"model {tmp_path}: expected a config.json that transformers builds a model from, got " in str(error.value)


def test_an_architecture_without_a_row(tiny_model: ModelMaker, tmp_path: Path) -> None:
    text = (tiny_model("llama", "causal-lm") / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"model_type": "llama"', '"model_type": "mamba"'))
    with pytest.raises(ModelError, match="'mamba'"):
        open_base(tmp_path, "causal-lm")
