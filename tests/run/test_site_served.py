"""Law 6 at sites: a server, sites of their own and devices train the adapter of the simulated run, bit for bit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from at_sites import World, fleet_at
from cutlayer.gate import hub
from cutlayer.run.run import Outcome
from cutlayer.run.site_served import _Site
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
