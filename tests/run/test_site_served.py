"""Law 6 at sites: a server, sites of their own and devices train the adapter of the simulated run, bit for bit."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from at_sites import World, fleet_at
from cutlayer.config import read_config
from cutlayer.device.device import Device
from cutlayer.errors import JoinError
from cutlayer.fleet.profile import load_fleet
from cutlayer.gate import hub
from cutlayer.gate.roster import Roster
from cutlayer.run.inputs import prepare, write_shares
from cutlayer.run.run import Outcome
from cutlayer.run.site_served import _Site
from cutlayer.testing.faults import LIES
from cutlayer.transport.certificates import issue_server, make_authority
from cutlayer.wire.messages import Update
from real import simulated, values_for


@pytest.fixture(autouse=True)
def _no_lingering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "LINGER_SECONDS", 0.1)


def bytes_of(outcome: Outcome) -> bytes:
    return (outcome.adapter / "adapter_model.safetensors").read_bytes()


def values_at(inputs: Path, *sites: tuple[str, ...], **changes: Any) -> dict[str, Any]:
    return values_for(
        inputs,
        **{
            "fleet": fleet_at(*sites),
            "method__name": "hfl_prune",
            "method__cloud_every": 2,
            "lora__targets": ["all-linear"],
            "train__rounds": 3,
            "train__local_steps": 1,
            **changes,
        },
    )


PAIRS = (("a", "b"), ("c", "d"))


def test_the_adapter_of_the_simulated_run(inputs: Path, tmp_path: Path) -> None:
    """And what its rounds say of devices, but for times; no adapter of a device has gone beyond its site."""
    values = values_at(inputs, *PAIRS)
    world = World(values, tmp_path / "real")
    real = asyncio.run(world.play())
    modelled = simulated(values, tmp_path / "simulated")
    assert bytes_of(real) == bytes_of(modelled)
    assert sorted(path.name for path in (tmp_path / "real" / "sites").iterdir()) == ["site-0", "site-1"]
    for mine, other in zip(real.rows, modelled.rows, strict=True):
        assert list(mine["devices"]) == list(other["devices"]) == ["a", "b", "c", "d"]
        for name, row in mine["devices"].items():
            for what in ("samples", "steps", "loss", "cut"):
                assert row[what] == other["devices"][name][what]
            assert min(row["bytes_up"], row["bytes_down"], row["busy_seconds"]) > 0
    up = [row["devices"]["a"]["facts"]["cloud_bytes_up"] for row in real.rows]
    plain = [row["devices"]["a"]["facts"]["cloud_bytes_up"] for row in modelled.rows]
    assert up[0] < 5_000 < plain[1] < up[1]  # without a report, what four devices did and no tensor
    assert plain[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"method__fraction": 0.5, "train__rounds": 4}, {"method__prune": 0.0, "wire__adapters": "topk:0.25"}],
    ids=["a part of the fleet", "packed updates"],
)
def test_the_adapter_of_the_simulated_run_whatever_the_plan(
    changes: dict[str, Any], inputs: Path, tmp_path: Path
) -> None:
    """A site with nobody in a round reports what it has; what packing an update lost is owed by its device."""
    values = values_at(inputs, *PAIRS, **changes)
    real = asyncio.run(World(values, tmp_path / "real").play())
    assert bytes_of(real) == bytes_of(simulated(values, tmp_path / "simulated"))


@pytest.mark.slow
def test_one_site_that_prunes_nothing_is_federated_averaging(inputs: Path, tmp_path: Path) -> None:
    values = values_at(inputs, ("a", "b"), method__prune=0.0)
    plain = {key: value for key, value in values.items() if not key.startswith("method.")}
    real = asyncio.run(World(values, tmp_path / "real").play())
    assert bytes_of(real) == bytes_of(simulated({**plain, "method.name": "fedlora"}, tmp_path / "simulated"))


@pytest.mark.slow
def test_devices_of_no_site_are_at_one_where_the_server_is(inputs: Path, tmp_path: Path) -> None:
    values = values_at(inputs, *PAIRS)
    world = World(values, tmp_path / "real", {"a": "site-0", "b": "site-0", "c": "", "d": ""})
    assert bytes_of(asyncio.run(world.play())) == bytes_of(simulated(values, tmp_path / "simulated"))


@pytest.mark.slow
def test_a_site_that_stays_away_is_gone_on_without_until_it_comes(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: Callable[[str, int], asyncio.Event]
) -> None:
    """The work of the round in which a site left does not count, and the site is given the server's adapter again."""
    world = World(values_at(inputs, *PAIRS, train__rounds=4), tmp_path / "real")
    world.options["patience"] = 1.0
    back, train = asyncio.Event(), _Site._train

    async def waits(self: _Site, *args: Any) -> Any:
        if self.name == "site-1" and args[-1].round == 2:
            await back.wait()
        return await train(self, *args)

    monkeypatch.setattr(_Site, "_train", waits)

    async def away(world: World) -> None:
        await moment(TRAINED, 1).wait()
        await world.kill("site-0")
        await world.until(lambda seen: len(seen.rows) == 2)
        came = len(world.display.lines)
        await world.start("site-0")
        await world.until(lambda seen: any(line.startswith("site-0 has come") for line in seen.lines[came:]))
        back.set()

    rows = asyncio.run(world.play(away)).rows
    samples = [[one["devices"].get(name, {"samples": 0})["samples"] for name in "abcd"] for one in rows]
    some = samples[0][0]
    assert samples == [[some] * 4, [0, 0, some, some], [0, 0, some, some], [some] * 4]
    assert any("not waited for any more" in line for line in world.display.lines)


