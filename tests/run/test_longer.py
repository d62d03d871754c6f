"""More rounds for a run that is there: the same adapter as one that had them from the beginning, or said otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Ran, World, run
from cutlayer.config import read_config
from cutlayer.run.longer import free_folder, keeps_its_rates

CONSTANT = ["--schedule", "constant", "--warmup", 0]


def trained(world: World, name: str, *flags: object) -> Path:
    ran = run("train", *world.classification(), *flags, "--out", world.folder / name)
    assert ran.code == 0, ran.err
    return world.folder / name


def longer(folder: Path, rounds: object) -> Ran:
    return run("train", "--resume", folder, "--rounds", rounds, "--quiet")


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def test_more_rounds_are_those_of_a_run_that_had_them_from_the_beginning(world: World) -> None:
    short, long = trained(world, "short", *CONSTANT), trained(world, "long", *CONSTANT, "--rounds", 4)
    assert adapter(short) != adapter(long)
    ran = longer(short, 4)
    assert ran.code == 0, ran.err
    assert "2 rounds more, 4 in all: the learning rate is the same" in ran.err
    assert adapter(short) == adapter(long)
    assert read_config(short / "config.yaml").train.rounds == 4
    again = longer(short, 4)
    assert (again.code, again.err) == (0, ""), "as many as it has is nothing new"


def test_a_schedule_that_falls_is_said_to_jump(world: World) -> None:
    ran = longer(trained(world, "run"), 3)
    assert ran.code == 0, ran.err
    assert "1 round more, 3 in all: from round 3 on the learning rate is that of a linear schedule" in ran.err
    assert not keeps_its_rates(read_config(world.folder / "run" / "config.yaml"))


def test_fewer_rounds_and_anything_else_beside_it_are_refused(world: World) -> None:
    folder = trained(world, "run", *CONSTANT)
    assert "A run can be made longer and not shorter" in longer(folder, 1).err
    assert "expected nothing that describes a run" in run("train", "--resume", folder, "--rounds", 3, "--lr", 1).err
    assert "train.rounds" in longer(folder, "many").err
    assert read_config(folder / "config.yaml").train.rounds == 2


def test_the_next_free_folder(tmp_path: Path) -> None:
    assert free_folder(tmp_path / "run") == tmp_path / "run"
    for name in ("run", "run-2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").touch()
    assert free_folder(tmp_path / "run") == tmp_path / "run-3"


def test_bare_train_twice_makes_two_folders(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    flags = world.classification()[: -len(["--out", "X"])]
    said = [run("train", *flags, "--rounds", 1, "--quiet").out.strip() for _ in range(2)]
    assert said == ["runs/latest/adapter", "runs/latest-2/adapter"]
