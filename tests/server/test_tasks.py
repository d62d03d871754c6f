"""Tasks that devices are at work on, from round to round."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from cutlayer.errors import DeviceGone
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.policies.held_near import HeldNear
from cutlayer.sealed import seal, unseal
from cutlayer.server.tasks import Tasks, first_seconds
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.messages import Assignment, Message


def assignment(device: str, round: int) -> Assignment:
    plan = DevicePlan(device, cut=3, top=3, clauses=(HeldNear(0.25),))
    adapter = {"head.weight": torch.arange(6.0).reshape(2, 3) + round}
    return Assignment("run", round, device, plan, (0.1, 0.05), adapter, counted=round - 1 if round else None)


class SlowLink:
    """Takes a second to send, and notes when it was asked to and that it has."""

    bytes_sent = bytes_received = 0

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.sent: list[Message] = []

    async def send(self, message: Message) -> None:
        self.asked.append(now())
        await asyncio.sleep(1)
        self.sent.append(message)

    async def receive(self) -> Message:
        raise NotImplementedError


class GoneLink(SlowLink):
    """A device that was refused."""

    async def send(self, message: Message) -> None:
        await asyncio.sleep(1)
        raise DeviceGone("refused", device=message.device, reason="refused")  # type: ignore[union-attr]


def begun(*devices: tuple[str, int]) -> Tasks:
    async def begin() -> Tasks:
        tasks = Tasks()
        for name, round in devices:
            await asyncio.sleep(1.5)
            tasks.begin(assignment(name, round))
        return tasks

    return run_virtual(begin())


def test_a_round_has_those_at_work_and_those_planned() -> None:
    tasks = begun(("b", 0), ("a", 1))
    plan = RoundPlan(2, (DevicePlan("c"), DevicePlan("a", batch_size=99)), ranks=(8,))
    joined = tasks.joined(plan)
    assert [(device.device, device.batch_size) for device in joined.devices] == [("a", 16), ("b", 16), ("c", 16)]
    assert (joined.round, joined.ranks) == (2, (8,))
    tasks.waiting.add("c")
    assert [device.device for device in tasks.begun(joined).devices] == ["a", "b"]
    assert Tasks().joined(plan) is plan
    assert Tasks().begun(plan) is plan


def test_who_gives_up_waiting_does_not_keep_it_from_leaving() -> None:
    async def program() -> list[Message]:
        tasks, link = Tasks(), SlowLink()
        tasks.begin(assignment("a", 0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await tasks.sent("a", link)
        await tasks.sent("a", link)
        assert (now(), link.asked) == (1.0, [0.0])
        return link.sent

    assert [message.round for message in run_virtual(program())] == [0]


def test_a_device_that_is_gone_says_so_to_whoever_waits() -> None:
    async def program() -> None:
        tasks = Tasks()
        tasks.begin(assignment("a", 0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await tasks.sent("a", GoneLink())
        with pytest.raises(DeviceGone):
            await tasks.sent("a", GoneLink())
        assert tasks.end("a").device == "a"
        assert "a" not in tasks

    run_virtual(program())


def test_a_checkpoint_holds_the_stamps_and_the_versions(tmp_path: Path) -> None:
    tasks = begun(("b", 0), ("a", 1))
    seal(tmp_path / "state", {}, tasks.state())
    state = unseal(tmp_path / "state", {}, foreign={}, torn="")
    loaded = Tasks()
    loaded.load(state)
    assert loaded.plans == tasks.plans
    for name in ("a", "b"):
        one, other = tasks.assignment(name), loaded.assignment(name)
        assert (one.round, one.learning_rates, one.counted) == (other.round, other.learning_rates, other.counted)
        assert torch.equal(one.adapter["head.weight"], other.adapter["head.weight"])
    assert first_seconds(state, 99.0) == 1.5
    assert first_seconds(Tasks().state(), 99.0) == 99.0


def test_a_replay_says_each_when_it_was_said() -> None:
    loaded, links = Tasks(), {"a": SlowLink(), "b": SlowLink()}
    loaded.load(begun(("b", 0), ("a", 1)).state())

    async def program() -> float:
        await loaded.replay(links, 3.25)
        time = now()
        await loaded.sent("a", links["a"])
        await loaded.sent("b", links["b"])
        return time

    assert run_virtual(program(), start_seconds=1.5) == 3.25
    assert (links["b"].asked, links["a"].asked) == ([1.5], [3.0])


def test_a_server_that_goes_on_says_it_again() -> None:
    loaded, link = Tasks(), SlowLink()
    loaded.load(begun(("a", 1)).state())
    run_virtual(loaded.sent("a", link))
    assert [message.round for message in link.sent] == [1]


def test_who_is_of_the_fleet_no_more_is_at_work_no_more() -> None:
    tasks = begun(("b", 0), ("a", 1))
    tasks.forget_all_but(["a", "c"])
    assert ("a" in tasks, "b" in tasks, len(tasks)) == (True, False, 1)
