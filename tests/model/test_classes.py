"""The order of the classes, and the head that is taken over or drawn anew: `id2label` decides."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bases import settings_for
from commands import run
from cutlayer import load_finetuned
from cutlayer.config import read_config
from cutlayer.model.base import Base
from cutlayer.model.classes import in_the_heads_order, known_classes
from cutlayer.model.source import ModelFiles
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import RunInputs, prepare, prepare_server
from cutlayer.run.simulated import simulate
from cutlayer.testing.tiny import CLASSES, reviews, save_tiny_model, save_tiny_tokenizer, write_jsonl

NAMED = {"0": "good", "1": "bad", "2": "fair"}
HEADS = {
    "bert": ("classifier.weight", "classifier.bias"),
    "roberta": ("classifier.out_proj.weight", "classifier.out_proj.bias"),
    "distilbert": ("classifier.weight", "classifier.bias"),
    "llama": ("score.weight",),
    "modernbert": ("classifier.weight", "classifier.bias"),
}


def saved(
    folder: Path, named: Mapping[str, str] | None, family: str = "bert", words: Mapping[str, str] | None = None
) -> Path:
    """A run's inputs: a model whose head has these names, and rows whose classes are called otherwise."""
    save_tiny_tokenizer(save_tiny_model(family, "classification", folder / "model"))
    path = folder / "model" / "config.json"
    content: dict[str, Any] = json.loads(path.read_text())
    if named is not None:
        content |= {"id2label": dict(named), "label2id": {name: int(row) for row, name in named.items()}}
    path.write_text(json.dumps(content))
    for name, rows in (("train", reviews(24, 1)), ("validation", reviews(12, 2))):
        said = [{**row, "label": (words or {}).get(row["label"], row["label"])} for row in rows]
        write_jsonl(folder / "data" / f"{name}.jsonl", said)
    return folder


def inputs_of(here: Path, **more: Any) -> RunInputs:
    where = {"model.name": str(here / "model"), "data.path": str(here / "data"), "data.max_length": 16}
    return prepare(read_config(None, values={**where, "out": str(here / "run"), **more}))


def takes_over(inputs: RunInputs, family: str = "bert") -> bool:
    """Whether the run begins with all of the head, or with none of what has a row for each class; never with half."""
    stored = load_file(Path(inputs.config.model.name) / "model.safetensors")
    begun = {name.removeprefix("base_model.model."): value for name, value in inputs.base.initial_adapter(0).items()}
    other = [name for name in begun if name in stored and not torch.equal(begun[name], stored[name])]
    assert set(other) in (set(), set(HEADS[family]) - {name for name in HEADS[family] if "bias" in name}), other
    assert (inputs.notices == []) is (other == [])
    return not other


@pytest.mark.parametrize("family", HEADS)
def test_the_same_names_have_the_heads_order(family: str, tmp_path: Path) -> None:
    inputs = inputs_of(saved(tmp_path, NAMED, family))
    assert inputs.labels == ("good", "bad", "fair")
    assert takes_over(inputs, family)


@pytest.mark.parametrize("family", HEADS)
def test_other_names_are_sorted_and_the_head_is_drawn_anew(family: str, tmp_path: Path) -> None:
    inputs = inputs_of(saved(tmp_path, {"0": "good", "1": "bad", "2": "so-so"}, family))
    assert inputs.labels == CLASSES
    assert not takes_over(inputs, family)
    (line,) = inputs.notices
    assert "its classifier is drawn anew: its 3 classes are good, bad, so-so; the run's 3 are bad, fair, good" in line
    assert "\n" not in line


def test_labels_without_names_are_none(tmp_path: Path) -> None:
    inputs = inputs_of(saved(tmp_path, None))
    assert known_classes(ModelFiles(inputs.config.model.name)) == ()
    assert inputs.labels == CLASSES
    assert not takes_over(inputs)
    assert "without names (LABEL_0, ...); the run's 3 are bad, fair, good. Say in id2label" in inputs.notices[0]


def test_numbers_are_the_classes_of_a_head_without_names(tmp_path: Path) -> None:
    inputs = inputs_of(saved(tmp_path, None, words={"good": "0", "fair": "1", "bad": "2"}))
    assert inputs.labels == ("0", "1", "2")
    assert takes_over(inputs)


def test_capitals_are_no_other_names(tmp_path: Path) -> None:
    inputs = inputs_of(saved(tmp_path, {row: name.upper() for row, name in NAMED.items()}))
    assert inputs.labels == ("good", "bad", "fair"), "in the data's spelling"
    assert takes_over(inputs)


