"""The whole model, as transformers loads it from a folder and as it is put together from elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from cutlayer.errors import ModelError
from cutlayer.model.part import model_inputs
from cutlayer.model.pretrained import config_of, pretrained
from cutlayer.model.source import ModelFiles
from cutlayer.testing.tiny import LABELS, random_batch

ModelMaker = Callable[[str, str], Path]


def as_tower(folder: Path, files: Any) -> Any:
    """The same files, said to be a tower of a model that also sees."""
    return SimpleNamespace(
        gguf=None,
        text_config=dict(files.config),
        config=files.config,
        location=str(folder),
        name=str(folder),
        revision=None,
        find=files.find,
        shards=files.shards,
    )


@pytest.mark.parametrize("task", ["causal-lm", "classification"])
def test_put_together_it_is_what_transformers_loads(task: str, tiny_model: ModelMaker) -> None:
    folder = tiny_model("qwen2", task)
    files = ModelFiles(str(folder))
    maker: Any = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    changes = {"num_labels": LABELS, "pad_token_id": 0} if task == "classification" else {}
    plain, put = pretrained(files, maker, **changes), pretrained(as_tower(folder, files), maker, **changes)
    assert plain.state_dict().keys() == put.state_dict().keys()
    inputs = model_inputs(random_batch(task))
    with torch.no_grad():
        assert torch.equal(plain.eval()(**inputs).logits, put.eval()(**inputs).logits)
    assert config_of(files).hidden_size == plain.config.hidden_size


def test_files_of_another_model(tiny_model: ModelMaker, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model("qwen2", "causal-lm"), tmp_path / "model"))
    files = as_tower(folder, ModelFiles(str(folder)))
    files.shards = lambda: {"other": "model.safetensors"}
    with pytest.raises(ModelError, match="expected tensors of Qwen2ForCausalLM, got none"):
        pretrained(files, AutoModelForCausalLM)
