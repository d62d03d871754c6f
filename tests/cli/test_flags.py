"""Each flag is one key of the run file, and says what that key may be."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
import typer
from pydantic import BaseModel

from commands import run
from cutlayer.cli.flags import FLAGS, Flag, Given, takes_flags
from cutlayer.config import RunConfig


def annotation_of(key: str) -> Any:
    """The type of a key of the run file; extra keys of a section have none."""
    found: Any = RunConfig
    for name in key.split("."):
        assert issubclass(found, BaseModel)
        found = found.model_fields[name].annotation
    return found


@pytest.mark.parametrize("flag", FLAGS, ids=lambda flag: flag.name)
def test_a_flag_is_a_key_and_says_what_it_takes(flag: Flag) -> None:
    kind = annotation_of(flag.key)
    kind = next((part for part in get_args(kind) if get_origin(part) is Literal), kind)  # of one that may be left out
    if get_origin(kind) is Literal:
        assert flag.metavar == "|".join(get_args(kind))
    else:
        kinds = {part for part in get_args(kind) or (kind,) if part is not NoneType}
        expected: type = {"": bool, "N": int, "X": float}.get(flag.metavar, str)
        assert expected in kinds


def test_a_switch_can_be_switched_off_again(tmp_path: Path) -> None:
    got: list[Given] = []
    app = typer.Typer()
    app.command()(takes_flags(lambda given: got.append(given)))
    run_file = tmp_path / "run.yaml"
    run_file.write_text("model: {base_dropout: true, checkpoint_device: true}")
    app([str(run_file), "--no-base-dropout", "--checkpoint-server", "-o", "lora.rank=3"], standalone_mode=False)
    (given,) = got
    config = given.config()
    model = config.model
    assert (model.base_dropout, model.checkpoint_device, model.checkpoint_server) == (False, True, True)
    assert config.lora.rank == 3
    assert given.spelled() == [str(run_file), "--base-dropout", "--checkpoint-server", "-o lora.rank=3"]


def test_no_flag_and_no_key_is_there_twice() -> None:
    assert len({flag.name for flag in FLAGS}) == len({flag.key for flag in FLAGS}) == len(FLAGS)


def test_every_key_of_the_data_has_a_flag() -> None:
    from cutlayer.config import DataSection

    assert {f"data.{name}" for name in DataSection.model_fields} <= {flag.key for flag in FLAGS}


@pytest.mark.parametrize("command", ["train", "plan"])
def test_help_lists_every_flag(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = run(command, "--help").out
    assert all(flag.name in shown and flag.help.split("`")[0] in shown for flag in FLAGS)


def test_a_flag_that_there_is_not_is_a_usage_error() -> None:
    ran = run("train", "--ranks", 3)
    assert (ran.code, ran.out) == (2, "")
    assert "--ranks" in ran.err
