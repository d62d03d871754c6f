"""A run by a function is the run of the command."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from commands import World, run
from cutlayer import Outcome, simulate


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "adapter").iterdir()) if path.is_file()}


def simulated(trained: World, out: Path, **options: Any) -> Outcome:
    return simulate(trained.out / "config.yaml", out=out, **options)


def test_it_is_what_the_command_does(trained: World, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    outcome = simulated(trained, tmp_path / "run", on_round=rows.append)
    assert files(tmp_path / "run") == files(trained.out)
    assert [row["round"] for row in rows] == [0, 1]
    assert [row["loss"] for row in rows] == [row["loss"] for row in outcome.rows]


def test_in_a_cell_too(trained: World, tmp_path: Path) -> None:
    async def cell() -> None:
        simulated(trained, tmp_path / "run")

    asyncio.run(cell())
    assert files(tmp_path / "run") == files(trained.out)


def test_an_error_of_the_callers_ends_it_and_it_goes_on_from_there(trained: World, tmp_path: Path) -> None:
    def after_one(row: dict[str, Any]) -> None:
        raise RuntimeError(f"enough after {row['round']}")

    with pytest.raises(RuntimeError, match="enough after 0"):
        simulated(trained, tmp_path / "run", on_round=after_one)
    rows: list[dict[str, Any]] = []
    simulated(trained, tmp_path / "run", on_round=rows.append, resume=True)
    assert [row["round"] for row in rows] == [1]
    assert files(tmp_path / "run") == files(trained.out)


def test_the_folder_of_a_run_is_not_written_over(trained: World) -> None:
    before = files(trained.out)
    with pytest.raises(Exception, match="expected") as caught:
        simulate(trained.out)
    assert caught.type.__module__ == "cutlayer.errors"
    assert files(trained.out) == before


def test_a_command_goes_on_with_it(trained: World, tmp_path: Path) -> None:
    def after_one(_row: dict[str, Any]) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        simulated(trained, tmp_path / "run", on_round=after_one)
    ran = run("train", "--resume", tmp_path / "run")
    assert (ran.code, ran.err) == (0, "")
    assert files(tmp_path / "run") == files(trained.out)


def test_a_page_beside_it_is_kept_with_the_run(trained: World, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    said: list[str] = []

    def after_one(_row: dict[str, Any]) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        simulated(trained, tmp_path / "run", page="127.0.0.1:0", on_page=said.append, on_round=after_one)
    simulated(trained, tmp_path / "run", resume=True, on_page=said.append)
    assert [line.rpartition(":")[0] for line in said] == ["page: http://127.0.0.1"] * 2
    assert files(tmp_path / "run") == files(trained.out)
