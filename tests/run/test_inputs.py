"""Inputs of a run, made from a config. Refusals: cli/test_bad_input.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from cutlayer.config import RunConfig, changes, read_config
from cutlayer.errors import UserError
from cutlayer.run.inputs import ServerInputs, completed, prepare, prepare_server
from cutlayer.run.loop import Logbook
from cutlayer.run.run import situation_of
from cutlayer.testing.tiny import (
    CHAT_TEMPLATE,
    CLASSES,
    chats,
    reviews,
    save_tiny_model,
    save_tiny_tokenizer,
    sums,
    write_jsonl,
)


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
    inputs = prepare(config_for(inputs, "bert", "classification", "data.spread=dirichlet:0.3"))
    situation = situation_of(inputs, Logbook())
    assert list(situation.label_counts) == [device.name for device in inputs.fleet.devices]
    assert inputs.labels == CLASSES
    rows = reviews(60, seed=1)
    for device, part in zip(inputs.fleet.devices, inputs.parts, strict=True):
        by_hand = Counter(rows[row]["label"] for row in part)
        assert situation.label_counts[device.name] == tuple(by_hand[label] for label in CLASSES)
    assert len(set(situation.label_counts.values())) > 1


def test_a_language_model_has_no_classes(inputs: Path) -> None:
    columns = ("data.prompt=question", "data.answer=reply", "data.template=plain")
    inputs = prepare(config_for(inputs, "llama", "causal-lm", *columns))
    assert situation_of(inputs, Logbook()).label_counts == {}


def test_classes_that_the_config_names_are_the_classes_in_that_order(inputs: Path) -> None:
    order = ("good", "none of these", "fair", "bad")
    labels = f"data.labels=[{', '.join(order)}]"
    inputs = prepare(config_for(inputs, "bert", "classification", labels))
    assert inputs.labels == order
    assert inputs.model_settings.num_labels == 4
    rows = reviews(60, seed=1)
    assert inputs.train.classes == [order.index(row["label"]) for row in rows]


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("classification", "[good, good]", r"two different class names, got \['good', 'good'\]"),
        ("classification", "[good]", r"two different class names, got \['good'\]"),
        ("classification", "[good, bad]", "training data, row .* one of the 2 labels 'good', 'bad', got 'fair'"),
        ("causal-lm", "[good, bad]", "data.labels: expected none for causal-lm"),
    ],
)
def test_classes_that_cannot_be(inputs: Path, task: str, labels: str, message: str) -> None:
    columns = () if task == "classification" else ("data.prompt=question", "data.answer=reply", "data.template=plain")
    family = "bert" if task == "classification" else "llama"
    with pytest.raises(UserError, match=message):
        prepare(config_for(inputs, family, task, *columns, f"data.labels={labels}"))


def test_a_split_takes_no_class_away(inputs: Path, tmp_path: Path) -> None:
    """No class goes, whatever the seed, and a wrong row of the one file has its number there."""
    rows = [*reviews(9, seed=1), {"text": "n1", "label": "rare"}]
    file = write_jsonl(tmp_path / "mine.jsonl", rows)
    for seed in range(4):
        asked = config_for(inputs, "bert", "classification", f"data.path={file}", f"train.seed={seed}")
        assert prepare(asked).labels == ("bad", "fair", "good", "rare")
    write_jsonl(file, [*rows, {"text": None, "label": "good"}])
    for seed in range(4):
        with pytest.raises(
            UserError, match=r"training data, row 10 \(from 0\), column 'text': expected text, got null"
        ):
            prepare(config_for(inputs, "bert", "classification", f"data.path={file}", f"train.seed={seed}"))


def test_a_server_reads_no_training_rows(inputs: Path, tmp_path: Path) -> None:
    config = config_for(inputs, "bert", "classification")
    everything = prepare(config)
    rows = write_jsonl(tmp_path / "validation.jsonl", reviews(12, seed=2))
    write_jsonl(tmp_path / "train.jsonl", [{"text": None}])  # it could not even be read
    for path in (tmp_path, rows):  # a folder, a file
        server = prepare_server(config.model_copy(update={"data": config.data.model_copy(update={"path": str(path)})}))
        assert server.labels == CLASSES, "from the validation rows"
        assert server.validation.classes == everything.validation.classes
        assert server.card == everything.card
        assert server.train_settings == everything.train_settings


def test_a_server_needs_rows_to_judge_by(inputs: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", reviews(4, seed=1))
    with pytest.raises(UserError, match="expected validation rows, got none"):
        prepare_server(config_for(inputs, "bert", "classification", f"data.path={tmp_path}"))


def test_a_server_says_which_rows_have_no_classes(inputs: Path, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": "n1", "label": "good"}])
    with pytest.raises(UserError, match="validation data, column 'label': expected at least two classes"):
        prepare_server(config_for(inputs, "bert", "classification", f"data.path={rows}"))
    server = prepare_server(
        config_for(inputs, "bert", "classification", f"data.path={rows}", "data.labels=[bad, good]")
    )
    assert server.validation.classes == [1]


# ------------------------------------------------------------------ chats, and what is found of them


@pytest.fixture(scope="module")
def talking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talking")
    save_tiny_tokenizer(save_tiny_model("llama", "causal-lm", folder / "llama"), CHAT_TEMPLATE)
    write_jsonl(folder / "causal-lm" / "train.jsonl", chats(60, seed=1))
    write_jsonl(folder / "causal-lm" / "validation.jsonl", chats(12, seed=2))
    return folder


def test_a_run_writes_down_what_it_has_found(talking: Path) -> None:
    asked = config_for(talking, "llama", "causal-lm")
    for found in (prepare(asked), prepare_server(asked)):
        assert (found.config.data.messages, found.config.data.template) == ("messages", CHAT_TEMPLATE)
        assert found.card.template == CHAT_TEMPLATE
        again = read_config(None, values=dict(_dotted(found.config.model_dump(mode="json"))))
        assert prepare_server(again).run_id == prepare_server(asked).run_id
        assert list(changes(found.config, completed(asked))) == []
        assert list(changes(found.config, completed(config_for(talking, "llama", "causal-lm", "data.system=n1"))))
    plain = changes(found.config, completed(config_for(talking, "llama", "causal-lm", "data.template=plain")))
    assert [key for key, _, _ in plain] == ["data.template"]


def _dotted(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict) and name != "fleet":
            yield from ((f"{name}.{key}", inner) for key, inner in value.items())
        else:
            yield name, value


def test_the_seed_of_the_data_is_apart(inputs: Path) -> None:
    def parts(*seeds: str) -> list[list[int]]:
        return prepare(config_for(inputs, "bert", "classification", *seeds)).parts

    assert parts("train.seed=3") == parts("data.seed=3") == parts("train.seed=1", "data.seed=3") != parts()


def test_a_revision_is_of_the_hub(inputs: Path) -> None:
    with pytest.raises(UserError, match=r"model\.revision: expected none for .*, got 'main'"):
        prepare(config_for(inputs, "bert", "classification", "model.revision=main"))


# ------------------------------------------------------------------ the rows that judge


def judged(seed: int, wanted: int | None, rows: int = 40) -> list[int]:
    changes = [f"train.seed={seed}", *([] if wanted is None else [f"train.eval_rows={wanted}"])]
    inputs = ServerInputs(read_config(None, changes), range(rows), (), 0)  # type: ignore[arg-type]
    return list(inputs.judged)


def test_a_sample_by_the_seed() -> None:
    sample = judged(0, 9)
    assert all(len(set(judged(seed, 30))) == 30 for seed in range(3)), "no row twice"
    assert sample == sorted(sample) == judged(0, 9)
    assert sample != judged(1, 9)
    assert set(sample) <= set(range(40))


@pytest.mark.parametrize("wanted", [None, 40, 1000])
def test_all_of_them(wanted: int | None) -> None:
    assert judged(0, wanted) == list(range(40))
