"""The modelled connection: in order, after the latency, and it ends for both."""

from __future__ import annotations

import asyncio

import pytest

from cutlayer.fleet.carrier import modelled_carriers
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.wire.carrier import CarrierLost


def test_packets_arrive_in_order_after_the_latency() -> None:
    async def work() -> None:
        one, two = modelled_carriers(0.5)
        for number in range(10):
            await one.send(bytes([number]))
        assert now() == 0.0
        assert [await two.receive() for _ in range(10)] == [bytes([number]) for number in range(10)]
        assert now() == 0.5
        await two.send(b"back")
        assert await one.receive() == b"back"

    run_virtual(work())


def test_one_end_closes_and_both_notice() -> None:
    async def work() -> None:
        one, two = modelled_carriers(0.5)
        await one.send(b"under way")
        waiting = asyncio.create_task(two.receive())
        await asyncio.sleep(0.1)
        one.close()
        one.close()
        with pytest.raises(CarrierLost):
            await waiting
        for end in (one, two):
            with pytest.raises(CarrierLost):
                await end.send(b"more")
            with pytest.raises(CarrierLost):
                await end.receive()
        await asyncio.sleep(1.0)  # what was under way arrives nowhere

    run_virtual(work())
