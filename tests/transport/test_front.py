"""A front before the server: nginx with our example of its configuration."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cutlayer.gate.door import GrpcDoor, door_of
from cutlayer.gate.refusals import Refusals
from cutlayer.gate.roster import Roster
from cutlayer.transport.carrier import Carrier, CarrierLost
from cutlayer.transport.certificates import issue_server, make_authority
from cutlayer.transport.grpc_carrier import dial
from cutlayer.transport.tls import channel_credentials

CONFIG = Path(__file__).parents[2] / "examples" / "front" / "nginx.conf"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/sbin")
NOW = datetime.now(UTC)
PACKETS = (b"hello", os.urandom(2**21), b"")

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs nginx")


class Desk:
    """Says what it hears, until the connection ends."""

    def __init__(self) -> None:
        self.refusals = Refusals(lambda: 0.0)

    async def attend(self, carrier: Carrier, _device: str) -> None:
        with suppress(CarrierLost):
            while True:
                await carrier.send(await carrier.receive())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


@contextmanager
def front(fleet: Path, behind: int, folder: Path) -> Iterator[int]:
    """The port of an nginx with the example's configuration, but for paths, ports and how long a stranger may take."""
    port, text = free_port(), CONFIG.read_text()
    for old, new in (
        ("listen 7070", f"listen 127.0.0.1:{port}"),
        ("127.0.0.1:7071", f"127.0.0.1:{behind}"),
        ("/etc/cutlayer/fleet", str(fleet)),
        ("fleet.example.org", "localhost"),
        ("client_header_timeout 10s", "client_header_timeout 1s"),
        ("access_log off;", "access_log off;" + _kept_in(folder)),
    ):
        assert old in text
        text = text.replace(old, new)
    config = folder / "nginx.conf"
    config.write_text(f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/errors;\n{text}")
    with open(folder / "said", "wb") as said:
        process = subprocess.Popen([str(NGINX), "-p", str(folder), "-c", str(config)], stdout=said, stderr=said)
    try:
        end = time.monotonic() + 30
        while time.monotonic() < end:
            assert process.poll() is None, (folder / "said").read_text()
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
        yield port
    finally:
        process.terminate()
        process.wait()


def _kept_in(folder: Path) -> str:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "".join(f" {kind}_temp_path {folder}/{kind};" for kind in kinds)


def test_a_device_passes_and_a_stranger_does_not(tmp_path: Path) -> None:
    fleet, folder = tmp_path / "fleet", tmp_path / "front"
    folder.mkdir()
    roster = Roster.create(fleet)
    make_authority(fleet, NOW)
    issue_server(fleet, ["localhost", "127.0.0.1"], NOW)
    token, credentials = roster.add("pi-1", when=NOW), channel_credentials(fleet / "ca.crt")
    desk = Desk()

    async def work() -> None:
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        door: GrpcDoor = door_of("127.0.0.1:0", fleet, listening.set_result)
        await door.open(desk)
        with front(fleet, await listening, folder) as port:
            address = f"127.0.0.1:{port}"
            carrier = await dial(address, name="pi-1", token=token, credentials=credentials)
            idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
            for packet in PACKETS:
                await carrier.send(packet)
                assert await carrier.receive() == packet
            async with asyncio.timeout(20):  # who says nothing is parted with, by nginx, and the server never knows
                assert await asyncio.gather(*(reader.read() for reader, _ in idle)) == [b""] * len(idle)
            assert desk.refusals.as_dict() == {}
            await carrier.send(b"still here")
            assert await carrier.receive() == b"still here"
            other = await dial(address, name="pi-1", token="another", credentials=credentials)
            with suppress(CarrierLost):
                while True:
                    await other.receive()
            assert desk.refusals.as_dict() == {"(stranger)": {"wrong-token": 1}}
            for one in (carrier, other):
                one.close()
            for _, writer in idle:
                writer.close()
                await writer.wait_closed()
        await door.close()

    asyncio.run(work())


def test_the_example_says_what_the_server_calls_itself() -> None:
    assert re.search(r"location = /cutlayer\.Fleet/Attend ", CONFIG.read_text())
