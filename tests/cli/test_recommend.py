"""`recommend` prints every method that fits, whole, and why the others do not; and refuses what cannot be."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from unittest import mock

import pytest
import yaml

from commands import FLEET, Ran, World, run
from cutlayer.cli import terminal
from cutlayer.methods.table import TABLE


@pytest.fixture(scope="module")
def asked(made_once: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, Ran]:
    world = made_once.linked(tmp_path_factory.mktemp("recommend"))
    return world, run("recommend", *world.classification())


def test_every_method_has_a_line(asked: tuple[World, Ran]) -> None:
    world, ran = asked
    assert (ran.code, ran.err) == (0, "")
    said = {line.split()[0].rstrip(":") for line in ran.out.splitlines() if line.strip()}
    assert set(TABLE) <= said
    assert not world.out.exists()


def test_the_table_is_sorted_by_the_time_of_a_round_and_says_what_to_type(asked: tuple[World, Ran]) -> None:
    world, ran = asked
    told = run("recommend", *world.classification(), "--json")
    figures = json.loads(told.out)
    seconds = [one["seconds"] for one in figures["fits"]]
    assert seconds == sorted(seconds)
    labels = [one["label"] for one in figures["fits"]]
    rows = [line for line in ran.out.splitlines() if line.split(" ")[0] in labels]
    assert [line.split(" ")[0] for line in rows] == labels
    assert [line for line in rows if line.split()[1] == "*"], "the run's own method is marked"
    first = figures["fits"][0]
    assert f"the shortest round: --method {first['method']}" in ran.out or first["own"]
    [own] = [one for one in figures["fits"] if one["own"] and ":" not in one["label"]]
    assert own["method"] == "memsfl"
    assert own["devices"]["slow"]["cut"] == 1
    assert (own["labels_leave"], own["text_leaves"], own["devices_run_backward"]) == (True, None, True)
    assert own["devices"]["slow"]["of_bytes"] == 2**30
    assert {one["label"] for one in figures["does_not_fit"]} == {"fedspine"}
    assert "Set lora.targets=[all-linear]" in figures["does_not_fit"][0]["why"]
    assert "  fedspine: lora.targets: " in ran.out


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_in_a_terminal_of_any_width_nothing_is_cut_off(columns: int, asked: tuple[World, Ran]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    from cutlayer.cli.recommend import fits_table
    from cutlayer.config import read_config
    from cutlayer.run.inputs import gathered
    from cutlayer.run.recommended import Choice, Fits, judged

    world, _ = asked
    values = {"model.name": str(world.classifier), "data.path": str(world.reviews), "data.max_length": 16}
    inputs = gathered(read_config(None, values=values | {"fleet": str(world.fleet)}).self_contained())
    one = judged(Choice("memsfl", {"cut": "latency"}, {"cut": "latency"}, own=True), inputs, 8)
    assert isinstance(one, Fits)
    shown, out = fits_table([one]), Terminal()
    with mock.patch.dict("os.environ", {"COLUMNS": str(columns)}), contextlib.redirect_stdout(out):
        terminal.console(at_least=terminal.width_of(shown)).print(shown)
    heading, _, row = (line for line in out.getvalue().splitlines() if line.strip())
    assert "…" not in out.getvalue()
    assert heading.split() == [
        "method",
        "round",
        "up",
        "down",
        "samples",
        "busy",
        "idle",
        "server",
        "memory",
        "cut",
        "leaves",
        "backward",
        "waits",
    ]
    assert row.startswith("memsfl:cut=latency * ")
    assert row.rstrip().endswith("round")


def test_no_weight_is_read(world: World) -> None:
    copy = shutil.copytree(world.classifier, world.folder / "without-weights")
    (copy / "model.safetensors").unlink()
    assert run("recommend", *world.classification(), "--model", copy, "--json").code == 0


def test_where_nothing_fits_each_says_why_and_the_command_fails(world: World, tmp_path: Path) -> None:
    tiny = FLEET | {"defaults": FLEET["defaults"] | {"memory_gib": 1e-6}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny))
    ran = run("recommend", *world.classification(), "--fleet", tmp_path / "tiny.yaml")
    assert ran.code == 2
    assert ran.err.startswith("error: recommend: expected a method that fits fleet tiny")
    assert ran.err.count("\n") == 1
    assert all(f"  {name}" in ran.out for name in TABLE)
    assert "Not even the embeddings would fit" in ran.out
    told = run("recommend", *world.classification(), "--fleet", tmp_path / "tiny.yaml", "--json")
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
