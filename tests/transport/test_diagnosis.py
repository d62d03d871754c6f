"""Each thing that can be wrong with TLS is said in a sentence of its own, and a server that is right is not blamed."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cutlayer.errors import ConfigError
from cutlayer.transport.certificates import issue_device, issue_server, make_authority, write_issued
from cutlayer.transport.diagnosis import check_authority, wrong_with
from cutlayer.transport.grpc_carrier import listen
from cutlayer.transport.tls import ServerTls

NOW = datetime.now(UTC)  # TLS looks at the machine's clock


def fleet_in(folder: Path, *names: str, then: datetime = NOW) -> Path:
    folder.mkdir()
    make_authority(folder, then)
    issue_server(folder, list(names) or ["localhost", "127.0.0.1"], then, days=2)
    return folder


def met(credentials: Any, *, of: Callable[[str], str | None]) -> str | None:
    """The fault that a device finds with a server of these credentials."""

    async def tried() -> str | None:
        async def attend(_carrier: object, _context: object) -> None:
            await asyncio.Event().wait()

        server, port = await listen(attend, "127.0.0.1:0", credentials)
        try:
            return await asyncio.to_thread(of, f"127.0.0.1:{port}")
        finally:
            await server.stop(None)

    return asyncio.run(tried())


def tls(folder: Path, *, certificates: bool = False) -> Any:
    return ServerTls(folder, require_client_certificate=certificates).credentials


def test_nothing_is_wrong_with_a_server_that_is_right_or_that_is_not_there(tmp_path: Path) -> None:
    fleet = fleet_in(tmp_path / "fleet")
    assert met(tls(fleet), of=lambda server: wrong_with(server, fleet / "ca.crt")) is None
    assert met(None, of=lambda server: wrong_with(server, None)) is None
    with socket.create_server(("127.0.0.1", 0)) as once:
        address = f"127.0.0.1:{once.getsockname()[1]}"
    assert wrong_with(address, fleet / "ca.crt") is None
    assert wrong_with(address, None) is None


def test_another_authority(tmp_path: Path) -> None:
    fleet, other = fleet_in(tmp_path / "fleet"), fleet_in(tmp_path / "other")
    said = met(tls(fleet), of=lambda server: wrong_with(server, other / "ca.crt"))
    assert "of another authority" in str(said)
    assert "Copy ca.crt from the fleet folder" in str(said)


def test_no_authority_where_tls_is_spoken(tmp_path: Path) -> None:
    said = met(tls(fleet_in(tmp_path / "fleet")), of=lambda server: wrong_with(server, None))
    assert str(said).startswith("join: expected TLS, which 127.0.0.1:")
    assert "--ca" in str(said)


def test_another_name(tmp_path: Path) -> None:
    fleet = fleet_in(tmp_path / "fleet", "fleet.example.org")
    said = met(tls(fleet), of=lambda server: wrong_with(server, fleet / "ca.crt"))
    assert "expected a server that is called 127.0.0.1" in str(said)
    assert "cutlayer fleet renew --host 127.0.0.1" in str(said)


def test_plain_text_where_tls_is_expected(tmp_path: Path) -> None:
    fleet = fleet_in(tmp_path / "fleet")
    said = met(None, of=lambda server: wrong_with(server, fleet / "ca.crt"))
    assert "a server that speaks none" in str(said)


def test_a_certificate_that_is_out_of_date(tmp_path: Path) -> None:
    fleet = fleet_in(tmp_path / "fleet", then=NOW - timedelta(days=9))
    said = met(tls(fleet), of=lambda server: wrong_with(server, fleet / "ca.crt"))
    assert "that is valid now" in str(said)


def test_a_device_that_should_have_a_certificate(tmp_path: Path) -> None:
    fleet = fleet_in(tmp_path / "fleet")
    files = tmp_path / "device.crt", tmp_path / "device.key"
    write_issued(*files, issue_device(fleet, "pi-1", NOW, days=2))
    said = met(tls(fleet, certificates=True), of=lambda server: wrong_with(server, fleet / "ca.crt"))
    assert "--certificate" in str(said)
    right = met(tls(fleet, certificates=True), of=lambda server: wrong_with(server, fleet / "ca.crt", *files))
    assert right is None


def test_an_authority_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("x")
    with pytest.raises(ConfigError, match="a file without a certificate"):
        check_authority(tmp_path / "ca.crt")
    with pytest.raises(ConfigError, match="No such file"):
        check_authority(tmp_path / "none.crt")
