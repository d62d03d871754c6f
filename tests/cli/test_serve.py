"""`cutlayer serve` with wrong input: one line, exit code 2, nothing written; and the code of a run that lost somebody.

Whole runs: run/test_served.py.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from commands import Ran, World, run
from cutlayer.api import serve as serving
from cutlayer.config import read_config
from cutlayer.device.limits import EVERYTHING, Limits
from cutlayer.gate.door import GrpcDoor
from cutlayer.joining import Joining
from cutlayer.run.inputs import prepare, write_shares
from real import device, one_thread, values_for, within

LENT = {"slow": Limits.read(rounds=1)}


def wrong(ran: Ran, *words: str) -> None:
    assert ran.code == 2
    assert len(ran.err.splitlines()) == 1
    assert all(word in ran.err for word in words), ran.err


def test_it_is_not_open_to_others_by_accident(world: World) -> None:
    wrong(run("serve", *world.classification(), "--host", "0.0.0.0"), "without TLS", "cutlayer fleet init")
    assert not world.out.exists()


def test_a_fleet_without_devices_is_said_so(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    assert run("fleet", "init", folder, "--host", "localhost").code == 0
    wrong(run("serve", *world.classification(), "--roster", folder), "cutlayer fleet add")
    wrong(run("serve", *world.classification(), "--roster", tmp_path / "none"), "none")
    assert not world.out.exists()


@pytest.mark.parametrize("span", ["4", "3:1", "a:b", ""])
def test_blocks_are_first_and_end(span: str, world: World) -> None:
    wrong(run("serve", *world.classification(), "--span", span), "--span: expected FIRST:END")
    assert not world.out.exists()


def test_a_machine_that_runs_blocks_is_not_open_to_others_by_accident_and_needs_blocks_that_there_are(
    world: World,
) -> None:
    words = ("serve", *world.classification(), "--span")
    wrong(run(*words, "0:2", "--host", "0.0.0.0"), "without TLS", "cutlayer fleet init")
    wrong(run(*words, "2:9"), "--span: expected blocks up to 3, the model's, got 2:9")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wrong(run(*words, "0:2", "--port", taken.getsockname()[1]), "expected a free address", "--port")
    assert not world.out.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--site-of", "127.0.0.1:9"], "--name: expected the site's name beside --site-of"),
        (["--name", "ward"], "--name: expected --site-of beside it"),
        (["--token", "file"], "--token: expected --site-of beside it"),
        (["--site-of", "example.org:7070", "--name", "ward"], "expected TLS to a server on another machine"),
        (["--site-of", "127.0.0.1:9", "--name", "ward", "--host", "0.0.0.0"], "without TLS"),
        (["--site-of", "127.0.0.1:9", "--name", "ward", "--workers", "2"], "--workers: expected 1 at a site"),
        (["--site-of", "nowhere", "--name", "ward"], "HOST:PORT"),
        (["--site-of", "127.0.0.1:9", "--name", "ward", "--min-devices", "2"], "--min-devices: expected none beside"),
        (["--site-of", "127.0.0.1:9", "--name", "ward", "--span", "0:2"], "--span: expected none beside"),
    ],
)
def test_a_site_says_whose_it_is_and_comes_as_safely_as_a_device(words: list[str], told: str, world: World) -> None:
    wrong(run("serve", *world.classification(), *words), told)
    assert not world.out.exists()


def test_a_port_that_is_taken(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = run("serve", *world.classification(), "--port", taken.getsockname()[1])
    wrong(ran, "expected a free address", "--port")


@pytest.mark.parametrize("flags", [("--local-steps", 3), ("--lr", 0.1)])
def test_a_run_that_goes_on_is_not_described_again(flags: tuple[object, ...], tmp_path: Path) -> None:
    wrong(run("serve", "--resume", tmp_path, *flags), "--resume", str(flags[0]))


def test_there_must_be_something_to_go_on_with(tmp_path: Path) -> None:
    wrong(run("serve", "--resume", tmp_path / "nothing"), "nothing")
    assert not (tmp_path / "nothing").exists()


def test_workers_need_ray_and_say_how_to_get_it(world: World) -> None:
    with mock.patch.dict(sys.modules, {"ray": None}):
        sys.modules.pop("cutlayer.run.workers.ray_workers", None)
        wrong(run("serve", *world.classification(), "--workers", 2), "--workers", "pip install 'cutlayer[ray]'")
    assert not world.out.exists()


def test_one_worker_asks_for_no_ray(world: World) -> None:
    with mock.patch.dict(sys.modules, {"ray": None}), socket.create_server(("127.0.0.1", 0)) as taken:
        wrong(run("serve", *world.classification(), "--port", taken.getsockname()[1], "--workers", 1), "--port")


def test_a_run_that_lost_a_device_says_whom_and_ends_with_3(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose owner lends a single round. Without such limits it ends with 0 (`test_up.py`)."""
    values = values_for(inputs, out=str(tmp_path / "run"))
    files, config = write_shares(prepare(read_config(None, values=values)), tmp_path / "shares")
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    machines, door_of, devices = one_thread(), serving.door_of, list[asyncio.Future[None]]()

    def door_to_which_devices_come(address: str, folder: Path | None, opened: Callable[[int], None]) -> GrpcDoor:
        def come(port: int) -> None:
            opened(port)
            for name, data in files.items():
                own = {"patience_seconds": 20.0, "limits": LENT.get(name, EVERYTHING)}
                joining: Any = Joining(name, str(data), "", tmp_path / name, **own)
                devices.append(asyncio.ensure_future(within(device(joining, f"127.0.0.1:{port}", machines))))

        return door_of(address, folder, come)

    monkeypatch.setattr(serving, "door_of", door_to_which_devices_come)
    monkeypatch.setattr(serving, "serve_run", partial(serving.serve_run, machines=machines))
    ran = run("serve", tmp_path / "run.yaml", "--port", 0, "--min-devices", len(files), apart=False)
    assert ran.code == 3, ran.err
    assert "lost: slow (declined)" in ran.err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["lost"] == {"slow": "declined"}
    assert (tmp_path / "run" / "adapter" / "adapter_model.safetensors").exists()
