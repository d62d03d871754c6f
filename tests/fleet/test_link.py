"""The modelled link: times by hand, bytes by the real codec, directions that do not meet; and one that is shared."""

import asyncio
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.link import Gateway, fair_rates, modelled_link
from cutlayer.fleet.profile import DeviceProfile, ServerProfile
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


# ------------------------------------------------------------------ a connection of the server that devices share

BITS = 8 * len(encode(UP))
"""Bits of a message up: 8 kbit/s and 16 kbit/s are the rates of the link alone."""


def gateway(up: float | None = None, down: float | None = None) -> Gateway:
    server = ServerProfile(flops_per_second=1, efficiency=1, memory_bytes=1)
    return Gateway(server.model_copy(update={"up_bits_per_second": up, "down_bits_per_second": down}))


def ends_of(
    shared: Gateway | None,
    starts: Sequence[float],
    rates: Sequence[float] = (),
    given_up: float | None = None,
) -> tuple[list[float], list[Event]]:
    """When the messages up of so many devices have left that begin at these times, and the events in their order.

    The first device gives up `given_up` seconds after it began.
    """
    events: list[Event] = []

    async def one(index: int, start: float) -> float:
        rate = rates[index] if rates else PROFILE.up_bits_per_second
        profile = PROFILE.model_copy(update={"name": f"phone-{index}", "up_bits_per_second": rate})
        device, server = modelled_link(profile, events.append, shared)
        await asyncio.sleep(start)
        try:
            await asyncio.wait_for(device.send(UP), given_up if index == 0 else None)
        except TimeoutError:
            return now()
        left = now()
        await server.receive()
        return left

    async def program() -> list[float]:
        return list(await asyncio.gather(*(one(index, start) for index, start in enumerate(starts))))

    return run_virtual(program()), events


@pytest.mark.parametrize("capacity", [8000.0, 8001.0, 1e12])
def test_one_device_with_room_for_its_rate_has_a_link_of_its_own_bit_for_bit(capacity: float) -> None:
    assert ends_of(gateway(up=capacity), [0.3]) == ends_of(None, [0.3])


def test_devices_with_room_for_all_have_links_of_their_own_bit_for_bit() -> None:
    starts, rates = [0.1, 0.1, 0.7, 0.2, 1.3], [8000.0, 777.7, 123.4, 9000.1, 5e5]
    for capacity in (sum(rates), 1e9):
        assert ends_of(gateway(up=capacity), starts, rates) == ends_of(None, starts, rates)


def test_the_other_direction_is_not_shared_with_it() -> None:
    assert ends_of(gateway(down=1.0), [0.0, 0.0]) == ends_of(None, [0.0, 0.0])


def test_equal_devices_finish_together() -> None:
    for number in (2, 3, 7):
        ends, _ = ends_of(gateway(up=5000.0), [0.25] * number)
        assert len(set(ends)) == 1
        assert ends[0] == pytest.approx(0.25 + number * BITS / 5000)


def test_the_server_sends_through_it_too() -> None:
    async def program() -> float:
        shared = gateway(down=10_000.0)
        ends = [modelled_link(PROFILE, lambda event: None, shared) for _ in range(2)]
        await asyncio.gather(*(server.send(DOWN) for _, server in ends))
        return now()

    assert run_virtual(program()) == pytest.approx(2 * 8 * len(encode(DOWN)) / 10_000)


def test_who_comes_later_slows_the_others_from_then_on() -> None:
    """The first has half of its bits through when the second comes; both go on at half the capacity."""
    half = BITS / 8000 / 2
    (first, second), events = ends_of(gateway(up=8000.0), [0.0, half])
    assert first == pytest.approx(half + (BITS / 2) / 4000)
    assert second == pytest.approx(half + (BITS / 2) / 4000 + (BITS / 2) / 8000)
    assert [(event.who, event.start_seconds, event.end_seconds) for event in events] == [
        ("phone-0", 0.0, first),
        ("phone-1", half, second),
    ]


def test_what_a_slow_link_leaves_goes_to_the_others() -> None:
    ends, _ = ends_of(gateway(up=10_000.0), [0.0, 0.0, 0.0], rates=[1000.0, 8000.0, 8000.0])
    assert ends[1] == ends[2] == pytest.approx(BITS / 4500)
    assert ends[0] == pytest.approx(BITS / 1000), "and is as fast as it can be all the time"


def test_who_gives_up_leaves_its_part_to_the_others() -> None:
    (_, second), events = ends_of(gateway(up=8000.0), [0.0, 0.0], given_up=0.01)
    assert second == pytest.approx(0.01 + (BITS - 0.01 * 4000) / 8000)
    assert len(events) == 1


