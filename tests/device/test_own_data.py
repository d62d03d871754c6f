"""A device that reads its own file trains on the batches that the simulator would have given it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value

from cutlayer.config import RunConfig, read_config
from cutlayer.data.source import Columns
from cutlayer.device.own_data import DataSpec, OwnData, read_own_data
from cutlayer.errors import DataError
from cutlayer.model.source import ModelFiles
from cutlayer.run.inputs import (
    RunInputs,
    prepare,
    prepare_server,
    write_shares,
)
from cutlayer.settings import load_tokenizer
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
from cutlayer.types import Batch

PAIRS = ("data.text=text", "data.text_pair=site")
SPEC = DataSpec("classification", Columns(text="text", label="label"), CLASSES, 32, pad_id=0, batch_size=4, seed=3)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for family, task, made in (("bert", "classification", reviews), ("llama", "causal-lm", sums)):
        save_tiny_model(family, task, folder / family)
        save_tiny_tokenizer(folder / family)
        rows = made(90, seed=1)
        rows[7] |= {"text": "n1 " * 50, "question": "n1 " * 50}  # cut off, or dropped
        write_jsonl(folder / task / "train.jsonl", rows)
    save_tiny_tokenizer(save_tiny_model("llama", "causal-lm", folder / "talker"), CHAT_TEMPLATE)
    write_jsonl(folder / "chats" / "train.jsonl", chats(90, seed=1))
    return folder


def config_for(inputs: Path, family: str, task: str, *more: str) -> RunConfig:
    overrides = (f"model.name={inputs / family}", f"data.path={inputs / task}", f"data.task={task}")
    overrides = tuple(override for override in overrides if override != "data.task=chats")
    return read_config(None, (*overrides, "data.max_length=32", "train.seed=5", "train.batch_size=4", *more))


def assert_same(one: Batch, other: Batch) -> None:
    for field in fields(Batch):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == its.dtype
            assert torch.equal(mine, its), field.name
        elif field.name != "indices":  # which name a device's own rows
            assert mine == its, field.name


RUNS = [
    ("bert", "classification"),
    ("bert", "classification", "data.spread=dirichlet:0.2"),
    ("bert", "classification", "data.spread=column:site", "data.sizes=weighted", *PAIRS),
    ("llama", "causal-lm", "data.prompt=question", "data.answer=reply", "data.template=plain"),
    ("llama", "causal-lm", "data.text=question"),
    ("talker", "chats", "data.task=causal-lm"),
    ("talker", "chats", "data.task=causal-lm", "data.max_length=8", "data.system=n1"),
]


def four_devices() -> str:
    row = {"tflops": 1, "memory_gib": 1, "up_mbit": 1, "down_mbit": 1, "latency_ms": 1, "efficiency": 0.3}
    names = ("pi-0", "pi-1", "train", "validation")  # any name goes
    devices = [row | {"name": name, "data_weight": 1 + i} for i, name in enumerate(names)]
    return json.dumps({"server": {"tflops": 1, "memory_gib": 1, "efficiency": 0.3}, "devices": devices})


@pytest.mark.parametrize("run", RUNS, ids=lambda run: "-".join(run[1:3]))
def test_devices_with_their_own_files_and_a_server_without_are_the_simulated_run(
    run: tuple[str, ...], inputs: Path, tmp_path: Path
) -> None:

    simulated = prepare(config_for(inputs, *run, f"fleet={four_devices()}"))
    files, config = write_shares(simulated, tmp_path)
    server = prepare_server(config)
    assert not isinstance(server, RunInputs)
    assert server.labels == simulated.labels
    assert server.model_settings == simulated.model_settings
    for mine, its in zip(server.validation_batches(), simulated.validation_batches(), strict=True):
        assert_same(mine, its)

    tokenizer = load_tokenizer(ModelFiles(config.model.name))
    tokenizer.chat_template = None  # what the run says is enough
    assert list(files) == [device.name for device in simulated.fleet.devices]
    for index, (name, file) in enumerate(files.items()):
        own = read_own_data(str(file), server.data_spec(index), tokenizer)
        assert own.label_counts == simulated.label_counts.get(name, ())
        mine, its = own.batches(), simulated.batches(index)
        for _ in range(3 * len(own.samples)):  # several epochs
            one, other = mine.next(), its.next()
            assert_same(one, other)
            assert [simulated.parts[index][row] for row in one.indices] == list(other.indices)
            assert mine.state() == its.state()


def read(inputs: Path, path: Path, spec: DataSpec = SPEC) -> OwnData:
    return read_own_data(str(path), spec, load_tokenizer(ModelFiles(str(inputs / "bert"))))


def test_classes_are_the_runs_not_those_that_a_device_happens_to_have(inputs: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "my.jsonl", [{"text": "n1", "label": "good"}, {"text": "n2", "label": "good"}])
    own = read(inputs, path)
    assert own.label_counts == (0, 0, 2)
    assert own.batches().next().labels.tolist() == [2, 2]
    turned = read(inputs, path, replace(SPEC, labels=tuple(reversed(CLASSES))))
    assert turned.label_counts == (2, 0, 0)


def test_a_label_that_the_run_does_not_know(inputs: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "my.jsonl", [{"text": "n1", "label": "good"}, {"text": "n2", "label": "great"}])
    with pytest.raises(
        DataError, match=r"my\.jsonl, row 1 \(from 0\), column 'label': .*'bad', 'fair', 'good', got 'gr"
    ):
        read(inputs, path)


def test_a_column_that_the_run_wants(inputs: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "my.jsonl", [{"txt": "n1", "label": "good"}])
    with pytest.raises(DataError, match=r"my\.jsonl: expected a column 'text', .* Did you mean 'txt'"):
        read(inputs, path)


def test_of_a_folder_the_rows_to_train_on(inputs: Path, tmp_path: Path) -> None:
    for name, label in (("train", "good"), ("validation", "bad")):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": "n1", "label": label}])
    assert read(inputs, tmp_path).label_counts == (0, 0, 1)


def test_numbers_of_other_classes_are_not_taken_for_the_runs(inputs: Path, tmp_path: Path) -> None:
    for names, good in ((["spam", "ham"], False), (["good", "bad"], True)):
        features = Features(text=Value("string"), label=ClassLabel(names=names))
        rows = Dataset.from_dict({"text": ["n1", "n2", "n3"], "label": [0, 1, 1]}, features=features)
        rows.to_parquet(tmp_path / "my.parquet")
        if good:
            assert read(inputs, tmp_path / "my.parquet").label_counts == (2, 0, 1)
        else:
            with pytest.raises(DataError, match=r"row 0 .* expected one of the 3 labels 'bad', 'fair', 'good', got 0"):
                read(inputs, tmp_path / "my.parquet")
