"""`serve` and `join` from Python: a server, and a device in a process of its own, which joins by Python too."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cutlayer import serve
from cutlayer.api.serve import Listening
from cutlayer.errors import CheckpointError, ConfigError
from cutlayer.report.run_folder import RunFolder
from cutlayer.testing.tiny import save_inputs

DEVICE = """
import json, sys
from cutlayer import join
said = []
join(sys.argv[1], **json.loads(sys.argv[2]), on_notice=said.append)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("served"), rows=24)


def sections(here: Path) -> dict[str, Any]:
    return {
        "model": here / "model",
        "data": {"path": here / "data", "max_length": 16},
        "train": {"rounds": 2, "local_steps": 1, "batch_size": 4},
    }


class Device:
    """A process that joins by Python as soon as it is told a port."""

    def __init__(self, here: Path, folder: Path) -> None:
        self._given = {"data": str(here / "data"), "name": "pi-1", "folder": str(folder)}
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, port: int) -> None:
        words = [sys.executable, "-c", DEVICE, f"127.0.0.1:{port}", json.dumps(self._given)]
        self.processes.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))

    def end(self) -> list[str]:
        [process] = self.processes
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        said: list[str] = json.loads(out)
        return said


@pytest.mark.parametrize("in_a_cell", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_run_from_both_sides(in_a_cell: bool, here: Path, tmp_path: Path) -> None:
    device, rows = Device(here, tmp_path / "pi-1"), list[dict[str, Any]]()

    def run() -> Any:
        return serve(**sections(here), out=tmp_path / "run", port=0, on_listening=device.start, on_round=rows.append)

    async def cell() -> Any:
        return run()

    outcome = asyncio.run(cell()) if in_a_cell else run()
    said = device.end()
    assert any("round 2/2" in line for line in said), said
    assert [list(row["devices"]) for row in rows] == [["pi-1"], ["pi-1"]]
    assert outcome.adapter.is_dir()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"host": "0.0.0.0"}, "serve: expected TLS and devices that prove who they are"),
        ({"roster": "no-such-folder"}, "no-such-folder"),
        ({"method": "memslf"}, "Did you mean 'memsfl'"),
        ({"trian": {"rounds": 2}}, "Did you mean 'train'"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    given: dict[str, Any], said: str, here: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        serve(**sections(here) | given, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_goes_on_is_served_as_it_was(tmp_path: Path) -> None:
    """But for what is said anew: the command that is printed needs no flag."""
    first = Listening(host="::1", port=7000, roster=tmp_path / "fleet", workers=2, min_devices=6)
    assert Listening.of({"host": None, "port": None}, None) == Listening()
    assert Listening.of({"host": "::1", "port": 7000, "roster": tmp_path / "fleet"}, None).roster == tmp_path / "fleet"
    folder = RunFolder.create(tmp_path / "run")
    folder.write_started(first.started())
    folder.write_config("")
    assert Listening.of({"host": None, "min_devices": None}, folder.path) == first
    assert Listening.of({"min_devices": 2, "port": 0}, folder.path) == replace(first, min_devices=2, port=0)
    folder.write_started(first.started() | {"colour": "red"})
    with pytest.raises(CheckpointError, match=r"expected in started\.json what `cutlayer serve` was told, got colour"):
        Listening.of({}, folder.path)
