"""The end of a run that moved all weights: the model as transformers loads it, and the kilobytes that make it again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from bases import open_base, settings_for
from cutlayer.errors import ModelError
from cutlayer.methods.fedkseed import rebuilt
from cutlayer.model.adapter import PREFIX
from cutlayer.model.base import Base
from cutlayer.model.card import AdapterCard
from cutlayer.model.moved import SUMS, read_sums, save_moved
from cutlayer.model.part import model_inputs
from cutlayer.policies.seed_search import SeedSearch
from cutlayer.rounds.seeds import SeedsRound
from cutlayer.testing.tiny import CLASSES, random_batch

ModelMaker = Callable[[str, str], Path]
SEARCH = SeedSearch(8, seed=3, epsilon=1e-3, full=True)


def moved(folder: Path, base: Base, task: str) -> SeedsRound:
    """A run's end, written to `folder`."""
    labels = tuple(CLASSES) if task == "classification" else ()
    card = AdapterCard("base", task, labels, base.pooling, 16, 0, {})
    round = SeedsRound(SEARCH, pro=False)
    round.sums = torch.linspace(-0.01, 0.02, 8)
    save_moved(folder, base, round.stand(base, 0), round.made_from(0), card)
    return round


@pytest.mark.parametrize(("family", "task"), [("bert", "classification"), ("llama", "causal-lm")])
def test_transformers_loads_what_was_trained(family: str, task: str, tiny_model: ModelMaker, tmp_path: Path) -> None:
    base = open_base(tiny_model(family, task), task)
    round = moved(tmp_path / "model", base, task)
    kind = AutoModelForSequenceClassification if task == "classification" else AutoModelForCausalLM
    plain = kind.from_pretrained(tmp_path / "model").eval()
    batch, part, standing = random_batch(task), base.whole(frozenset()), round.stand(base, 0)
    part.use({name: standing.tensors[name] for name in part.names})
    part.model.eval()
    with torch.no_grad():
        assert torch.equal(plain(**model_inputs(batch)).logits, part.loss_and_logits(batch)[1])
    part.model.train()


def test_the_sums_make_the_weights_again_from_the_base(tiny_model: ModelMaker, tmp_path: Path) -> None:
    folder = tiny_model("bert", "classification")
    moved(tmp_path / "model", open_base(folder, "classification"), "classification")
    again = rebuilt(Base(settings_for(folder, "classification")), tmp_path / "model" / SUMS)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    for name, value in again.tensors.items():
        assert torch.equal(value, stored[name.removeprefix(PREFIX)]), name
    assert (tmp_path / "model" / SUMS).stat().st_size < 1000


def test_the_same_weights_are_the_same_bytes(tiny_model: ModelMaker, tmp_path: Path) -> None:
    """Several entries of a safetensors header would be written in another order each time."""
    for name in "abcde":
        moved(tmp_path / name, open_base(tiny_model("bert", "classification"), "classification"), "classification")
    assert len({(tmp_path / name / SUMS).read_bytes() for name in "abcde"}) == 1


@pytest.mark.parametrize("header", [None, {"format": "pt"}, {"made_from": "{"}])
def test_a_file_of_no_sums(header: dict[str, str] | None, tmp_path: Path) -> None:
    (tmp_path / SUMS).write_bytes(save({"sums": torch.zeros(2)}, header))
    with pytest.raises(ModelError, match="expected sums of seeds"):
        read_sums(tmp_path / SUMS)
    (tmp_path / SUMS).write_bytes(b"none")
    with pytest.raises(ModelError, match="expected sums of seeds"):
        read_sums(tmp_path / SUMS)
