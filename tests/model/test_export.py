"""Law 9: the adapter exported is the adapter trained. Plain PEFT on the whole model gives the same logits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bases import moved_adapter, open_base, settings_for
from cutlayer.errors import AdapterError
from cutlayer.methods.table import build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.card import read_card
from cutlayer.model.export import load_finetuned, read_adapter, save_adapter
from cutlayer.model.fingerprint import public_name
from cutlayer.testing.playground import fleet_of, plain_training, play, streams_for
from cutlayer.types import Adapter
from exported import card_for, logits_of, plain_peft, whole_logits
from turns import CASES, by_turns

ModelMaker = Callable[[str, str], Path]
ALL_LINEAR = LoraSettings(rank=4, alpha=6.0, targets=("all-linear",))


def trained(base: Base) -> Adapter:
    """An adapter after two rounds of one step on one device."""
    fleet = fleet_of(1)
    streams = streams_for(fleet, base.settings.task, steps=2)
    return play(base, build_method("memsfl", {"cut": 1}, seed=0), fleet, streams, rounds=2, local_steps=1).adapter


@pytest.mark.parametrize(("family", "task"), list(by_turns(CASES, one_of=2)))
def test_plain_peft_gives_the_same_logits(family: str, task: str, tiny_model: ModelMaker, tmp_path: Path) -> None:
    base = open_base(tiny_model(family, task), task)
    adapter = trained(base)
    save_adapter(tmp_path / "adapter", adapter, base, card_for(base))
    logits = whole_logits(base, adapter)
    assert torch.equal(logits_of(plain_peft(base, tmp_path / "adapter"), task), logits)
    assert not torch.equal(whole_logits(base, base.initial_adapter(0)), logits), "an untrained adapter proves nothing"


@pytest.mark.parametrize(
    ("family", "task"),
    [("gpt2", "causal-lm"), ("llama", "causal-lm"), ("bert", "classification"), ("opt", "classification")],
)
def test_every_linear_layer_trains_and_exports(family: str, task: str, tiny_model: ModelMaker, tmp_path: Path) -> None:
    base = open_base(tiny_model(family, task), task, lora=ALL_LINEAR)
    fleet = fleet_of(1)
    streams = streams_for(fleet, task, steps=2)
    played = play(base, build_method("memsfl", {"cut": 1}, seed=0), fleet, streams, rounds=2, local_steps=1)
    plain, _ = plain_training(base, base.initial_adapter(0), streams["device-0"].given, [1e-2, 2e-3])
    assert plain.keys() == played.adapter.keys()
    assert all(torch.equal(plain[name], played.adapter[name]) for name in plain)
    save_adapter(tmp_path / "adapter", played.adapter, base, card_for(base))
    loaded = logits_of(plain_peft(base, tmp_path / "adapter"), task)
    assert torch.equal(loaded, whole_logits(base, played.adapter))


@pytest.mark.parametrize("ranks", [(0, 2, 6), (6, 3, 1), (0, 0, 5), (3, 3, 3)])
@pytest.mark.parametrize(("family", "task"), [("gpt2", "causal-lm"), ("bert", "classification")])
def test_a_rank_for_every_block(
    family: str, task: str, ranks: tuple[int, ...], tiny_model: ModelMaker, tmp_path: Path
) -> None:
    """One scale for all ranks: PEFT reads it from the patterns, and so do we from the file."""
    base = open_base(tiny_model(family, task), task, lora=LoraSettings(rank=max(ranks), alpha=9.0))
    start = base.initial_adapter(0, ranks)
    generator = torch.Generator().manual_seed(2)
    adapter = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in start.items()}
    save_adapter(tmp_path / "adapter", adapter, base, card_for(base))
    logits = whole_logits(base, adapter)
    assert torch.equal(logits_of(plain_peft(base, tmp_path / "adapter"), task), logits)
    assert base.blocks_in(adapter) == {block for block, rank in enumerate(ranks) if rank}
    read = read_adapter(tmp_path / "adapter", base)
    assert {name: value.shape for name, value in read.items()} == {n: v.shape for n, v in adapter.items()}
    assert torch.equal(whole_logits(base, read), logits)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [("bert", "mean"), ("bert", "cls"), ("bert", "pooler"), ("roberta", "mean"), ("distilbert", "mean")],
)
def test_load_finetuned_installs_the_pooling(family: str, pooling: str, tiny_model: ModelMaker, tmp_path: Path) -> None:
    base = open_base(tiny_model(family, "classification"), "classification", pooling=pooling)
    adapter = trained(base)
    save_adapter(tmp_path / "adapter", adapter, base, card_for(base))
    model = load_finetuned(tmp_path / "adapter", base.settings.name)
    assert not model.training
    assert torch.equal(logits_of(model, "classification"), whole_logits(base, adapter))
    assert model.config.id2label == {0: "sad", 1: "so-so", 2: "glad"}
    assert model.config.label2id["glad"] == 2
    note = (tmp_path / "adapter" / "README.md").read_text()
    assert ("load it with `cutlayer.load_finetuned" in note) == (pooling != "pooler")
    assert public_name(base.files) in note
    assert str(tmp_path.parent) not in "".join(p.read_text() for p in (tmp_path / "adapter").glob("*.[jm]*[nd]"))


@pytest.mark.parametrize("task", ["causal-lm", "classification"])
def test_load_finetuned_loads_a_decoder(task: str, tiny_model: ModelMaker, tmp_path: Path) -> None:
    base = open_base(tiny_model("gpt2", task), task, pad_id=5)
    adapter = moved_adapter(base)
    save_adapter(tmp_path / "adapter", adapter, base, card_for(base))
    model = load_finetuned(str(tmp_path / "adapter"), base.settings.name)
    assert torch.equal(logits_of(model, task), whole_logits(base, adapter))


@pytest.mark.parametrize("target", ["dense", "attention.output.dense"])
def test_a_target_whose_name_is_also_outside_the_blocks(
    target: str, tiny_model: ModelMaker, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """BERT's pooler has a `dense` of its own: PEFT must not adapt it, nor miss its factors in the file."""
    base = open_base(
        tiny_model("bert", "classification"), "classification", lora=LoraSettings(targets=(target,)), pooling="mean"
    )
    adapter = moved_adapter(base)
    save_adapter(tmp_path / "adapter", adapter, base, card_for(base))
    model = load_finetuned(tmp_path / "adapter", base.settings.name)
    plain = plain_peft(base, tmp_path / "adapter")
    assert [str(warning.message) for warning in recwarn if "adapter" in str(warning.message).lower()] == []
    assert not any("pooler" in name and "lora" in name for name, _ in plain.named_parameters())
    assert torch.equal(logits_of(model, "classification"), whole_logits(base, adapter))


