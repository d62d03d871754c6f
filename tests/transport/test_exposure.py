"""Nobody listens to the world by accident."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.transport.exposure import check_exposure, is_loopback


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)
    check_exposure(host, tls=False, authenticated=False, insecure=False)


OPEN = [
    "0.0.0.0",
    "::",
    "[::]",
    "",
    "*",
    "10.0.0.1",
    "8.8.8.8",
    "pi-1",
    "localhost.example",
    "::ffff:10.0.0.1",
    "127.1",
]


@pytest.mark.parametrize("host", OPEN)
def test_open_to_others(host: str) -> None:
    assert not is_loopback(host)
    check_exposure(host, tls=True, authenticated=True, insecure=False)
    check_exposure(host, tls=False, authenticated=False, insecure=True)
    with pytest.raises(ConfigError, match="--insecure"):
        check_exposure(host, tls=False, authenticated=False, insecure=False)


@pytest.mark.parametrize(
    ("tls", "authenticated", "says", "not_said"),
    [(False, True, "reads and changes", "can join"), (True, False, "can join", "reads and changes")],
)
def test_it_says_what_is_risked(tls: bool, authenticated: bool, says: str, not_said: str) -> None:
    with pytest.raises(ConfigError, match=says) as error:
        check_exposure("0.0.0.0", tls=tls, authenticated=authenticated, insecure=False)
    assert not_said not in str(error.value)
