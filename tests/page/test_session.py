"""The page beside a run, from an address: what it needs where others can connect, and what is said."""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
from cutlayer.errors import ConfigError
from cutlayer.page import session
from cutlayer.page.asked import PageAsked
from cutlayer.page.live import Live
from cutlayer.page.session import TOKEN, page_beside
from cutlayer.transport.certificates import issue_server, make_authority
from made_up_runs import config


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    """The files of a fleet's server."""
    folder = tmp_path / "fleet"
    folder.mkdir()
    make_authority(folder, datetime.now(UTC))
    issue_server(folder, ["127.0.0.1", "fleet.example.org"], datetime.now(UTC))
    return folder


def beside(
    folder: Path,
    address: str,
    tls: Path | None,
    said: Callable[[str], None],
    *,
    simulated: bool,
    shows_token: bool = True,
) -> AbstractContextManager[Live]:
    """The page of a made-up run."""
    return page_beside(config(folder, 1), PageAsked(address, tls), said, shows_token=shows_token, simulated=simulated)


def status_of(port: int, context: ssl.SSLContext | None = None, **headers: str) -> int:
    """The HTTP status of the page."""
    connection = (
        http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
        if context
        else http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    )
    try:
        connection.request("GET", "/", headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_on_this_machine_it_is_there_without_more(tmp_path: Path) -> None:
    said: list[str] = []
    with beside(tmp_path, "127.0.0.1:0", None, said.append, simulated=True):
        found = re.fullmatch(r"page: http://127\.0\.0\.1:(\d+)/", *said)
        assert found
        assert status_of(int(found[1])) == 200
    with pytest.raises(ConnectionError):
        status_of(int(found[1]))


def test_where_its_own_port_is_taken_it_takes_a_free_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(session, "DEFAULT_PORT", port)
        with beside(tmp_path, "", None, said.append, simulated=True):
            assert not said[0].endswith(f":{port}/")
        with (
            pytest.raises(ConfigError, match=rf"--page: expected an address .* got 127\.0\.0\.1:{port} \("),
            beside(tmp_path, f"127.0.0.1:{port}", None, said.append, simulated=True),
        ):
            pass


def test_others_can_connect_over_tls_and_by_the_token_alone(
    tmp_path: Path, fleet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.delenv(TOKEN, raising=False)
    with beside(tmp_path, "0.0.0.0:0", fleet, said.append, simulated=False):
        found = re.fullmatch(r"page: https://127\.0\.0\.1:(\d+)/\?token=([\w-]{43})", *said)
        assert found
        context = ssl.create_default_context(cafile=str(fleet / "ca.crt"))
        assert status_of(int(found[1]), context) == 401
        assert status_of(int(found[1]), context, Authorization=f"Bearer {found[2]}") == 200
        assert status_of(int(found[1]), context, Host="fleet.example.org:1") == 401, "a name of the certificate"
        assert status_of(int(found[1]), context, Host="0.0.0.0") == 421


def test_without_tls_others_cannot(tmp_path: Path, fleet: Path) -> None:
    for address in ("0.0.0.0:0", "fleet.example.org:7072", "[::]:0"):
        with (
            pytest.raises(ConfigError, match="--page: expected TLS where others can connect"),
            beside(tmp_path, address, None, print, simulated=False),
        ):
            pass
    (fleet / "server.key").unlink()
    with (
        pytest.raises(ConfigError, match=r"--page-tls: expected a folder .* without server\.key"),
        beside(tmp_path, "0.0.0.0:0", fleet, print, simulated=False),
    ):
        pass


def test_a_token_that_somebody_has_chosen_is_long(tmp_path: Path, fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setenv(TOKEN, "x" * 40)
    with beside(tmp_path, "0.0.0.0:0", fleet, said.append, simulated=False):
        assert said[0].endswith(f"/ with ?token= and the token of {TOKEN}")
        assert "x" * 40 not in said[0]
    for short in ("x" * 31, "x" * 31 + "&"):
        monkeypatch.setenv(TOKEN, short)
        with (
            pytest.raises(ConfigError, match=rf"{TOKEN}: expected at least 32 letters") as raised,
            beside(tmp_path, "0.0.0.0:0", fleet, said.append, simulated=False),
        ):
            pass
        assert short not in str(raised.value)


def test_no_token_goes_where_a_log_may_be(tmp_path: Path, fleet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.delenv(TOKEN, raising=False)
    with (
        pytest.raises(ConfigError, match=rf"{TOKEN}: expected a token for the page, .* got none"),
        beside(tmp_path, "0.0.0.0:0", fleet, said.append, simulated=False, shows_token=False),
    ):
        pass
    monkeypatch.setenv(TOKEN, "x" * 40)
    with beside(tmp_path, "0.0.0.0:0", fleet, said.append, simulated=False, shows_token=False):
        pass
    assert "x" * 40 not in said[0]
    with beside(tmp_path, "127.0.0.1:0", None, said.append, simulated=False, shows_token=False):
        assert said[1].endswith("/")


def test_a_certificate_that_is_none_is_told(tmp_path: Path, fleet: Path) -> None:
    (fleet / "server.crt").write_text("no certificate")
    with (
        pytest.raises(ConfigError, match=r"--page-tls: expected in .* a certificate and its key, got "),
        beside(tmp_path, "0.0.0.0:0", fleet, print, simulated=False),
    ):
        pass


def test_an_error_of_the_run_passes(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="of the run"),
        beside(tmp_path, "127.0.0.1:0", None, print, simulated=True),
    ):
        raise RuntimeError("of the run")
