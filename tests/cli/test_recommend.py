"""`recommend` prints every method that fits, whole, and why the others do not; and refuses what cannot be."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from unittest import mock

import pytest
import yaml

from commands import FLEET, World, run
from cutlayer.cli import terminal
from cutlayer.cli.recommend import NUMBERS, WORDS, command_of, fits_table
from cutlayer.config import read_config
from cutlayer.run.inputs import RunInputs, gathered
from cutlayer.run.recommended import Choice, Fits, choices, judged

TRIED = ("memsfl", "fedlora", "fedspine", "sl")


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """That every method is tried is in `run/test_recommended.py`."""

    def some(inputs: RunInputs) -> list[Choice]:
        return [choice for choice in choices(inputs) if choice.name in TRIED]

    monkeypatch.setattr("cutlayer.run.recommended.choices", some)


def flags_of(world: World) -> list[object]:
    """Flags of a run whose model is that of all tests: what it costs is counted once."""
    return [*world.classification(), "--model", world.classifier.resolve()]


def test_the_table_is_sorted_by_the_time_of_a_round_and_says_what_to_type(world: World) -> None:
    ran, told = (run("recommend", *flags_of(world), *more) for more in ((), ("--json",)))
    assert (ran.code, ran.err, told.code, told.err) == (0, "", 0, "")
    assert not world.out.exists()
    figures = json.loads(told.out)
    seconds = [one["seconds"] for one in figures["fits"]]
    assert seconds == sorted(seconds)
    labels = [one["label"] for one in figures["fits"]]
    assert {"memsfl", "fedlora", "sl", "memsfl:cut=latency"} <= set(labels)
    rows = [words for line in ran.out.splitlines() if (words := line.split()) and words[0] in labels]
    assert [words[0] for words in rows] == labels
    own_rows = {words[0] for words in rows if words[1] == "*"}
    assert own_rows == {label for label in labels if label.partition(":")[0] == "memsfl"}, "the run's own"
    [own] = [one for one in figures["fits"] if one["label"] == "memsfl"]
    assert (own["own"], own["devices"]["slow"]["cut"]) == (True, 1)
    assert (own["labels_leave"], own["text_leaves"], own["devices_run_backward"]) == (True, None, True)
    assert own["devices"]["slow"]["of_bytes"] == 2**30
    refused = {one["label"]: one["why"] for one in figures["does_not_fit"]}
    assert "Set lora.targets=[all-linear]" in refused["fedspine"]
    assert all(f"  {label}: {why}" in ran.out.splitlines() for label, why in refused.items())


def test_what_is_advised_lets_no_text_leave_a_device(world: World) -> None:
    flags = [*world.causal_lm(), "--model", world.writer.resolve()]
    ran, told = (run("recommend", *flags, *more) for more in ((), ("--json",)))
    figures = json.loads(told.out)["fits"]
    private = next(one["label"] for one in figures if one["text_leaves"] is None)
    assert figures[0]["text_leaves"] == "as labels"
    assert private == "memsfl:cut=latency,labels=device"
    said = "The shortest round in which no text leaves a device: -o method.cut=latency -o method.labels=device."
    assert said in ran.out


@pytest.mark.parametrize(
    ("choice", "typed"),
    [
        (Choice("memsfl", {"order": "fifo"}, {}, own=True), "the run as it is"),
        (Choice("memsfl", {"order": "fifo", "cut": "latency"}, {"cut": "latency"}, own=True), "-o method.cut=latency"),
        (Choice("fedlora", {}, {}, own=False), "--method fedlora"),
        (
            Choice("sfl_v1", {"cut": "latency"}, {"cut": "latency"}, own=False),
            "--method sfl_v1 -o method.cut=latency",
        ),
    ],
)
def test_a_choice_says_what_to_type(choice: Choice, typed: str) -> None:
    assert command_of(choice) == typed


def values_of(world: World) -> dict[str, str]:
    model, data = world.classifier.resolve(), world.reviews
    return {"model.name": str(model), "data.path": str(data), "data.max_length": "16", "fleet": str(world.fleet)}


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_in_a_terminal_of_any_width_nothing_is_cut_off(columns: int, world: World) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    inputs = gathered(read_config(None, values=values_of(world)).self_contained())
    one = judged(Choice("memsfl", {"cut": "latency"}, {"cut": "latency"}, own=True), inputs, 8)
    assert isinstance(one, Fits)
    shown, out = fits_table([one]), Terminal()
    with mock.patch.dict("os.environ", {"COLUMNS": str(columns)}), contextlib.redirect_stdout(out):
        terminal.console().print(shown)
    told = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    assert "…" not in told
    assert max(len(line.rstrip()) for line in told.splitlines()) <= columns
    assert "memsfl:cut=latency *" in told
    assert all(heading in told for heading in (*NUMBERS, *WORDS))


def test_where_nothing_fits_each_says_why_and_the_command_fails(world: World, tmp_path: Path) -> None:
    tiny = FLEET | {"defaults": FLEET["defaults"] | {"memory_gib": 1e-6}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    ran = run("recommend", *flags_of(world), "--fleet", tmp_path / "tiny.yaml")
    assert ran.code == 2
    assert ran.err.startswith("error: recommend: expected a method that fits fleet ")
    assert ran.err.count("\n") == 1
    assert all(f"  {name}" in ran.out for name in TRIED)
    assert "Not even the embeddings would fit" in ran.out
    told = run("recommend", *flags_of(world), "--fleet", tmp_path / "tiny.yaml", "--json")
    assert (told.code, json.loads(told.out)["fits"]) == (2, [])


WRONG: dict[str, tuple[list[object], str]] = {
    "no such run file": (["none.yaml"], "none.yaml: expected a run file"),
    "no such method": (["--method", "memsf"], "Did you mean 'memsfl'?"),
    "no such option": (["-o", "method.ordre=fifo"], "an option of memsfl"),
    "no such fleet": (["--fleet", "none"], "fleet: expected one of"),
    "no such data": (["--data", "nowhere/at.jsonl"], "nowhere/at.jsonl"),
    "no such model": (["--model", "./no-model"], "no-model"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_is_refused_in_one_line(wrong: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.folder)
    flags, says = WRONG[wrong]
    ran = run("recommend", *world.classification(), *flags)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err
    assert ran.err.count("\n") == 1
    assert "Traceback" not in ran.err


def test_the_help_says_what_it_does() -> None:
    ran = run("recommend", "--help")
    assert ran.code == 0
    assert "--json" in ran.out
