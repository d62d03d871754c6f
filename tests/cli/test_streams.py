"""Results are on standard output, progress on standard error; what lists something says it as JSON too."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import commands
from commands import Ran, World
from cutlayer.cli.resumed import tell
from cutlayer.methods.table import TABLE
from cutlayer.run.ending import Outcome

PROGRESS = ("starting", "round ", "training data", "reading", "counting", "listening", "evaluating on", "exporting")


def run(*words: object) -> Ran:
    """With progress where a user has it."""
    return commands.run(*words, apart=False)


@pytest.fixture(autouse=True)
def plain() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        for name in ("CUTLAYER_LOG_LEVEL", "CUTLAYER_LOG_FORMAT"):
            os.environ.pop(name, None)
        yield


def test_a_run_says_its_results_apart_from_its_progress(world: World) -> None:
    ran = run("train", *world.classification())
    assert ran.code == 0
    lines = ran.out.splitlines()
    assert not [line for line in lines if line.startswith(PROGRESS)]
    assert any(line.startswith("accuracy ") for line in lines)
    assert lines[-2:] == [f"adapter: {world.out / 'adapter'}", f"run folder: {world.out}"]
    assert "round 2/2" in ran.err
    assert "training data" in ran.err
    told = run("evaluate", world.out / "adapter", "--data", world.reviews)
    assert told.out.split()[:2] == ["metric", "value"]
    assert not [line for line in told.out.splitlines() if line.startswith(PROGRESS)]


def test_quiet_prints_the_adapter_and_nothing_else(world: World) -> None:
    ran = run("train", *world.classification(), "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, f"{world.out / 'adapter'}\n", "")


def test_as_json_standard_error_is_lines_of_it(world: World) -> None:
    ran = run("train", *world.classification(), "--log-format", "json")
    rows = [json.loads(line) for line in ran.err.splitlines()]
    assert ran.code == 0
    assert any(row["message"].startswith("round 2/2") for row in rows)
    assert {row["logger"] for row in rows} == {"cutlayer.progress"}
    failed = run("train", *world.classification(), "--log-format", "json")
    assert failed.code == 2
    assert json.loads(failed.err.splitlines()[-1])["logger"] == "cutlayer.error"


def listed(*words: object) -> Any:
    ran = run(*words, "--json")
    assert ran.code == 0, ran.err
    assert not [line for line in ran.out.splitlines() if line.startswith(PROGRESS)]
    return json.loads(ran.out)


def test_methods() -> None:
    rows = listed("methods")
    assert {row["method"] for row in rows} >= set(TABLE)
    assert all(row["summary"] and row["evidence"] for row in rows)
    one = listed("methods", "memsfl")
    assert one == next(row for row in rows if row["method"] == "memsfl")
    assert all(option["help"] for option in one["options"].values())


def test_families() -> None:
    rows = listed("families")
    assert {"bert", "llama"} <= {row["family"] for row in rows}
    assert all(row["pooling"] and row["lora_targets"] for row in rows)


def test_fleets() -> None:
    rows = listed("fleets")
    assert rows
    assert all(row["name"] and row["devices"] and row["server"] for row in rows)


def test_devices_of_a_fleet(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    run("fleet", "init", folder, "--host", "localhost")
    for name in ("pi-1", "pi-2"):
        run("fleet", "add", name, "--fleet", folder)
    run("fleet", "revoke", "pi-2", "--fleet", folder)
    one, other = listed("fleet", "list", "--fleet", folder)
    assert (one["device"], one["kind"], one["revoked"]) == ("pi-1", "token", None)
    assert other["revoked"] is not None


def test_a_plan(world: World) -> None:
    told, shown = listed("plan", *world.classification()), run("plan", *world.classification()).out
    rows = {words[0]: words[1] for line in shown.splitlines() if len(words := line.split()) > 1}
    assert told["devices"]
    assert all(rows[row["device"]] == str(row["cut"]) for row in told["devices"])
    assert told["run"] == {
        "rounds": 2,
        **{key: 2 * told["round"][key] for key in ("seconds", "bytes_up", "bytes_down")},
    }
    assert all(row["memory_bytes"] > 0 for row in told["devices"])
    assert told["server"]["memory_bytes"] > 0


# ------------------------------------------------------------------ exit codes


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("lost", [{}, {"pi-2": "away", "pi-3": "not-finite"}], ids=["none", "some"])
def test_a_run_that_lost_devices_says_so_and_ends_with_3(
    lost: dict[str, str],
    quiet: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cutlayer.report.devices.device_table", lambda *_: "")
    monkeypatch.setattr("cutlayer.cli.resumed.remarks", lambda _: [])
    totals = {"saved_bytes": 0, "rounds": 2}
    summary = {"totals": totals, "exported_round": 1, "blocks": 2, **({"lost": lost} if lost else {})}
    outcome = Outcome(tmp_path, tmp_path / "adapter", {"loss": 2.0}, {"loss": 1.0}, [], summary)
    try:
        tell(outcome, quiet=quiet)
        code = 0
    except BaseException as error:
        code = getattr(error, "exit_code", -1)
    out, err = capsys.readouterr()
    assert code == (3 if lost else 0)
    assert str(tmp_path / "adapter") in out
    assert err == ("lost: pi-2 (away), pi-3 (not-finite)\n" if lost else "")