def test_planned_shares() -> None:
    shared = gateway(up=8000.0)
    shared.share_by({"phone-0": 0.3, "phone-1": 0.1})
    (first, second), _ = ends_of(shared, [0.0, 0.0])
    assert first == pytest.approx(BITS / 6000)
    assert second == pytest.approx(first + (BITS - first * 2000) / 8000)


def test_a_device_that_no_share_was_planned_for_has_the_mean_share() -> None:
    shared = gateway(up=8000.0)
    shared.share_by({"phone-1": 6.0, "phone-2": 2.0})
    ends, _ = ends_of(shared, [0.0, 0.0])
    assert ends[1] == pytest.approx(BITS / 4800)


def test_shares_that_change_under_way() -> None:
    shared = gateway(up=8000.0)

    async def program() -> list[float]:
        async def one(index: int) -> float:
            device, _ = modelled_link(
                PROFILE.model_copy(update={"name": f"phone-{index}"}), lambda _event: None, shared
            )
            await device.send(UP)
            return now()

        async def change() -> None:
            await asyncio.sleep(0.01)
            shared.share_by({"phone-0": 3, "phone-1": 1})

        first, second, _ = await asyncio.gather(one(0), one(1), change())
        return [first, second]

    first, _ = run_virtual(program())
    assert first == pytest.approx(0.01 + (BITS - 40) / 6000)


@given(st.lists(st.tuples(st.floats(1e-3, 1e9), st.floats(1e-6, 1.0)), min_size=1), st.floats(1e-3, 1e9))
def test_fair_rates_use_the_capacity_in_proportion(transfers: list[tuple[float, float]], capacity: float) -> None:
    most, shares = map(list, zip(*transfers, strict=True))
    rates = fair_rates(most, shares, capacity)
    assert sum(rates) == pytest.approx(min(capacity, sum(most)), rel=1e-9)
    assert all(0 < rate <= own for rate, own in zip(rates, most, strict=True))
    levels = [rate / share for rate, share in zip(rates, shares, strict=True)]
    free = [level for level, rate, own in zip(levels, rates, most, strict=True) if rate < own]
    assert free == pytest.approx([max(levels)] * len(free), rel=1e-6), "nobody who could use more has less than others"


def exact_ends(starts: Sequence[float], rates: Sequence[float], capacity: float) -> list[Fraction]:
    """When transfers of `BITS` end that share a capacity equally: in fractions, by filling all cups evenly."""
    left = [Fraction(BITS)] * len(starts)
    ends: list[Fraction | None] = [None] * len(starts)
    time = Fraction(0)
    while None in ends:
        here = [i for i, start in enumerate(starts) if Fraction(start) <= time and ends[i] is None]
        cups, water = {i: Fraction(rates[i]) for i in here}, Fraction(capacity)
        got = dict.fromkeys(here, Fraction(0))
        while cups and water > 0:
            drop = min(min(cups.values()), water / len(cups))
            for i in list(cups):
                got[i], cups[i] = got[i] + drop, cups[i] - drop
                water -= drop
                if not cups[i]:
                    del cups[i]
        events = [time + left[i] / got[i] for i in here] + [Fraction(start) for start in starts if start > time]
        until = min(events)
        for i in here:
            left[i] -= got[i] * (until - time)
            if not left[i]:
                ends[i] = until
        time = until
    return [end for end in ends if end is not None]


@pytest.mark.parametrize("seed", range(20))
def test_times_are_exact_and_the_capacity_is_never_exceeded(seed: int) -> None:
    draw = np.random.default_rng(seed)
    number = int(draw.integers(2, 9))
    starts, rates = draw.uniform(0, 2, number).tolist(), (10 ** draw.uniform(2.5, 4.5, number)).tolist()
    capacity = float(10 ** draw.uniform(3, 5))
    ends, events = ends_of(gateway(up=capacity), starts, rates)
    assert ends == pytest.approx([float(end) for end in exact_ends(starts, rates, capacity)], rel=1e-12)
    moments = sorted({time for event in events for time in (event.start_seconds, event.end_seconds)})
    for first in moments:  # what lies between two moments has passed between them
        for last in moments:
            passed = sum(BITS for event in events if first <= event.start_seconds and event.end_seconds <= last)
            assert passed <= capacity * max(0.0, last - first) * (1 + 1e-9)
    for event, own in zip(sorted(events, key=lambda event: event.who), rates, strict=True):
        assert event.end_seconds - event.start_seconds >= BITS / own * (1 - 1e-12)
    assert all(before < after for before, after in pairwise(moments))
