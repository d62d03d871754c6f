"""Listening while working: nothing is lost, nothing is waited for."""

from __future__ import annotations

import asyncio

from cutlayer.device.attentive import Attentive
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.link import modelled_link
from cutlayer.testing.playground import fleet_of
from cutlayer.wire.messages import Close, Finish

PROFILE = fleet_of(1).devices[0]
CLOSE, FINISH = Close("run", 0, True, "deadline"), Finish("run", 1, "done")


def test_what_has_come_is_heard_and_what_has_not_is_not_waited_for() -> None:
    async def program() -> None:
        device_end, server_end = modelled_link(PROFILE, lambda _event: None)
        async with Attentive(device_end) as link:
            link.begin()
            assert link.waiting() is None
            await server_end.send(CLOSE)
            await asyncio.sleep(1.0)
            assert link.waiting() is CLOSE
            assert link.waiting() is None
            await server_end.send(FINISH)
            assert await link.receive() is FINISH
            assert link.bytes_received == server_end.bytes_sent > 0
            await link.send(FINISH)
            assert link.bytes_sent == device_end.bytes_sent > 0

    run_virtual(program())


def test_a_message_that_nobody_asked_for_is_the_next_one() -> None:
    """Whether it comes while somebody listens or while somebody receives."""

    async def program() -> None:
        device_end, server_end = modelled_link(PROFILE, lambda _event: None)
        async with Attentive(device_end) as link:
            for delay in (0.0, 5.0):
                link.begin()
                link.begin()
                start = now()
                asyncio.get_running_loop().call_later(delay, asyncio.ensure_future, server_end.send(CLOSE))
                await asyncio.sleep(1.0)
                assert await link.receive() is CLOSE
                assert now() - start >= max(1.0, delay)

    run_virtual(program())


def test_it_stops_listening_at_its_end() -> None:
    async def program() -> None:
        device_end, server_end = modelled_link(PROFILE, lambda _event: None)
        async with Attentive(device_end) as link:
            link.begin()
            await asyncio.sleep(1.0)
        await server_end.send(CLOSE)
        assert await device_end.receive() is CLOSE, "a listener that was left behind would have taken it"

    run_virtual(program())