def test_an_order_that_a_person_says_stands(tmp_path: Path) -> None:
    here = saved(tmp_path, NAMED)
    assert takes_over(inputs_of(here, **{"data.labels": ["good", "bad", "fair"]}))
    other = inputs_of(here, **{"data.labels": ["fair", "bad", "good"]})
    assert other.labels == ("fair", "bad", "good")
    assert not takes_over(other)
    assert "Leave data.labels out" in other.notices[0]


def test_a_server_of_a_real_fleet_has_the_same_order(tmp_path: Path) -> None:
    inputs = inputs_of(saved(tmp_path, NAMED))
    served = prepare_server(inputs.config)
    assert served.labels == inputs.labels
    settings = served.model_settings
    assert settings.labels == inputs.labels
    for name, value in Base(settings).initial_adapter(0).items():
        assert torch.equal(value, inputs.base.initial_adapter(0)[name])


@pytest.mark.parametrize(
    ("named", "labels", "order"),
    [
        (["a", "b"], ["b", "a"], ("a", "b")),
        (["a", "b"], ["a", "b", "c"], None),
        (["a", "b", "c"], ["a", "b"], None),
        (["A", "a"], ["a", "A"], ("A", "a")),
        (["A", "B"], ["a", "A"], None),
        (["LABEL_0", "LABEL_1"], ["0", "1"], ("0", "1")),
        (["LABEL_0", "LABEL_1"], ["1", "2"], None),
        (["LABEL_1", "LABEL_0"], ["LABEL_0", "LABEL_1"], ("LABEL_1", "LABEL_0")),
        (["1", "0"], ["0", "1"], ("1", "0")),
        ([3, 4], ["3", "4"], None),
    ],
)
def test_which_names_agree(named: list[Any], labels: list[str], order: tuple[str, ...] | None, tmp_path: Path) -> None:
    content = {"model_type": "bert", "id2label": {str(row): name for row, name in enumerate(named)}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert in_the_heads_order(labels, ModelFiles(str(tmp_path))) == order


@pytest.mark.parametrize("named", [{"0": "a", "2": "b"}, ["a", "b"], {}, None, {"x": "a"}])
def test_names_that_name_no_rows(named: object, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "id2label": named}))
    assert known_classes(ModelFiles(str(tmp_path))) == ()


def test_without_names_of_its_own_a_base_takes_the_head_as_it_stands(tiny_model: Callable[[str, str], Path]) -> None:
    folder = tiny_model("bert", "classification")
    head = Base(settings_for(folder, "classification")).initial_adapter(0)["base_model.model.classifier.weight"]
    assert torch.equal(head, load_file(folder / "model.safetensors")["classifier.weight"])


def five(here: Path) -> dict[str, Any]:
    """A run of five classes on a base with a head for three."""
    for name, seed in (("train", 1), ("validation", 2)):
        rows = [{**row, "label": f"c{number % 5}"} for number, row in enumerate(reviews(30, seed))]
        write_jsonl(here / "data" / f"{name}.jsonl", rows)
    return {"train.rounds": 1, "train.local_steps": 1, "train.batch_size": 4}


@pytest.mark.parametrize("family", ["bert", "roberta", "llama"])
def test_a_base_with_a_head_of_another_size(family: str, tmp_path: Path) -> None:
    """Trained, loaded, evaluated and exported, its own way and by plain PEFT as the adapter's README says."""
    here = saved(tmp_path, NAMED, family)
    inputs = inputs_of(here, **five(here))
    assert "its 3 classes are good, bad, fair; the run's 5 are c0, c1, c2, c3, c4." in inputs.notices[0]
    outcome = simulate(inputs, NoProgress())
    model = load_finetuned(outcome.adapter)
    assert model.config.id2label == {number: f"c{number}" for number in range(5)}
    ids_BT = torch.tensor([[5, 6, 7]])
    part = inputs.base.whole()
    part.use(dict(load_file(outcome.adapter / "adapter_model.safetensors")))
    part.model.eval()
    with torch.no_grad():
        mask_BT = torch.ones_like(ids_BT)
        ours = part.model(input_ids=ids_BT, attention_mask=mask_BT).logits
        torch.testing.assert_close(model(input_ids=ids_BT, attention_mask=mask_BT).logits, ours)
    note = (outcome.adapter / "README.md").read_text()
    assert "num_labels=5, ignore_mismatched_sizes=True" in note
    found = run("evaluate", str(outcome.adapter), "--data", str(here / "data"), "--json")
    assert json.loads(found.out)["loss"] == pytest.approx(outcome.metrics["loss"], rel=1e-4)
    run("export", str(here / "run"), "--merged", "--out", str(here / "merged"))
    assert json.loads((here / "merged" / "config.json").read_text())["id2label"]["4"] == "c4"
