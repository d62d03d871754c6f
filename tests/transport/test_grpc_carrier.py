"""The carrier over gRPC: packets arrive as they were sent, and who needs no check of that makes none."""

from __future__ import annotations

import asyncio
import socket

import grpc.aio
import pytest

from cutlayer.errors import ConfigError, JoinError
from cutlayer.transport.address import joined
from cutlayer.transport.carrier import Carrier, CarrierLost
from cutlayer.transport.grpc_carrier import _is_here, dial, dialler, listen


def test_packets_pass_and_plain_text_within_this_machine_is_intact() -> None:
    async def work() -> None:
        met: list[Carrier] = []

        async def attend(carrier: Carrier, _context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            met.append(carrier)
            await carrier.send(await carrier.receive())
            with pytest.raises(CarrierLost):
                await carrier.receive()

        server, port = await listen(attend, "127.0.0.1:0", None)
        carrier = await dial(f"127.0.0.1:{port}", name="pi", token=None, credentials=None)
        await carrier.send(b"a packet")
        assert await carrier.receive() == b"a packet"
        assert [carrier.intact, *(other.intact for other in met)] == [True, True]
        carrier.close()
        await server.stop(0)

    asyncio.run(work())


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_a_proxy_in_the_environment_sees_nothing_of_this_machine(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.setblocking(False)
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)

        async def work() -> None:
            async def attend(carrier: Carrier, _context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
                await carrier.send(await carrier.receive())

            server, port = await listen(attend, joined(host, 0), None)
            carrier = await dial(joined(host, port), name="pi", token="secret", credentials=None)
            await carrier.send(b"a packet")
            assert await carrier.receive() == b"a packet"
            carrier.close()
            await server.stop(0)

        asyncio.run(work())
        with pytest.raises(BlockingIOError):
            proxy.accept()


def test_a_device_that_is_sent_on_dials_the_other_port_of_the_same_host() -> None:
    async def work() -> None:
        async def attend(carrier: Carrier, _context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            await carrier.send(b"here")
            await carrier.receive()

        server, port = await listen(attend, "127.0.0.1:0", None)
        call = dialler("127.0.0.1:1", name="pi", token=None, credentials=None)  # where nobody is
        for address in (f":{port}", f"127.0.0.1:{port}"):
            carrier = await call(address)
            assert await carrier.receive() == b"here"
            carrier.close()
        await server.stop(0)

    asyncio.run(work())


def test_a_device_is_sent_to_no_other_machine_without_tls_unless_its_owner_lets_it() -> None:
    async def work() -> None:
        with pytest.raises(JoinError, match=r"got none for 192\.0\.2\.7:7071"):
            await dialler("127.0.0.1:7070", name="pi", token="secret", credentials=None)("192.0.2.7:7071")
        secure = grpc.ssl_channel_credentials()
        for options in ({"credentials": secure}, {"credentials": None, "insecure": True}):
            carrier = await dialler("127.0.0.1:7070", name="pi", token=None, **options)("192.0.2.7:7071")
            carrier.close()

    asyncio.run(work())


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "[::1]", "169.254.169.254", "0.0.0.0"]
)
def test_a_server_elsewhere_leads_no_device_to_itself_in_plain_text(host: str) -> None:
    """However the address is written: it is what it resolves to that counts, and that is dialled."""

    async def work() -> None:
        call = dialler("192.0.2.7:7070", name="pi", token="secret", credentials=None, insecure=True)
        with pytest.raises(JoinError, match="a machine like the server's"):
            await call(f"{host}:7071")
        with pytest.raises(ConfigError, match="HOST:PORT"):
            await call("unix:/run/a.sock")

    asyncio.run(work())


def test_a_defect_of_the_server_ends_the_connection_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        async def attend(_carrier: Carrier, _context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            raise KeyError("a defect")

        server, port = await listen(attend, "127.0.0.1:0", None)
        carrier = await dial(f"127.0.0.1:{port}", name="pi", token=None, credentials=None)
        with pytest.raises(CarrierLost):
            await carrier.receive()
        carrier.close()
        await server.stop(0)

    asyncio.run(work())
    (record,) = [record for record in caplog.records if record.name == "cutlayer.wire"]
    assert record.exc_info is not None
    assert "127.0.0.1" in record.getMessage()


@pytest.mark.parametrize(
    ("peer", "here"),
    [
        ("ipv4:127.0.0.1:4711", True),
        ("ipv6:%5B::1%5D:4711", True),
        ("ipv6:[::1]:4711", True),
        ("ipv4:192.168.1.7:4711", False),
        ("ipv6:%5Bfe80::1%5D:4711", False),
        ("unknown", False),
    ],
)
def test_who_is_of_this_machine(peer: str, *, here: bool) -> None:
    assert _is_here(peer) is here
