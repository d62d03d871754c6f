"""A run of real processes that are killed; the ways in which the proxy misbehaves; what a leak looks like."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import fault_load
import fault_processes
import faults
from proxy import Proxy
from real_fleet import make_job


@pytest.mark.slow
def test_killed_processes_train_the_undisturbed_adapter(tmp_path: Path) -> None:
    job = make_job(tmp_path, devices=2, rounds=6, local_steps=3)
    plan = [fault_processes.Fault(0.1, "kill device", 0), fault_processes.Fault(0.1, "kill server", 0)]
    ended = asyncio.run(fault_processes.FleetUnderFire(job, tmp_path).play(plan))
    assert (ended.same, ended.trouble, ended.unaware) == (True, "", 0)
    assert "kill device" in ended.faults


def test_schedules_are_seeded() -> None:
    first, again, other = (fault_processes.schedule(seed, faults=20, devices=3) for seed in (1, 1, 2))
    assert first == again != other
    assert {fault.what for fault in first + other} == set(fault_processes.HARDEST)


def through_a_proxy(
    act: Callable[[Proxy, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> None:
    """`act` with a connection through a proxy to a server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        proxy = Proxy(server.sockets[0].getsockname()[1])
        await proxy.open()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        try:
            await act(proxy, reader, writer)
        finally:
            writer.close()
            await proxy.close()
            server.close()

    asyncio.run(run())


def test_the_proxy_carries_and_says_who_ended_it() -> None:
    async def act(proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"there")
        assert await reader.readexactly(5) == b"there"
        began = time.monotonic()
        writer.write_eof()
        assert await reader.read() == b""
        device, server = proxy.first_end("device", began), proxy.first_end("server", began)
        assert device is not None
        assert server is not None
        assert device <= server
        assert proxy.first_end("device", time.monotonic()) is None

    through_a_proxy(act)


def test_the_proxy_cuts() -> None:
    async def act(proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"there")
        await reader.readexactly(5)
        await proxy.cut(0.0)
        assert await reader.read() == b""

    through_a_proxy(act)


def test_the_proxy_delays_and_falls_silent() -> None:
    async def act(proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        proxy.delay_seconds = 0.05
        began = time.monotonic()
        writer.write(b"there")
        await reader.readexactly(5)
        assert time.monotonic() - began >= 0.1
        proxy.delay_seconds = 0.0
        silent = asyncio.ensure_future(proxy.silence(0.2))
        await asyncio.sleep(0)
        writer.write(b"there")
        await reader.readexactly(5)
        assert silent.done()

    through_a_proxy(act)


def test_growth_is_of_the_second_half() -> None:
    use = fault_load.Use([100, 150, 200, 200, 200, 200, 200, 201], [5] * 7 + [6])
    assert use.growth(use.resident_bytes) == 1
    assert fault_load.Use().growth([1, 1, 2, 2, 3, 3, 4, 4]) == 1


def test_a_kind_that_there_is_not() -> None:
    with pytest.raises(SystemExit, match="expected one of simulate, processes, liars, load, got 'earthquake'"):
        faults.main(["earthquake"])
