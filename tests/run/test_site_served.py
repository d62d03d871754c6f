"""Law 6 at sites: a server, sites of their own and their devices train the adapter of the simulated run, bit for bit."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from at_sites import World, fleet_at
from cutlayer.gate import hub
from cutlayer.run.run import Outcome
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
    values = values_at(inputs, *PAIRS)
    real = asyncio.run(World(values, tmp_path / "real").play())
    modelled = simulated(values, tmp_path / "simulated")
    assert bytes_of(real) == bytes_of(modelled)
