"""The modelled link: times by hand, bytes by the real codec, directions that do not meet."""

import asyncio

import pytest
import torch

from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.link import modelled_link
from cutlayer.fleet.profile import DeviceProfile
from cutlayer.types import DevicePlan, Event
from cutlayer.wire.frames import encode
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Activations, Assignment, Finish, Gradients, Message, Update

Arrivals = list[tuple[Message, float]]

PROFILE = DeviceProfile(
    name="phone",
    flops_per_second=1e12,
    efficiency=0.5,
    memory_bytes=2**30,
    up_bits_per_second=8000,
    down_bits_per_second=16_000,
    latency_seconds=0.25,
)
UP = Activations("run", 3, 4, "phone", torch.ones(2, 3, 4), torch.ones(2, 3) > 0, torch.zeros(2).int(), 2)
DOWN = Gradients("run", 3, 4, "phone", torch.ones(2, 3, 4, dtype=torch.bfloat16), 0.5)
UP_SECONDS = len(encode(UP)) / 1000
DOWN_SECONDS = len(encode(DOWN)) / 2000


async def arrivals(link: Link, count: int) -> Arrivals:
    """The next messages, each with the time at which it came."""
    return [(await link.receive(), now()) for _ in range(count)]


def test_a_message_takes_its_bytes_over_the_rate_then_the_latency() -> None:
    events: list[Event] = []

    async def program() -> tuple[float, Message, float]:
        device, server = modelled_link(PROFILE, events.append)
        await asyncio.sleep(1)
        receiving = asyncio.create_task(arrivals(server, 1))
        await device.send(UP)
        sent = now()
        ((message, arrived),) = await receiving
        return sent, message, arrived

    sent, message, arrived = run_virtual(program())
    assert message is UP
    assert sent == pytest.approx(1 + UP_SECONDS)
    assert arrived == pytest.approx(1 + UP_SECONDS + 0.25)
    (event,) = events
    assert (event.who, event.what, event.round, event.step) == ("phone", "upload", 3, 4)
    assert (event.start_seconds, event.end_seconds) == (1, sent)
    assert event.num_bytes == len(encode(UP))


def test_the_server_sends_at_the_devices_download_rate() -> None:
    events: list[Event] = []

    async def program() -> Arrivals:
        device, server = modelled_link(PROFILE, events.append)
        await server.send(DOWN)
        return await arrivals(device, 1)

    ((message, arrived),) = run_virtual(program())
    assert message is DOWN
    assert arrived == pytest.approx(DOWN_SECONDS + 0.25)
    assert [(event.who, event.what) for event in events] == [("phone", "download")]


def test_messages_queue_for_the_pipe_but_not_for_the_latency() -> None:
    async def program() -> tuple[float, Arrivals, float]:
        device, server = modelled_link(PROFILE, lambda event: None)
        last = Finish("run", 3, "done")
        receiving = asyncio.create_task(arrivals(server, 3))
        await asyncio.gather(device.send(UP), device.send(UP), device.send(last))
        return now(), await receiving, len(encode(last)) / 1000

    sent, received, last_seconds = run_virtual(program())
    assert sent == pytest.approx(2 * UP_SECONDS + last_seconds)
    assert [message for message, _ in received[:2]] == [UP, UP]
    times = [UP_SECONDS, 2 * UP_SECONDS, 2 * UP_SECONDS + last_seconds]
    assert [time for _, time in received] == [pytest.approx(seconds + 0.25) for seconds in times]


def test_both_directions_at_once_do_not_slow_each_other() -> None:
    async def program() -> tuple[float, float]:
        device, server = modelled_link(PROFILE, lambda event: None)
        up, down, *_ = await asyncio.gather(
            arrivals(server, 1), arrivals(device, 1), device.send(UP), server.send(DOWN)
        )
        return up[0][1], down[0][1]

    assert run_virtual(program()) == pytest.approx((UP_SECONDS + 0.25, DOWN_SECONDS + 0.25))


def test_bytes_counted_are_bytes_encoded() -> None:
    adapter = {"a": torch.ones(3, 5), "b": torch.ones(7, dtype=torch.float16)}
    down: list[Message] = [
        Assignment("run", 0, "phone", DevicePlan("phone"), (0.1,), adapter),
        DOWN,
        Finish("run", 1, "done"),
    ]
    up: list[Message] = [UP, Update("run", 0, "phone", adapter, 0, 1, 2, 0.0, 0.5)]

    async def program() -> tuple[int, int, int, int]:
        device, server = modelled_link(PROFILE, lambda event: None)
        for message in up:
            await device.send(message)
        for message in down:
            await server.send(message)
        assert server.bytes_received == device.bytes_received == 0
        await arrivals(server, len(up))
        await arrivals(device, len(down))
        return device.bytes_sent, server.bytes_received, server.bytes_sent, device.bytes_received

    up_bytes = sum(len(encode(message)) for message in up)
    down_bytes = sum(len(encode(message)) for message in down)
    assert run_virtual(program()) == (up_bytes, up_bytes, down_bytes, down_bytes)


def test_bytes_of_messages_that_leave_at_the_same_time_all_count() -> None:
    async def program() -> int:
        device, _ = modelled_link(PROFILE, lambda event: None)
        await asyncio.gather(*(device.send(UP) for _ in range(3)))
        return device.bytes_sent

    assert run_virtual(program()) == 3 * len(encode(UP))


def test_a_receive_given_up_loses_nothing() -> None:
    async def program() -> Arrivals:
        device, server = modelled_link(PROFILE, lambda event: None)
        await device.send(UP)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.receive(), timeout=0.1)  # under way: the latency is longer
        return await arrivals(server, 1)

    ((message, arrived),) = run_virtual(program())
    assert message is UP
    assert arrived == pytest.approx(UP_SECONDS + 0.25)


def test_a_send_given_up_frees_the_pipe_and_delivers_nothing() -> None:
    async def program() -> tuple[int, Arrivals]:
        device, server = modelled_link(PROFILE, lambda event: None)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(device.send(UP), timeout=UP_SECONDS / 2)
        await device.send(Finish("run", 3, "done"))
        return device.bytes_sent, await arrivals(server, 1)

    sent, [(message, _)] = run_virtual(program())
    assert message == Finish("run", 3, "done")
    assert sent == len(encode(message))


def test_messages_of_one_instant_stay_in_order() -> None:
    async def program() -> list[int]:
        device, server = modelled_link(PROFILE.model_copy(update={"up_bits_per_second": 1e30}), lambda event: None)
        await asyncio.sleep(1e6)
        messages = [Finish("run", number, "") for number in range(50)]
        for message in messages:
            await device.send(message)
        return [(await server.receive()).round for _ in messages]

    assert run_virtual(program()) == list(range(50))