class WithLiar(World):
    """A run whose device of this name may be refused."""

    liar = "b"

    async def start_device(self, name: str) -> None:
        await super().start_device(name)
        if name == self.liar:
            self.tasks[name] = asyncio.create_task(_until_refused(self.tasks[name]))


async def _until_refused(task: asyncio.Task[Any]) -> None:
    with contextlib.suppress(JoinError):
        await task


def test_poison_of_a_device_stays_out_of_its_sites_mean(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site, which has no rows, finds it out and refuses the device; the others go on at both sites."""
    update = Device.update

    def poisoned(self: Device, *args: Any, **facts: Any) -> Update:
        honest = update(self, *args, **facts)
        return LIES["poison on some rows"].change(honest) if self.name == WithLiar.liar else honest

    monkeypatch.setattr(Device, "update", poisoned)
    world = WithLiar(values_at(inputs, *PAIRS, model__dtype="fp16", method__cloud_every=1), tmp_path / "real")
    world.patience_seconds = 3.0
    outcome = asyncio.run(world.play())
    samples = [{name for name, row in one["devices"].items() if row["samples"]} for one in outcome.rows]
    assert samples == [{"a", "c", "d"}] * 3
    assert outcome.metrics["loss"] < 10.0


@pytest.fixture
def moment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], asyncio.Event]:
    """Set when a site is at this point of this round for the first time."""

    def at(point: str, round: int) -> asyncio.Event:
        reached, there = asyncio.Event(), getattr(_Site, point)

        async def then(self: _Site, *args: Any) -> Any:
            done = await there(self, *args)
            told = args[-1]
            if self.name == "site-0" and told.round == round and not reached.is_set():
                reached.set()
            return done

        monkeypatch.setattr(_Site, point, then)
        return reached

    return at


TRAINED, KEPT = "_train", "_hold"


@pytest.mark.parametrize(
    ("victims", "point"),
    [
        pytest.param(("site-0",), TRAINED),
        pytest.param(("site-0",), KEPT, marks=pytest.mark.slow),
        pytest.param(("server",), TRAINED),
        pytest.param(("server",), KEPT, marks=pytest.mark.slow),
        pytest.param(("a",), TRAINED, marks=pytest.mark.slow),
        pytest.param(("server", "site-0"), KEPT, marks=pytest.mark.slow),
        pytest.param(("server", "site-0", "site-1", "a", "b", "c", "d"), TRAINED, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_whatever_is_killed_the_adapter_is_that_of_the_run_in_which_nothing_was(
    victims: tuple[str, ...], point: str, inputs: Path, tmp_path: Path, moment: Callable[[str, int], asyncio.Event]
) -> None:
    values = values_at(inputs, *PAIRS)
    world = World(values, tmp_path / "real")

    async def killed(world: World) -> None:
        await moment(point, 1).wait()
        for victim in victims:
            await world.kill(victim)
        for victim in victims:
            await world.start(victim)

    real = asyncio.run(world.play(killed))
    assert bytes_of(real) == bytes_of(simulated(values, tmp_path / "simulated"))
    assert [row["round"] for row in real.rows] == [0, 1, 2]
    rounds = [sum(row["samples"] for row in one["devices"].values()) for one in real.rows]
    assert len({*rounds}) == 1  # every sample counts once
    assert any("begins again" in line for line in world.heard) == ("server" in victims and "site-1" not in victims)


class Processes:
    """A run of real processes, with TLS and tokens.

    Args:
      values: Of the run's config.
      folder: Where everything is.
    """

    def __init__(self, values: dict[str, Any], folder: Path) -> None:
        self.folder, self.out = folder, folder / "run"
        config = read_config(None, values={**values, "out": str(self.out)})
        self.files, config = write_shares(prepare(config), folder / "shares")
        self.fleet = load_fleet(config.fleet)
        (folder / "run.yaml").write_text(config.to_yaml())
        (folder / "site.yaml").write_text(f"model: {{name: {config.model.name}}}\nout: {folder / 'at-sites'}\n")
        roster, when = Roster.create(folder / "fleet"), datetime.now(UTC)
        make_authority(folder / "fleet", when)
        issue_server(folder / "fleet", ["127.0.0.1"], when)
        for name in (*self.files, *(site.name for site in self.fleet.sites)):
            token = folder / f"{name}.token"
            token.touch(mode=0o600)
            token.write_text(roster.add(name, when=when))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ports: dict[str, str] = {}

    def start(self, name: str) -> None:
        """Begins a process; or begins it again, where it has listened."""
        roster = ["--roster", str(self.folder / "fleet"), "--port", self.ports.get(name, "0")]
        proof = ["--ca", str(self.folder / "fleet" / "ca.crt"), "--token", str(self.folder / f"{name}.token")]
        if name == "server":
            run = ["--resume", str(self.out)] if name in self.ports else [str(self.folder / "run.yaml")]
            words = ["serve", *run, *roster, "--min-devices", str(len(self.files))]
        elif name in self.files:
            site = self.fleet.site_of(name)
            assert site is not None
            own = ["--name", name, "--data", str(self.files[name]), "--folder", str(self.folder / name)]
            words = ["join", f"127.0.0.1:{self.ports[site.name]}", *own, *proof]
        else:
            own = ["--site-of", f"127.0.0.1:{self.ports['server']}", "--name", name]
            words = ["serve", str(self.folder / "site.yaml"), *own, *roster, *proof]
        with open(self.folder / f"{name}.log", "ab") as log:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "cutlayer", *words]
            self.processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        if name not in self.files and name not in self.ports:
            self.until(lambda: "listening on " in self.log(name))
            self.ports[name] = self.log(name).split("listening on 127.0.0.1:")[1].split(",")[0].split()[0]

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].wait()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def rounds(self) -> int:
        path = self.out / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def until(self, holds: Callable[[], bool]) -> None:
        """Waits for it; fails when somebody has ended first."""
        while not holds():
            ended = [name for name, process in self.processes.items() if process.poll() is not None]
            assert not ended, self.log(ended[0])
            time.sleep(0.02)


@pytest.mark.slow
def test_processes_of_which_a_site_and_the_server_are_killed(inputs: Path, tmp_path: Path) -> None:
    """By SIGKILL, in the middle of something; with TLS, and tokens by which sites come in as devices do."""
    values = values_at(inputs, *PAIRS, train__rounds=6)
    run = Processes(values, tmp_path)
    try:
        for name in ("server", "site-0", "site-1", "a", "b", "c", "d"):
            run.start(name)
        for victim, rounds in (("site-0", 1), ("server", 3)):
            run.until(lambda: run.rounds() >= rounds)  # noqa: B023
            run.kill(victim)
            run.start(victim)
        for name, process in run.processes.items():
            assert process.wait(300) == 0, run.log(name)
    finally:
        for process in run.processes.values():
            process.kill()
            process.wait()
    adapter = (run.out / "adapter" / "adapter_model.safetensors").read_bytes()
    assert adapter == bytes_of(simulated(values, tmp_path / "simulated"))
    assert sorted(path.name for path in (tmp_path / "at-sites" / "sites").iterdir()) == ["site-0", "site-1"]
