"""Runs of a method that is not ours: a file that somebody has written, by every command, in every process."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from commands import Ran, World, run, stopped_after_a_round
from real import served, simulated, values_for

MINE = '''\
"""Mine: what vanilla split learning is.

Evidence: made up.
"""

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.select import everyone
from cutlayer.rounds.relay import relay


def mine(*, cut: int = 1) -> Method:
    """Builds it.

    Args:
      cut: Blocks on every device.
    """
    return Method((everyone(), cut_at(cut)), relay(), mean_per_block())
'''


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def record(file: Path) -> dict[str, Any]:
    return {
        "name": f"{file}:mine",
        "source": {"at": str(file), "sha256": sha256(file.read_bytes()).hexdigest()},
    }


def refused(ran: Ran, *parts: str) -> None:
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.count("\n") == 1
    assert all(part in ran.err for part in parts), ran.err


def test_it_trains_what_the_same_lines_of_ours_train_and_is_recorded(mine: Path, world: World) -> None:
    assert run("train", *world.classification(), "--method", "./mine.py:mine", "--out", "theirs").code == 0
    assert run("train", *world.classification(), "--method", "vanilla", "--out", "ours").code == 0
    assert adapter(Path("theirs")) == adapter(Path("ours"))
    config = yaml.safe_load(Path("theirs/config.yaml").read_text())
    assert config["method"] == {**record(mine), "cut": 1}
    assert json.loads(Path("theirs/summary.json").read_text())["method"] == record(mine)
    ours = yaml.safe_load(Path("ours/config.yaml").read_text())
    assert ours["method"] == {"name": "vanilla", "cut": 1, "labels": "server"}
    assert json.loads(Path("ours/summary.json").read_text())["method"] == {"name": "vanilla"}


def test_the_config_of_a_run_is_a_run_file_anywhere(mine: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("train", *world.classification(), "--method", "./mine.py:mine", "--out", "one").code == 0
    (mine.parent / "elsewhere").mkdir()
    monkeypatch.chdir(mine.parent / "elsewhere")
    assert run("train", "../one/config.yaml", "--out", "two").code == 0
    assert adapter(Path("two")) == adapter(Path("../one"))
    mine.write_text(MINE + "# another text\n")
    refused(run("train", "../one/config.yaml", "--out", "three"), f"{mine} has changed", "start a new run")


def test_a_run_goes_on_with_the_text_with_which_it_began_and_no_other(mine: Path, world: World) -> None:
    flags = [*world.classification(), "--method", "mine.py:mine"]
    assert run("train", *flags, "--out", "whole").code == 0
    assert stopped_after_a_round("train", *flags, "--out", "run").code == 130
    mine.write_text(MINE.replace("cut: int = 1", "cut: int = 2"))
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    digest = record(mine)["source"]["sha256"]
    refused(run("train", "--resume", "run"), f"{mine} has changed", digest[:12], "Put it back, or start a new run.")
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
    mine.unlink()
    refused(run("train", "--resume", "run"), f"{mine}: expected a Python file, got No such file")
    mine.write_text(MINE)
    assert run("train", "--resume", "run").code == 0
    assert adapter(Path("run")) == adapter(Path("whole"))


@pytest.mark.parametrize(
    ("text", "method", "parts"),
    [
        (MINE, "./yours.py:mine", ("yours.py: expected a Python file, got No such file",)),
        (MINE, "./mine.py", ("got './mine.py'", "FILE.py:FUNCTION")),
        (MINE, "./mine.py:yours", ("mine.py:yours: expected a function yours in the file, got mine",)),
        (MINE.replace("*, ", ""), "./mine.py:mine", ("keyword-only", "got the argument cut", "Put a *")),
        ("import no_such_module\n" + MINE, "./mine.py:mine", ("No module named 'no_such_module' (line 1)",)),
        (MINE.replace("def mine", "def mine["), "./mine.py:mine", ("expected Python, got ", "(line 13)")),
        (MINE.replace("return ", ""), "./mine.py:mine", ("expected a Method", "got NoneType")),
        (MINE.replace("cut_at(cut)", "cut_at(wat)"), "./mine.py:mine", ("name 'wat' is not defined (line 19)",)),
        (MINE, "no_such_package.mine:mine", ("no_such_package.mine: expected a module that can be imported",)),
    ],
)
@pytest.mark.parametrize("command", ["train", "plan"])
def test_a_bad_file_is_one_line(
    command: str, text: str, method: str, parts: tuple[str, ...], mine: Path, world: World
) -> None:
    mine.write_text(text)
    refused(run(command, *world.classification(), "--method", method), *parts)
    assert not world.out.exists()


@pytest.mark.slow
def test_it_is_compared_and_a_run_of_another_text_is_not_taken_for_its_own(mine: Path, world: World) -> None:
    words = ["compare", "./mine.py:mine:cut=2", "vanilla:cut=2", *world.classification(), "--out", "compared"]
    ran = run(*words)
    assert (ran.code, ran.err) == (0, "")
    runs = Path("compared/runs")
    assert {path.name for path in runs.iterdir()} == {"mine.py-mine-cut=2-seed0", "vanilla-cut=2-seed0"}
    assert adapter(runs / "mine.py-mine-cut=2-seed0") == adapter(runs / "vanilla-cut=2-seed0")
    [one, _] = json.loads(Path("compared/compare.json").read_text())["methods"]
    assert one["label"] == "./mine.py:mine:cut=2"
    assert run(*words).code == 0, "what is done is kept"
    mine.write_text(MINE + "# another text\n")
    refused(run(*words), f"{mine} has changed")


@pytest.mark.slow
def test_two_files_are_compared(mine: Path, world: World) -> None:
    """By name they are one another's likeness only if their texts are one file."""
    (mine.parent / "more").mkdir()
    (mine.parent / "more" / "mine.py").write_text(MINE)
    ran = run("compare", "./mine.py:mine", "more/mine.py:mine", *world.classification(), "--out", "two")
    assert (ran.code, ran.err) == (0, "")
    twice = run("compare", "./mine.py:mine", "mine.py:mine", *world.classification(), "--out", "twice")
    refused(twice, "expected different methods, got ")


@pytest.mark.slow
def test_up_trains_it_in_processes(mine: Path, world: World) -> None:
    flags = [*world.classification(), "--method", "./mine.py:mine"]
    assert run("train", *flags, "--out", "simulated").code == 0
    ran = run("up", *flags, "--out", "real", "--quiet")
    assert ran.code == 0, ran.err
    assert adapter(Path("real")) == adapter(Path("simulated"))


def test_it_is_served(mine: Path, inputs: Path, tmp_path: Path) -> None:
    """Devices are told the config, and import nothing of the method's."""
    values = values_for(inputs, method__name="./mine.py:mine")
    simulated(values, tmp_path / "simulated")
    served(values, tmp_path / "served")
    assert adapter(tmp_path / "served") == adapter(tmp_path / "simulated")
