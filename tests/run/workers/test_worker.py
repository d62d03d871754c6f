"""Two workers are one server: the adapter byte for byte, and nothing lost or counted twice when one of them dies."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cutlayer.errors import ConfigError
from cutlayer.run.run import Outcome
from cutlayer.transport.grpc_carrier import dial
from cutlayer.transport.handshake import hear
from cutlayer.wire.messages import Handshake, Message, Refusal
from real import served, simulated, values_for
from team import Team


def bytes_of(outcome: Outcome) -> bytes:
    return (outcome.adapter / "adapter_model.safetensors").read_bytes()


PRUNED = {"lora__targets": ["all-linear"]}


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("memsfl", {"train__micro_batches": 2}),
        pytest.param("flora", {"train__stragglers": "deadline:300"}, marks=pytest.mark.slow),
        ("fedspine", PRUNED),
        pytest.param("local_only", {}, marks=pytest.mark.slow),
    ],
)
def test_two_workers_train_the_adapter_of_one_server(
    method: str, changes: dict[str, Any], inputs: Path, tmp_path: Path
) -> None:
    values, team = values_for(inputs, method__name=method, train__rounds=3, **changes), Team(2)
    outcome = served(values, tmp_path / "workers", team=team)
    assert bytes_of(outcome) == bytes_of(simulated(values, tmp_path / "simulated"))
    assert [place.asked.count("hold") for place in team.places] == [3, 3]


@pytest.mark.parametrize("method", ["memsfl", pytest.param("fedlora", marks=pytest.mark.slow)])
def test_a_worker_dies_in_the_middle_of_a_round(method: str, inputs: Path, tmp_path: Path) -> None:
    values, team = values_for(inputs, method__name=method, train__rounds=3), Team(2)

    async def kill() -> None:
        while not (team.places and team.places[0].asked.count("hold") == 2):
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        await team.places[0].kill()

    outcome = served(values, tmp_path / "workers", team=team, meanwhile=kill)
    expected = simulated(values, tmp_path / "simulated")
    assert bytes_of(outcome) == bytes_of(expected)
    assert outcome.summary["totals"]["samples"] == expected.summary["totals"]["samples"]
    rows = [json.loads(row) for row in (outcome.folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == [0, 1, 2]


def test_a_share_is_held_once_and_who_was_not_sent_is_told_to_come_by_the_server(inputs: Path, tmp_path: Path) -> None:
    team, answers, values = Team(2, twice=True), list[Message | Handshake](), values_for(inputs)

    async def intrude() -> None:
        while not (team.places and "hold" in team.places[1].asked):
            await asyncio.sleep(0.005)
        carrier = await dial(f"127.0.0.1:{team.places[1].port}", name="slow", token=None, credentials=None)
        answers.append(await hear(carrier))  # "slow" belongs to the other worker
        carrier.close()

    outcome = served(values, tmp_path / "run", team=team, meanwhile=intrude)
    assert bytes_of(outcome) == bytes_of(simulated(values, tmp_path / "simulated"))
    (answer,) = answers
    assert isinstance(answer, Refusal)
    assert (answer.reason, answer.final) == ("unexpected", False)
    assert outcome.summary["refusals"] == {"(stranger)": {"unexpected": 1}}


def test_a_method_that_cannot_be_divided_begins_nothing(inputs: Path, tmp_path: Path) -> None:
    team = Team(2)
    with pytest.raises(BaseExceptionGroup) as caught:
        served(values_for(inputs, method__name="sl"), tmp_path / "run", team=team)
    assert caught.group_contains(ConfigError, match="--workers")
    assert not team.places
    assert not (tmp_path / "run" / "config.yaml").exists()
