"""The modelled connection: in order, after the latency, and it ends for both."""

from __future__ import annotations

import asyncio

import pytest

from cutlayer.fleet.clock import now, run_virtual
from cutlayer.testing.carrier import modelled_carriers
from cutlayer.transport.carrier import CarrierLost


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
        waiting = asyncio.create_task(one.receive())
        await asyncio.sleep(0.1)
        await two.send(b"nobody reads it")
        one.close()
        one.close()
        with pytest.raises(CarrierLost):
            await waiting
        assert await two.receive() == b"under way"
        with pytest.raises(CarrierLost):
            await two.receive()
        assert now() == 0.6, "the end comes after what was sent, and as late"
        for end in (one, two):
            with pytest.raises(CarrierLost):
                await end.send(b"more")
            with pytest.raises(CarrierLost):
                await end.receive()

    run_virtual(work())


def test_the_last_words_arrive_and_are_read_later() -> None:
    async def work() -> None:
        one, two = modelled_carriers(0.5)
        await one.send(b"farewell")
        one.close()
        await asyncio.sleep(1.0)
        with pytest.raises(CarrierLost):
            await two.send(b"wait")
        assert await two.receive() == b"farewell"
        with pytest.raises(CarrierLost):
            await two.receive()

    run_virtual(work())
