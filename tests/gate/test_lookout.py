"""The lookout ends connections of strangers that are too old, too many or too loud, and of nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cutlayer.errors import Refused
from cutlayer.gate import door as doors
from cutlayer.gate.allowance import SHUT_BUT_FOR_ONE_IN, SHUT_SECONDS, STRANGER_BYTES, WASTED_AT_ONCE, WASTED_PER_SECOND
from cutlayer.gate.door import Admission, GrpcDoor, door_of
from cutlayer.gate.lookout import PROVING_SECONDS, Lookout
from cutlayer.gate.refusals import Refusals
from cutlayer.gate.roster import Roster
from cutlayer.transport.carrier import Carrier, CarrierLost
from cutlayer.transport.certificates import issue_server, make_authority
from cutlayer.transport.grpc_carrier import READ_BYTES, SERVER_OPTIONS, dial
from cutlayer.transport.sockets import Connection, Descriptor
from cutlayer.transport.tls import channel_credentials

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    """One of HTTP/2."""
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + body


class Port:
    """Connections of a port, as a test has them: identity -> what is known of it, None of what is none."""

    def __init__(self) -> None:
        self.at: dict[int, Connection | None] = {}
        self.looked = self.came = 0
        self.without_descriptors = False
        self.shut: list[list[str]] = []

    def come(self, *hosts: str, received: int = 0) -> list[int]:
        new = [self.came + number for number, _ in enumerate(hosts)]
        self.came += len(hosts)
        for identity, host in zip(new, hosts, strict=True):
            self.at[identity] = Connection(host, 1000 + identity, received)
        return new

    def opened(self) -> Iterator[Descriptor]:
        return (Descriptor(identity, identity) for identity in list(self.at))

    def connected(self, one: Descriptor, port: int, *, hang_up: bool = False) -> Connection | None:
        assert port == 7070
        self.looked += 1
        if self.without_descriptors:
            raise OSError(24, "none left")
        return self.at.pop(one.identity) if hang_up else self.at[one.identity]

    def lookout(self, **limits: float) -> Lookout:
        shut = self.shut_out
        return Lookout(7070, opened=self.opened, connected=self.connected, shut=shut, **limits)  # type: ignore[arg-type]

    def shut_out(self, port: int, hosts: Iterable[str], *, one_in: int) -> None:
        assert (port, one_in) == (7070, SHUT_BUT_FOR_ONE_IN)
        self.shut.append(sorted(hosts))

    def waste(self, lookout: Lookout, host: str, count: int, now: float) -> list[tuple[str, Refused]]:
        """So many connections of a host are seen, one at a look, and gone at the next."""
        ended = []
        for _ in range(count):
            [identity] = self.come(host)
            ended += lookout.look(now)
            del self.at[identity]
        return ended + lookout.look(now)


def reasons(ended: list[tuple[str, object]]) -> dict[str, str]:
    return {peer: error.reason for peer, error in ended}  # type: ignore[attr-defined]


def test_who_proves_nothing_in_time_is_hung_up_on() -> None:
    port = Port()
    lookout = port.lookout()
    port.come("10.0.0.1")
    assert lookout.look(0.0) == []
    assert lookout.look(PROVING_SECONDS) == []
    assert reasons(lookout.look(PROVING_SECONDS + 0.1)) == {"10.0.0.1:1000": "too-slow"}
    assert lookout.look(100.0) == []


def test_who_sends_more_than_it_takes_is_hung_up_on_at_once() -> None:
    port = Port()
    port.come("10.0.0.1", received=131_072)
    port.come("10.0.0.2", received=131_073)
    assert reasons(port.lookout().look(0.0)) == {"10.0.0.2:1001": "flood"}


def test_of_an_address_with_too_many_the_oldest_go() -> None:
    port = Port()
    lookout = port.lookout(per_address=2)
    port.come("10.0.0.1")
    lookout.look(0.0)
    others = port.come("10.0.0.1", "10.0.0.9")
    lookout.look(1.0)
    others += port.come("10.0.0.1")
    assert reasons(lookout.look(2.0)) == {"10.0.0.1:1000": "too-many"}
    assert list(port.at) == others


def test_of_too_many_in_all_the_oldest_go() -> None:
    port = Port()
    lookout = port.lookout(most=3)
    lookout.look(0.0)
    for second in range(5):
        port.come(f"10.0.0.{second}")
        lookout.look(float(second))
    assert sorted(one.host for one in port.at.values() if one) == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]


def test_a_device_that_has_proved_itself_is_nobodys_stranger_until_its_call_ends() -> None:
    port = Port()
    lookout = port.lookout()
    port.come("10.0.0.1", received=10**12)
    for _ in range(2):
        lookout.proved("10.0.0.1:1000")
    assert lookout.look(0.0) == lookout.look(10_000.0) == []
    looked = port.looked
    lookout.look(10_001.0)
    assert port.looked == looked, "of a device that is known nothing more is asked"
    lookout.ended("10.0.0.1:1000")
    assert lookout.look(10_002.0) == []
    lookout.ended("10.0.0.1:1000")
    assert lookout.look(10_003.0) == [], "what came of a device's training is no flood"
    port.at[0] = Connection("10.0.0.1", 1000, 10**12 + STRANGER_BYTES + 1)
    assert reasons(lookout.look(10_004.0)) == {"10.0.0.1:1000": "flood"}


def test_what_is_no_connection_of_the_port_is_looked_at_once() -> None:
    port = Port()
    port.at = {1: None, 2: None}
    lookout = port.lookout()
    for second in range(3):
        assert lookout.look(float(second)) == []
    assert port.looked == 2


def test_who_could_not_be_looked_at_is_at_the_next_look() -> None:
    port = Port()
    lookout = port.lookout()
    port.come("10.0.0.1", received=10**12)
    port.without_descriptors = True
    assert lookout.look(0.0) == []
    port.without_descriptors = False
    assert reasons(lookout.look(1.0)) == {"10.0.0.1:1000": "flood"}


def test_an_address_that_wastes_connections_is_shut_out_for_a_while() -> None:
    port = Port()
    lookout = port.lookout()
    port.waste(lookout, "10.0.0.9", 1, 0.0)
    assert reasons(port.waste(lookout, "10.0.0.1", WASTED_AT_ONCE, 0.0)) == {}
    assert reasons(port.waste(lookout, "10.0.0.1", 1, 0.0)) == {"10.0.0.1": "too-often"}
    lookout.look(SHUT_SECONDS - 0.1)
    assert port.shut == [["10.0.0.1"]]
    lookout.look(SHUT_SECONDS)
    assert port.shut == [["10.0.0.1"], []]


def test_who_wastes_few_connections_a_second_is_let_in_for_good() -> None:
    port = Port()
    lookout = port.lookout()
    for second in range(20):
        assert port.waste(lookout, "10.0.0.1", WASTED_PER_SECOND, float(second)) == []
    assert not port.shut


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_front_on_this_machine_is_never_shut_out(host: str) -> None:
    """Everybody comes from there."""
    port = Port()
    assert port.waste(port.lookout(), host, 2 * WASTED_AT_ONCE, 0.0) == []
    assert not port.shut


def test_devices_that_come_and_go_have_wasted_nothing() -> None:
    port = Port()
    lookout = port.lookout()
    for number in range(3 * WASTED_AT_ONCE):
        [identity] = port.come("10.0.0.1")
        lookout.look(0.0)
        lookout.proved(f"10.0.0.1:{1000 + identity}")
        if number % 2:
            lookout.look(0.0)
        lookout.ended(f"10.0.0.1:{1000 + identity}")
        del port.at[identity]
        assert lookout.look(0.0) == []
    assert not port.shut


def test_who_was_hung_up_on_for_others_number_has_wasted_nothing_and_a_flood_has() -> None:
    port = Port()
    lookout = port.lookout(most=1)
    for _ in range(2 * WASTED_AT_ONCE):
        port.come("10.0.0.1")
        lookout.look(0.0)
    assert not port.shut
    for _ in range(WASTED_AT_ONCE + 2):
        port.come("10.0.0.2", received=10**12)
        lookout.look(0.0)
    assert port.shut == [["10.0.0.2"]]


# ------------------------------------------------------------------ over real sockets


class Desk:
    """Says what it hears, until the connection ends."""

    def __init__(self) -> None:
        self.refusals = Refusals(lambda: 0.0)

    async def attend(self, carrier: Carrier, _device: str) -> None:
        with contextlib.suppress(CarrierLost):
            while True:
                await carrier.send(await carrier.receive())


needs_descriptors = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs descriptors that are listed")


@needs_descriptors
def test_idle_connections_and_a_flood_end_and_a_device_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(doors, "Lookout", lambda port: Lookout(port, per_address=8))

    async def work() -> None:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        door, desk = GrpcDoor("127.0.0.1:0", Admission(None), None, port.set_result), Desk()
        await door.open(desk)
        address = ("127.0.0.1", await port)
        carrier = await dial(f"127.0.0.1:{address[1]}", name="pi", token=None, credentials=None)
        await carrier.send(b"before")
        assert await carrier.receive() == b"before"
        idle = [await asyncio.open_connection(*address) for _ in range(30)]
        async with asyncio.timeout(10):
            ends = await asyncio.gather(*(_ended(reader) for reader, _ in idle[:22]))
        assert len(ends) == 22, "the oldest, all but eight"
        reader, loud = await asyncio.open_connection(*address)
        priority = b"".join(frame(2, 0, 2 * number + 1, struct.pack(">IB", 0, 1)) for number in range(1, 4000))
        async with asyncio.timeout(10):
            with contextlib.suppress(ConnectionError):
                loud.write(PREFACE + frame(4, 0, 0, b""))
                while not reader.at_eof():
                    loud.write(priority)
                    await loud.drain()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(reader.read(1000), 0.001)
        await carrier.send(b"after")
        assert await carrier.receive() == b"after"
        refused = desk.refusals.as_dict()["(stranger)"]
        assert refused["too-many"] >= 22
        assert refused["flood"] >= 1
        carrier.close()
        for writer in (loud, *(writer for _, writer in idle)):
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await door.close()

    asyncio.run(work())


async def _ended(reader: asyncio.StreamReader) -> None:
    while await reader.read(1000):
        pass


@needs_descriptors
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs filters of Linux's sockets")
def test_who_begins_tls_with_nonsense_is_soon_not_heard_and_a_device_stays(tmp_path: Path) -> None:
    """gRPC takes ten thousand of them a second, and a core for it."""
    now = datetime.now(UTC)
    roster = Roster.create(tmp_path / "fleet")
    make_authority(tmp_path / "fleet", now)
    issue_server(tmp_path / "fleet", ["127.0.0.1"], now)
    token = roster.add("pi", when=now)

    async def work() -> None:
        port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        door, desk = door_of("127.0.0.1:0", tmp_path / "fleet", port.set_result), Desk()
        await door.open(desk)
        credentials = channel_credentials(tmp_path / "fleet" / "ca.crt")
        carrier = await dial(f"127.0.0.1:{await port}", name="pi", token=token, credentials=credentials)
        await carrier.send(b"before")
        assert await carrier.receive() == b"before"
        async with asyncio.timeout(30):
            await asyncio.to_thread(_begin_until_shut_out, await port)
        await carrier.send(b"after")
        assert await carrier.receive() == b"after"
        assert desk.refusals.as_dict()["(stranger)"]["too-often"] >= 1
        carrier.close()
        await door.close()

    asyncio.run(work())


def _begin_until_shut_out(port: int) -> None:
    while True:
        try:
            stranger = socket.create_connection(("127.0.0.1", port), 0.5, source_address=("127.0.0.2", 0))
        except TimeoutError:
            return
        with stranger, contextlib.suppress(ConnectionError):
            stranger.sendall(b"\x16\x03\x01\x02\x00\x01" + bytes(600))


def test_grpc_reads_no_more_ahead_than_it_is_told() -> None:
    """The option is of grpcio 1.84 and later: without it, one connection of a stranger takes two hundred megabytes."""
    assert ("grpc.experimental.tcp_max_read_buffer_size", READ_BYTES) in SERVER_OPTIONS


SERVER = """
import asyncio, sys
from cutlayer.gate.door import Admission, GrpcDoor
from cutlayer.gate.refusals import Refusals
class Desk:
    refusals = Refusals(lambda: 0.0)
    async def attend(self, carrier, device): await carrier.receive()
async def main():
    await GrpcDoor("127.0.0.1:0", Admission(None), None, lambda port: print(port, flush=True)).open(Desk())
    await asyncio.to_thread(sys.stdin.readline)
asyncio.run(main())
"""


def test_what_a_stranger_says_never_reaches_the_terminal(tmp_path: Path) -> None:
    """GOAWAY has room for text, and gRPC logs it as it is: line ends and all."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    with open(tmp_path / "said", "w+b") as said:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, env=environment
        )
        assert server.stdin is not None
        assert server.stdout is not None
        port = int(server.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as stranger, contextlib.suppress(ConnectionError):
            stranger.sendall(PREFACE + frame(4, 0, 0, b""))
            text = b"\nerror: FORGED: run rm -rf\n\x1b[31m"
            stranger.sendall(frame(7, 0, 0, struct.pack(">II", 0, 2) + text) * 20)
            while stranger.recv(1000):
                pass
        server.communicate(b"\n", timeout=20)
        said.seek(0)
        assert b"FORGED" not in said.read()
