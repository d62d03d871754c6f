"""Where a text ends: by its mask, whatever id pads, split or whole, and as plain PEFT has it of each text alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bases import moved_adapter, open_base
from cutlayer import load_finetuned
from cutlayer.config import read_config
from cutlayer.errors import ModelError
from cutlayer.model.base import Base
from cutlayer.model.ends import ends, read_the_last
from cutlayer.model.part import model_inputs
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import prepare
from cutlayer.run.simulated import simulate
from cutlayer.testing.reference import plain_peft_model
from cutlayer.testing.tiny import BLOCKS, CLASSES, VOCABULARY, random_batch, reviews, save_tiny_tokenizer, write_jsonl
from cutlayer.types import Adapter, Batch

ModelMaker = Callable[[str, str], Path]
END = 2
DECODERS, ENCODERS = ("gpt2", "llama", "opt"), ("bert", "roberta")


def ending_in(token: int) -> Batch:
    """Texts of several lengths, each of which ends in this token, and has it in its middle; filled up with it too."""
    batch = random_batch("classification")
    ids_BT, mask_BT = batch.input_ids_BT.clone(), batch.attention_mask_BT
    for text, length in enumerate(mask_BT.sum(1).tolist()):
        ids_BT[text, length - 1 :] = token
        ids_BT[text, 3] = token
    return replace(batch, input_ids_BT=ids_BT)


def alone(model: Any, batch: Batch) -> Tensor:
    """The logits of each text by itself, without padding: what nobody can disagree on."""
    found = []
    for ids_T, mask_T in zip(batch.input_ids_BT, batch.attention_mask_BT, strict=True):
        length = int(mask_T.sum())
        found.append(model(input_ids=ids_T[None, :length], attention_mask=mask_T[None, :length]).logits)
    return torch.cat(found)


def plain(base: Base, adapter: Adapter) -> Any:
    """transformers and PEFT, with none of our code; a decoder looks for no pad token."""
    model, inside = plain_peft_model(base)
    with torch.no_grad():
        for name, value in adapter.items():
            inside[name].copy_(value)
    if base.pooling == "last":
        model.config.pad_token_id = None
    return model


@pytest.mark.parametrize("pad_id", [END, 0, VOCABULARY - 1], ids=["end", "zero", "added"])
@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_split_and_whole_judge_the_same_token_whatever_pads(family: str, pad_id: int, tiny_model: ModelMaker) -> None:
    base = open_base(tiny_model(family, "classification"), "classification", pad_id=pad_id)
    adapter, batch = moved_adapter(base), ending_in(pad_id)
    whole = base.whole()
    whole.use(adapter)
    with torch.no_grad():
        loss, logits = whole.loss_and_logits(batch)
        torch.testing.assert_close(logits, alone(plain(base, adapter), batch))
        for cut in range(BLOCKS + 1):
            device, server = base.device_part(cut), base.server_part(cut)
            device.use(adapter)
            server.use(adapter)
            h_BTD = device.forward(model_inputs(batch))
            assert torch.equal(server.logits(h_BTD, batch.attention_mask_BT.bool()), logits), f"cut {cut}"
            assert torch.equal(server.loss(h_BTD, batch.attention_mask_BT.bool(), batch.labels), loss), f"cut {cut}"


@pytest.mark.parametrize("family", ["llama", "roberta"])
def test_gradients_are_those_of_the_token_that_is_judged(family: str, tiny_model: ModelMaker) -> None:
    base, batch = open_base(tiny_model(family, "classification"), "classification", pad_id=END), ending_in(END)
    adapter = {name: nn.Parameter(value) for name, value in moved_adapter(base).items()}
    whole, device, server = base.whole(), base.device_part(2), base.server_part(2)
    for part in (whole, device, server):
        part.use(adapter)
    expected = torch.autograd.grad(whole.loss(batch), list(adapter.values()))
    h_BTD = device.forward(model_inputs(batch))
    split = torch.autograd.grad(
        server.loss(h_BTD, batch.attention_mask_BT.bool(), batch.labels), list(adapter.values())
    )
    model, inside = plain_peft_model(base)
    with torch.no_grad():
        for name, value in adapter.items():
            inside[name].copy_(value)
    if base.pooling == "last":
        model.config.pad_token_id = None
    nn.functional.cross_entropy(alone(model, batch), batch.labels).backward()
    for name, one, other in zip(adapter, expected, split, strict=True):
        assert torch.equal(one, other), name
        torch.testing.assert_close(one, inside[name].grad, msg=name)


def test_a_text_may_be_filled_up_on_either_side() -> None:
    mask_BT = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0]])
    assert ends(torch.zeros(3, 4, 2), mask_BT).tolist() == [2, 3, 0]
    assert ends(torch.zeros(3, 4, 2), mask_BT.bool()).tolist() == [2, 3, 0]
    assert ends(torch.zeros(3, 4, 2), None).tolist() == [3, 3, 3]


def test_logits_that_are_of_no_tokens_stay_as_they_are() -> None:
    class Model(nn.Module):
        base_model_prefix = "backbone"

        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.score = nn.Identity(), nn.Identity()

    model = Model()
    read_the_last(model, "score")
    logits_BC = torch.rand(2, 3)
    assert model.score(logits_BC) is logits_BC


def saved(folder: Path, base: Path, changes: Mapping[str, str | None], config: Mapping[str, Any]) -> Path:
    """A run's inputs, the tokenizer's special tokens and the config changed."""
    shutil.copytree(base, folder / "model")
    save_tiny_tokenizer(folder / "model")
    path = folder / "model" / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    path = folder / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    for name, rows in (("train", reviews(24, 1)), ("validation", reviews(12, 2))):
        write_jsonl(folder / "data" / f"{name}.jsonl", [{**row, "text": row["text"] + " </s>"} for row in rows])
    return folder


@pytest.mark.parametrize(
    ("family", "changes", "config"),
    [
        ("roberta", {"pad_token": "<pad>"}, {"pad_token_id": 1}),
        ("roberta", {"pad_token": "n20"}, {"pad_token_id": 1}),
        ("llama", {"pad_token": "</s>"}, {"pad_token_id": 2}),
        ("gpt2", {"pad_token": None}, {}),
        ("gpt2", {"pad_token": "</s>"}, {"pad_token_id": 2}),
    ],
    ids=["roberta-zero", "roberta-a-word", "llama-end", "gpt2-none", "gpt2-end"],
)
def test_a_run_reports_what_its_adapter_gives_on_plain_peft(
    family: str, changes: dict[str, str | None], config: dict[str, Any], tiny_model: ModelMaker, tmp_path: Path
) -> None:
    here = saved(tmp_path, tiny_model(family, "classification"), changes, config)
    values = {
        "model.name": str(here / "model"),
        "data.path": str(here / "data"),
        "data.max_length": 16,
        "train.rounds": 1,
        "train.local_steps": 2,
        "train.batch_size": 4,
        "train.lr": 0.01,
        "out": str(here / "run"),
    }
    outcome = simulate(prepare(read_config(None, values=values)), NoProgress())
    model = AutoModelForSequenceClassification.from_pretrained(
        here / "model", num_labels=len(CLASSES), ignore_mismatched_sizes=True
    )
    model = PeftModel.from_pretrained(model, outcome.adapter).eval()
    tokenizer = AutoTokenizer.from_pretrained(here / "model")
    rows = reviews(12, 2)
    note = (outcome.adapter / "README.md").read_text()
    if family in DECODERS:
        assert "set it to None and give texts one by one" in note
        model.config.pad_token_id = None
    else:
        assert "pad_token_id" not in note
    with torch.no_grad():
        texts = [tokenizer(row["text"] + " </s>", return_tensors="pt") for row in rows]
        logits = torch.cat([model(**text).logits for text in texts])
        ours = load_finetuned(outcome.adapter)
        torch.testing.assert_close(torch.cat([ours(**text).logits for text in texts]), logits)
    loss = nn.functional.cross_entropy(logits, torch.tensor([CLASSES.index(row["label"]) for row in rows]))
    assert float(loss) == pytest.approx(outcome.metrics["loss"], rel=1e-4)


def test_positions_that_are_counted_from_nothing(tiny_model: ModelMaker, tmp_path: Path) -> None:
    here = saved(tmp_path, tiny_model("roberta", "classification"), {}, {"pad_token_id": None})
    values = {"model.name": str(here / "model"), "data.path": str(here / "data"), "out": str(here / "run")}
    with pytest.raises(ModelError, match=r"expected a pad_token_id in config.json, .* got None"):
        prepare(read_config(None, values=values))


def test_a_loaded_adapter_reads_the_end_in_batches_too(tiny_model: ModelMaker, tmp_path: Path) -> None:
    here = saved(tmp_path, tiny_model("llama", "classification"), {"pad_token": "</s>"}, {"pad_token_id": 2})
    values = {"model.name": str(here / "model"), "data.path": str(here / "data"), "data.max_length": 16}
    values |= {"train.rounds": "1", "train.local_steps": "1", "train.batch_size": "4", "out": str(here / "run")}
    model = load_finetuned(simulate(prepare(read_config(None, values=values)), NoProgress()).adapter)
    batch = ending_in(END)
    with torch.no_grad():
        torch.testing.assert_close(model(**model_inputs(batch)).logits, alone(model, batch))
