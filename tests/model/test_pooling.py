"""How a sentence becomes a vector: computed by hand beside what the model gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.errors import ConfigError
from cutlayer.model.families import FAMILIES
from cutlayer.model.part import model_inputs
from cutlayer.model.pooling import choose_pooling, masked_mean
from cutlayer.testing.tiny import random_batch

ModelMaker = Callable[[str, str], Path]


def test_auto_is_the_familys_own() -> None:
    assert choose_pooling("auto", FAMILIES["bert"]) == "pooler"
    assert choose_pooling("auto", FAMILIES["llama"]) == "last"
    assert choose_pooling("mean", FAMILIES["distilbert"]) == "mean"


@pytest.mark.parametrize(("asked", "family"), [("cls", "distilbert"), ("mean", "llama"), ("max", "bert")])
def test_a_pooling_that_the_family_cannot_do(asked: str, family: str) -> None:
    with pytest.raises(ConfigError) as error:
        choose_pooling(asked, FAMILIES[family])
    message = str(error.value)
    assert "\n" not in message
    assert repr(asked) in message
    assert ", ".join(FAMILIES[family].poolings) in message


def test_the_mean_is_over_the_tokens_that_are_there() -> None:
    hidden_BTD = torch.arange(12.0).reshape(2, 3, 2)
    mask_BT = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert torch.equal(masked_mean(hidden_BTD, mask_BT), torch.tensor([[2.0, 3.0], [6.0, 7.0]]))
    assert torch.equal(masked_mean(hidden_BTD, None), torch.tensor([[2.0, 3.0], [8.0, 9.0]]))
    assert masked_mean(hidden_BTD.bfloat16(), mask_BT).dtype is torch.bfloat16


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_bert_classifies_by_the_pooling_asked_for(pooling: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", pooling=pooling)
    adapter, batch = moved_adapter(base), random_batch("classification")
    whole = base.whole()
    whole.use(adapter)
    with torch.no_grad():
        _, logits = whole.loss_and_logits(batch)
        hidden_BTD = whole.model.get_submodule("bert.encoder")(  # the blocks alone, by hand
            whole.model.get_submodule("bert.embeddings")(batch.input_ids_BT),
            attention_mask=batch.attention_mask_BT[:, None, None, :].bool(),
        ).last_hidden_state
        lengths_B1 = batch.attention_mask_BT.sum(1, keepdim=True)
        mean_BD = torch.stack([h_TD[: int(n)].mean(0) for h_TD, n in zip(hidden_BTD, lengths_B1, strict=True)])
        pooled_BD = mean_BD if pooling == "mean" else hidden_BTD[:, 0]
        expected = whole.model.get_submodule("classifier")(pooled_BD)
    torch.testing.assert_close(logits, expected)


def test_each_pooling_is_another_model(tiny_model: ModelMaker) -> None:
    batch, logits = random_batch("classification"), {}
    for pooling in FAMILIES["bert"].poolings:
        base = open_base(tiny_model("bert", "classification"), "classification", pooling=pooling)
        base.whole().use(moved_adapter(base))
        logits[pooling] = base.whole().loss_and_logits(batch)[1]
    assert not torch.allclose(logits["pooler"], logits["mean"])
    assert not torch.allclose(logits["cls"], logits["mean"])
    assert not torch.allclose(logits["pooler"], logits["cls"])


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_padding_does_not_move_the_mean(family: str, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model(family, "classification"), "classification", pooling="mean")
    base.whole().use(moved_adapter(base))
    batch = random_batch("classification", samples=1, tokens=6)
    inputs = model_inputs(batch)
    padded = {name: torch.nn.functional.pad(tensor, (0, 4)) for name, tensor in inputs.items()}
    with torch.no_grad():
        torch.testing.assert_close(base.whole().model(**padded).logits, base.whole().model(**inputs).logits)