# ------------------------------------------------------------------ the bytes

SAVE = """
import sys
from pathlib import Path
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.settings import ModelSettings
from cutlayer.model.export import save_adapter
from cutlayer.model.card import AdapterCard

settings = ModelSettings(sys.argv[1], "classification", num_labels=3, lora=LoraSettings(4, 6.0, 0.0, ("all-linear",)))
base = Base(settings)
card = AdapterCard(sys.argv[1], "classification", ("sad", "so-so", "glad"), base.pooling, 12, 0,
                   {"text": "text", "label": "label"})
save_adapter(Path(sys.argv[2]), base.initial_adapter(0), base, card)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_adapter_is_the_same_bytes(tiny_model: ModelMaker, tmp_path: Path) -> None:
    """Twice in this process, whatever the order of the names; and in one whose sets are ordered otherwise."""
    base = open_base(tiny_model("bert", "classification"), "classification", lora=ALL_LINEAR)
    adapter = base.initial_adapter(0)
    save_adapter(tmp_path / "one", adapter, base, card_for(base))
    save_adapter(tmp_path / "two", dict(reversed(adapter.items())), base, card_for(base))
    other_hashes = {**os.environ, "PYTHONHASHSEED": "7" if os.environ.get("PYTHONHASHSEED") != "7" else "8"}
    subprocess.run([sys.executable, "-c", SAVE, base.settings.name, tmp_path / "three"], env=other_hashes, check=True)
    one = contents(tmp_path / "one")
    assert one.keys() == {"adapter_model.safetensors", "adapter_config.json", "cutlayer.json", "README.md"}
    assert contents(tmp_path / "two") == one
    assert contents(tmp_path / "three") == one


def test_what_is_written_is_fp32_and_says_how_to_use_it(tiny_model: ModelMaker, tmp_path: Path) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification", lora=LoraSettings(4, 6.0, 0.1))
    adapter = {name: value.bfloat16() for name, value in moved_adapter(base).items()}
    save_adapter(tmp_path / "adapter", adapter, base, card_for(base))
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert stored.keys() == base.shapes.keys()
    assert {value.dtype for value in stored.values()} == {torch.float32}
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    expected = {
        "r": 4,
        "lora_alpha": 6.0,
        "lora_dropout": 0.1,
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "modules_to_save": ["pooler", "classifier"],
        "inference_mode": True,
        "base_model_name_or_path": public_name(base.files),
    }
    assert {key: config[key] for key in expected} == expected
    assert config["target_modules"] == sorted(config["target_modules"])


def test_a_failure_leaves_the_old_adapter(tiny_model: ModelMaker, tmp_path: Path) -> None:
    base = open_base(tiny_model("bert", "classification"), "classification")
    save_adapter(tmp_path / "adapter", base.initial_adapter(0), base, card_for(base))
    before = contents(tmp_path / "adapter")
    card = card_for(base)
    card.columns["text"] = {1: object(), "x": object()}  # type: ignore[assignment]
    with pytest.raises(TypeError):
        save_adapter(tmp_path / "adapter", moved_adapter(base), base, card)
    assert contents(tmp_path / "adapter") == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


# ------------------------------------------------------------------ reading it back


@pytest.fixture
def exported(tiny_model: ModelMaker, tmp_path: Path) -> tuple[Base, Path]:
    base = open_base(tiny_model("bert", "classification"), "classification")
    save_adapter(tmp_path / "adapter", moved_adapter(base), base, card_for(base))
    return base, tmp_path / "adapter"


def says(error: pytest.ExceptionInfo[AdapterError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert "expected" in text
    assert "got" in text
    return text


def test_what_was_written_is_read(exported: tuple[Base, Path]) -> None:
    base, folder = exported
    assert read_card(folder) == replace(card_for(base), base=public_name(base.files))
    adapter = read_adapter(folder, base)
    assert all(torch.equal(adapter[name], value) for name, value in moved_adapter(base).items())


def test_a_folder_without_a_card(tmp_path: Path) -> None:
    for read in (read_card, load_finetuned):
        with pytest.raises(AdapterError) as error:
            read(tmp_path)
        assert "no card" in says(error)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"labels": [], "surprise": 1}', '{"labels": 3}', "\x00"])
def test_a_card_that_is_none(content: str, exported: tuple[Base, Path]) -> None:
    (exported[1] / "cutlayer.json").write_text(content)
    with pytest.raises(AdapterError) as error:
        read_card(exported[1])
    assert "cutlayer.json: expected the card of an adapter" in says(error)


def test_an_adapter_file_that_is_torn_or_gone(exported: tuple[Base, Path]) -> None:
    base, folder = exported
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AdapterError) as error:
        read_adapter(folder, base)
    assert "expected a safetensors file" in says(error)
    path.unlink()
    with pytest.raises(AdapterError) as error:
        read_adapter(folder, base)
    assert "expected a safetensors file" in says(error)


def test_an_adapter_of_another_shape(exported: tuple[Base, Path], tiny_model: ModelMaker) -> None:
    folder = exported[1]
    other = open_base(tiny_model("bert", "classification"), "classification", lora=LoraSettings(rank=2))
    with pytest.raises(AdapterError) as error:
        read_adapter(folder, other)
    assert ".lora_" in says(error)


@pytest.mark.parametrize("change", ["lost", "added"])
def test_an_adapter_with_other_names(change: str, exported: tuple[Base, Path]) -> None:
    base, folder = exported
    tensors = {name: value.clone() for name, value in moved_adapter(base).items()}
    if change == "lost":
        del tensors["base_model.model.classifier.weight"]
    else:
        tensors["base_model.model.extra"] = torch.zeros(1)
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(AdapterError) as error:
        read_adapter(folder, base)
    assert ("classifier.weight" if change == "lost" else "extra") in says(error)


def test_an_adapter_is_read_onto_the_device_of_its_base(exported: tuple[Base, Path]) -> None:
    base, folder = exported
    meta = Base(settings_for(Path(base.settings.name), "classification"), device="meta")
    assert all(value.is_meta for value in read_adapter(folder, meta).values())
