"""Over real sockets on loopback: who is heard, who is not, and by what name."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import ssl
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from cutlayer.errors import ConfigError
from cutlayer.files import write_atomically
from cutlayer.transport.certificates import Issued, issue_device, issue_server, make_authority, write_issued
from cutlayer.transport.tls import Proved, ServerTls, channel_credentials, proved

NOW = datetime.now(UTC)  # TLS looks at the machine's clock
METHOD = "/cutlayer.Test/Name"


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    folder = tmp_path / "fleet"
    folder.mkdir()
    make_authority(folder, NOW)
    issue_server(folder, ["localhost", "127.0.0.1"], NOW)
    return folder


def written(folder: Path, issued: Issued) -> tuple[Path, Path]:
    files = folder / "device.crt", folder / "device.key"
    write_issued(*files, issued)
    return files


async def asked(
    credentials: grpc.ServerCredentials, ask: Callable[[int], Awaitable[Any]]
) -> tuple[Any, list[Proved | None]]:
    """The answer that `ask(port)` gets of a server with these credentials; and whom the server saw."""
    seen: list[Proved | None] = []

    async def name(_request: bytes, context: Any) -> bytes:
        seen.append(proved(context.auth_context()))
        return b"heard"

    server = grpc.aio.server()
    handlers = {"Name": grpc.unary_unary_rpc_method_handler(name)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("cutlayer.Test", handlers),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        return await ask(port), seen
    finally:
        await server.stop(None)


def call(credentials: grpc.ChannelCredentials | None, host: str = "127.0.0.1") -> Callable[[int], Awaitable[str]]:
    """Asks with these credentials, None for plain text: `heard`, or the status of the refusal."""

    async def ask(port: int) -> str:
        address = f"{host}:{port}"
        channel = (
            grpc.aio.insecure_channel(address) if credentials is None else grpc.aio.secure_channel(address, credentials)
        )
        async with channel:
            try:
                answer: bytes = await channel.unary_unary(METHOD)(b"", timeout=5)
            except grpc.aio.AioRpcError as error:
                return str(error.code().name)
            return answer.decode()

    return ask


def test_a_certificate_proves_a_name(fleet: Path, tmp_path: Path) -> None:
    issued = issue_device(fleet, "pi-1", NOW)
    credentials = channel_credentials(fleet / "ca.crt", *written(tmp_path, issued))
    required = ServerTls(fleet, require_client_certificate=True).credentials
    answer, seen = asyncio.run(asked(required, call(credentials)))
    assert (answer, seen) == ("heard", [Proved("pi-1", issued.fingerprint)])


def test_without_certificates_nobody_has_a_name(fleet: Path, tmp_path: Path) -> None:
    certificate = written(tmp_path, issue_device(fleet, "pi-1", NOW))
    for credentials in (channel_credentials(fleet / "ca.crt"), channel_credentials(fleet / "ca.crt", *certificate)):
        plain = ServerTls(fleet, require_client_certificate=False).credentials
        answer, seen = asyncio.run(asked(plain, call(credentials)))
        assert (answer, seen) == ("heard", [None])


def refused(fleet: Path, credentials: grpc.ChannelCredentials | None, *, require: bool = True) -> bool:
    server = ServerTls(fleet, require_client_certificate=require).credentials
    answer, seen = asyncio.run(asked(server, call(credentials)))
    return answer == "UNAVAILABLE" and not seen


def test_who_comes_by_thousands_a_second_makes_no_file_be_looked_at(
    fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = ServerTls(fleet, require_client_certificate=False, clock=lambda: 5.0)
    looks: list[int] = []
    monkeypatch.setattr(tls, "_when_written", lambda: looks.append(1) or tls._written)
    for _ in range(1000):
        assert tls._begin() is None
    assert (len(looks), tls.begun) == (1, 1000)


def test_a_renewed_certificate_is_shown_to_whoever_comes_a_second_later(fleet: Path) -> None:
    """One that is half written is not: the old one stays."""
    seconds = itertools.count(1.0)
    tls = ServerTls(fleet, require_client_certificate=False, clock=lambda: next(seconds))
    shown: list[str] = []

    async def look(port: int) -> None:
        shown.append(await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port)))

    async def ask(port: int) -> None:
        await look(port)
        old = (fleet / "server.key").read_bytes()
        issue_server(fleet, ["127.0.0.1"], NOW)
        new = (fleet / "server.key").read_bytes()
        write_atomically(fleet / "server.key", old)
        await look(port)
        write_atomically(fleet / "server.key", new)
        await look(port)
        shutil.rmtree(fleet)
        await look(port)

    first = (fleet / "server.crt").read_text()
    asyncio.run(asked(tls.credentials, ask))
    assert shown[0] == shown[1] == first
    assert shown[2] == shown[3] != first


@pytest.mark.parametrize("require", [True, False])
def test_connections_are_counted_whatever_becomes_of_them(require: bool, fleet: Path, tmp_path: Path) -> None:
    tls = ServerTls(fleet, require_client_certificate=require)
    believed = channel_credentials(fleet / "ca.crt", *written(tmp_path, issue_device(fleet, "pi-1", NOW)))

    async def ask(port: int) -> list[int]:
        counts = [tls.begun]
        for credentials in (believed, believed, None):
            await call(credentials)(port)
            counts.append(tls.begun)
        return counts

    counts, seen = asyncio.run(asked(tls.credentials, ask))
    assert counts[:3] == [0, 1, 2]
    assert counts[3] > 2, "plain text; gRPC tries more than once"
    assert len(seen) == 2


def test_no_certificate(fleet: Path) -> None:
    assert refused(fleet, channel_credentials(fleet / "ca.crt"))


def test_an_expired_certificate(fleet: Path, tmp_path: Path) -> None:
    expired = issue_device(fleet, "pi-1", NOW - timedelta(days=10), days=9)
    assert refused(fleet, channel_credentials(fleet / "ca.crt", *written(tmp_path, expired)))


def test_a_certificate_of_another_fleet(fleet: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    make_authority(other, NOW)
    foreign = written(tmp_path, issue_device(other, "pi-1", NOW))
    assert refused(fleet, channel_credentials(fleet / "ca.crt", *foreign))


def test_the_servers_certificate_is_no_devices(fleet: Path) -> None:
    assert refused(fleet, channel_credentials(fleet / "ca.crt", fleet / "server.crt", fleet / "server.key"))


def test_plain_text(fleet: Path) -> None:
    assert refused(fleet, None, require=False)


def test_a_device_does_not_believe_another_server(fleet: Path, tmp_path: Path) -> None:
    """The server is of another fleet; or only a device, called as the server is; or dialled by another name."""
    other = tmp_path / "other"
    other.mkdir()
    make_authority(other, NOW)
    assert refused(fleet, channel_credentials(other / "ca.crt"), require=False)
    posing = issue_device(fleet, "127.0.0.1", NOW)
    write_issued(fleet / "server.crt", fleet / "server.key", posing)
    assert refused(fleet, channel_credentials(fleet / "ca.crt"), require=False)
    issue_server(fleet, ["pi.example"], NOW)
    assert refused(fleet, channel_credentials(fleet / "ca.crt"), require=False)


def test_files_that_are_not_there(fleet: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cutlayer fleet init"):
        ServerTls(tmp_path, require_client_certificate=False)
    with pytest.raises(ConfigError, match="Name both files"):
        channel_credentials(fleet / "ca.crt", fleet / "server.crt")
    with pytest.raises(ConfigError, match=r"nowhere\.crt"):
        channel_credentials(fleet / "nowhere.crt")
