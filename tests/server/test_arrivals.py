"""The queue: who waits, who is expected when, who is served next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from cutlayer.fleet.clock import now, run_virtual
from cutlayer.policies.order import Job, fifo, longest_tail, strict_ratio
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.forecast import Forecast
from cutlayer.state import Stateless
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations

FLEET = fleet_of(3)
FORECAST = Forecast(FLEET, FlatCosts(3))  # type: ignore[arg-type]
LONGEST = 10


def arrivals_for(*cuts: int, steps: int = 1) -> Arrivals:
    devices = tuple(DevicePlan(f"device-{i}", cut, batch_size=4, local_steps=steps) for i, cut in enumerate(cuts))
    return Arrivals(RoundPlan(0, devices), FORECAST, LONGEST)


def sent_by(device: int, *, step: int = 0, samples: int = 4, tokens: int = 6) -> Activations:
    h_BTD = torch.zeros(samples, tokens, 16)
    return Activations(
        "run", 0, step, f"device-{device}", h_BTD, torch.ones(samples, tokens).bool(), torch.zeros(samples), samples
    )


class Watching(Stateless):
    """An order that notes what it is shown, and waits until it is told otherwise."""

    name = "watching"

    def __init__(self, choose: Callable[[float, Sequence[Job], Sequence[Job]], Job | None]) -> None:
        self.seen: list[tuple[float, list[Job], list[Job]]] = []
        self._choose = choose

    def pick(self, now: float, arrived: Sequence[Job], expected: Sequence[Job]) -> Job | None:
        self.seen.append((now, list(arrived), list(expected)))
        return self._choose(now, arrived, expected)


def play(program: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run_virtual(program(), start_seconds=100.0)


def test_it_waits_until_somebody_is_there() -> None:
    async def program() -> None:
        arrivals = arrivals_for(1, 1)
        asyncio.get_running_loop().call_later(2.0, arrivals.put, sent_by(1))
        served = await arrivals.pick(fifo())
        assert served is not None
        assert served.device == "device-1"
        assert now() == 102.0

    play(program)


def test_who_is_served_next_is_the_orders_choice() -> None:
    async def program() -> None:
        arrivals = arrivals_for(1, 3, 2)
        for device in range(3):
            arrivals.put(sent_by(device))
        tails = {i: FORECAST.step(DevicePlan(f"device-{i}", cut), 4, 6).tail for i, cut in enumerate((1, 3, 2))}
        by_tail = sorted(tails, key=lambda device: -tails[device])
        served = [await arrivals.pick(longest_tail()) for _ in range(3)]
        assert [message.device for message in served if message] == [f"device-{device}" for device in by_tail]
        assert await arrivals.pick(longest_tail()) is None

    play(program)


def test_first_come_first_served_is_by_arrival() -> None:
    async def program() -> None:
        arrivals = arrivals_for(1, 1, 1)
        for device in (2, 0, 1):
            arrivals.put(sent_by(device))
            await asyncio.sleep(1.0)
        served = [await arrivals.pick(fifo()) for _ in range(3)]
        assert [message.device for message in served if message] == ["device-2", "device-0", "device-1"]

    play(program)


def test_the_round_is_over_when_every_step_was_served() -> None:
    async def program() -> None:
        arrivals = arrivals_for(1, 2, steps=2)
        for step in range(2):
            for device in range(2):
                arrivals.put(message := sent_by(device, step=step))
                assert await arrivals.pick(fifo()) is message
        assert await arrivals.pick(fifo()) is None

    play(program)


def test_who_has_not_come_is_expected_after_a_head() -> None:
    """The head is that of the longest batch, for nothing else is known of the device yet."""
    order = Watching(lambda now, arrived, expected: arrived[0])

    async def program() -> None:
        arrivals = arrivals_for(1, 2)
        arrivals.put(sent_by(1))
        await arrivals.pick(order)
        (seen,) = order.seen
        time, (here,), (coming,) = seen
        assert time == 100.0
        assert (here.device, here.release_seconds) == ("device-1", 100.0)
        head = FORECAST.step(DevicePlan("device-0", 1, 4), 4, LONGEST).head
        assert coming.device == "device-0"
        assert coming.release_seconds == pytest.approx(100.0 + head)

    play(program)


def test_who_was_served_is_expected_after_a_step_of_the_batch_that_it_showed() -> None:
    order = Watching(lambda now, arrived, expected: arrived[0])
    plan = DevicePlan("device-0", 2, 4, local_steps=3)

    async def program() -> None:
        arrivals = Arrivals(RoundPlan(0, (plan, DevicePlan("device-1", 1, 4))), FORECAST, LONGEST)
        await asyncio.sleep(5.0)
        arrivals.put(sent_by(0, samples=3, tokens=7))
        await arrivals.pick(order)
        arrivals.put(sent_by(1))
        await arrivals.pick(order)
        _, (served,), _ = order.seen[0]
        times = FORECAST.step(plan, 3, 7)
        assert served.work_seconds == times.server
        _, _, (again,) = order.seen[1]
        assert again.device == "device-0"
        assert again.release_seconds == pytest.approx(105.0 + times.server + times.tail + times.head)

    play(program)


@pytest.mark.parametrize("overlap", [True, False])
def test_when_the_next_part_is_expected(overlap: bool) -> None:
    """With overlap it was sent before an answer to the first; without, it follows the answer. So does the third."""
    order = Watching(lambda now, arrived, expected: arrived[0])
    plan = DevicePlan("device-0", 2, 12, local_steps=2, micro_batches=3, overlap=overlap)
    times = FORECAST.step(plan, 4, 6)
    again = times.server + times.tail + times.head

    async def program() -> None:
        arrivals = Arrivals(RoundPlan(0, (plan, DevicePlan("device-1", 1, 4, 9))), FORECAST, LONGEST)
        for number, seconds in enumerate((5.0, 0.01, 5.0)):
            await asyncio.sleep(seconds)
            part = replace(sent_by(0), micro_batch=number, micro_batches=3, others_weight=8)
            arrivals.put(part)
            assert await arrivals.pick(order) is part
            arrivals.put(sent_by(1))
            await arrivals.pick(order)
        due = [expected[0].release_seconds for _, _, expected in order.seen[1::2]]
        assert all(job.device == "device-0" for _, _, (job,) in order.seen[1::2])
        follows = max(times.forward, times.upload)
        assert 0.01 + follows < again, "the third is held up by the answer to the first"
        expected = [105.0 + follows, 105.0 + again, 110.01 + again]
        assert due == pytest.approx(expected if overlap else [105.0 + again, 105.01 + again, 110.01 + again])

    play(program)


def test_parts_that_wait_are_served_in_their_order_and_make_one_step() -> None:
    async def program() -> None:
        plan = DevicePlan("device-0", 2, 8, local_steps=1, micro_batches=2)
        arrivals = Arrivals(RoundPlan(0, (plan,)), FORECAST, LONGEST)
        parts = [replace(sent_by(0), micro_batch=number, micro_batches=2, others_weight=4) for number in range(2)]
        for part in parts:
            arrivals.put(part)
        assert [await arrivals.pick(fifo()) for _ in range(3)] == [*parts, None]
        settling = asyncio.create_task(arrivals.settled("device-0"))
        for done in (False, True):
            arrivals.answer("device-0")
            await asyncio.sleep(1.0)
            assert settling.done() == done

    play(program)


def test_who_is_done_is_not_expected() -> None:
    order = Watching(lambda now, arrived, expected: arrived[0])

    async def program() -> None:
        arrivals = arrivals_for(1, 1)
        arrivals.put(sent_by(0))
        await arrivals.pick(order)
        arrivals.put(sent_by(1))
        await arrivals.pick(order)
        assert [len(expected) for _, _, expected in order.seen] == [1, 0]

    play(program)


def test_an_order_that_waits_is_asked_at_the_next_arrival() -> None:
    async def program() -> None:
        arrivals = arrivals_for(1, 2)
        ratios = [FORECAST.job(DevicePlan(f"device-{i}", i + 1, 4), 4, 6, 0.0).ratio for i in range(2)]
        assert ratios[0] > ratios[1]
        arrivals.put(sent_by(1))
        asyncio.get_running_loop().call_later(500.0, arrivals.put, sent_by(0))
        served = await arrivals.pick(strict_ratio())
        assert served is not None
        assert (served.device, now()) == ("device-0", 600.0)

    play(program)


def test_an_order_that_waits_is_asked_again_when_nobody_came() -> None:
    """It waited for one who was due; that one is late, so it may decide otherwise."""

    def unless_late(time: float, arrived: Sequence[Job], expected: Sequence[Job]) -> Job | None:
        return arrived[0] if all(job.release_seconds <= time for job in expected) else None

    order = Watching(unless_late)

    async def program() -> None:
        arrivals = arrivals_for(1, 2, 3)
        arrivals.put(sent_by(1))
        served = await arrivals.pick(order)
        assert served is not None
        assert served.device == "device-1"
        heads = sorted(FORECAST.step(DevicePlan(f"device-{i}", i + 1, 4), 4, LONGEST).head for i in (0, 2))
        assert [time for time, _, _ in order.seen] == pytest.approx([100.0, 100.0 + heads[0], 100.0 + heads[1]])

    play(program)


def test_an_arrival_while_the_server_worked_is_not_forgotten() -> None:
    """Nobody waits for the news at the moment at which it comes."""

    async def program() -> None:
        arrivals = arrivals_for(1, 1)
        arrivals.put(sent_by(0))
        await arrivals.pick(fifo())
        arrivals.put(sent_by(1))
        await asyncio.sleep(3.0)
        served = await arrivals.pick(fifo())
        assert served is not None
        assert (served.device, now()) == ("device-1", 103.0)

    play(program)


def test_everybody_is_waited_for_and_listed_by_name() -> None:
    async def program() -> None:
        arrivals = arrivals_for(1, 1, 1, steps=2)
        loop = asyncio.get_running_loop()
        for step in range(2):
            for delay, device in ((3.0, 0), (1.0, 2), (2.0, 1)):
                loop.call_later(delay, arrivals.put, sent_by(device, step=step))
            served = await arrivals.everybody()
            assert [(message.device, message.step) for message in served] == [(f"device-{i}", step) for i in range(3)]
            assert now() == 103.0 + 3 * step
        assert await arrivals.everybody() == []

    play(program)


def test_who_leaves_is_neither_served_nor_waited_for() -> None:
    async def program() -> None:
        arrivals = arrivals_for(1, 1, 1)
        for device in range(2):
            arrivals.put(sent_by(device))
        arrivals.leave("device-0")
        served = await arrivals.pick(fifo())
        assert served is not None
        assert served.device == "device-1"
        asyncio.get_running_loop().call_later(3.0, arrivals.leave, "device-2")
        assert await arrivals.pick(fifo()) is None
        assert now() == 103.0

    play(program)


def test_everybody_is_those_who_are_here() -> None:
    async def program() -> None:
        arrivals = arrivals_for(1, 1, 1, steps=2)
        for device in (0, 2):
            arrivals.put(sent_by(device))
        asyncio.get_running_loop().call_later(2.0, arrivals.leave, "device-1")
        assert [message.device for message in await arrivals.everybody()] == ["device-0", "device-2"]
        assert now() == 102.0
        for device in (0, 2):
            arrivals.leave(f"device-{device}")
        assert await arrivals.everybody() == []

    play(program)


def test_a_device_is_settled_when_what_was_served_is_answered() -> None:
    async def program() -> None:
        arrivals = arrivals_for(1, 1)
        arrivals.put(sent_by(0))
        await arrivals.settled("device-0")  # it waits, but nothing of it is under way
        await arrivals.pick(fifo())
        asyncio.get_running_loop().call_later(2.0, arrivals.answer, "device-0")
        await arrivals.settled("device-0")
        assert now() == 102.0

    play(program)


def test_who_is_cancelled_when_somebody_comes_is_cancelled() -> None:
    """At the same moment: a run that is stopped, or whose round has failed, serves nobody any more."""

    async def program() -> None:
        arrivals = arrivals_for(1, 1)
        waiting = asyncio.ensure_future(arrivals.pick(strict_ratio()))
        await asyncio.sleep(0.01)
        arrivals.put(sent_by(1))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    play(program)
