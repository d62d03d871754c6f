"""`status` says how far a run is and who is here, whether it goes on or not."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

from commands import World, run, stopped_after_a_round
from cutlayer.files import locked
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.report.here import write_here


def test_a_run_that_has_ended(trained: World) -> None:
    ran = run("status", trained.out)
    assert ran.code == 0, ran.err
    first, what, loss, metrics = ran.out.splitlines()
    assert first == f"{trained.out}: ended, 2 of 2 rounds done"
    assert what.startswith("memsfl, ")
    assert loss.startswith("loss ")
    assert metrics.startswith("after round 2: ")


def test_a_run_that_was_stopped_says_how_to_go_on(world: World) -> None:
    stopped_after_a_round("train", *world.classification())
    said = run("status", world.out).out.splitlines()
    assert said[0] == f"{world.out}: stopped, 1 of 2 rounds done"
    assert said[-1] == f"go on with: cutlayer train --resume {world.out}"


def test_a_fleet_at_work(world: World) -> None:
    stopped_after_a_round("train", *world.classification())
    devices = [DeviceNow("pi-1", "training", True, 2, 3, 10, 1.5, 2**20, 2**10, 0.5, 6), DeviceNow("pi-2", "away")]
    write_here([world.out], world.out, devices, rounds_done=1, rounds=2)
    assert json.loads(run("status", world.out, "--json").out)["devices"] == [], "nobody is at work there"
    with closing(locked(world.out)):
        found = json.loads(run("status", world.out, "--json").out)
        shown = run("status", world.out).out
    assert (found["state"], found["rounds_done"], found["rounds"]) == ("running", 1, 2)
    assert [device["name"] for device in found["devices"]] == ["pi-1", "pi-2"]
    assert any(line.split()[:5] == ["pi-1", "training", "2", "of", "6"] for line in shown.splitlines())


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    ran = run("status", tmp_path)
    assert (ran.code, "expected a run folder" in ran.err) == (2, True)
