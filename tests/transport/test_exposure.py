"""Nobody listens to the world by accident."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.transport.exposure import check_exposure, is_loopback, led_astray


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


@pytest.mark.parametrize(
    ("address", "server", "astray"),
    [
        ("127.0.0.1", "10.0.0.7", True),
        ("::1", "10.0.0.7", True),
        ("::ffff:127.0.0.1", "10.0.0.7", True),
        ("0.0.0.0", "10.0.0.7", True),
        ("::", "10.0.0.7", True),
        ("169.254.1.1", "10.0.0.7", True),
        ("fe80::1%eth0", "10.0.0.7", True),
        ("169.254.169.254", "169.254.0.7", True),
        ("fd00:ec2::254", "fd00::7", True),
        ("100.100.100.200", "100.100.0.7", True),
        ("224.0.0.1", "10.0.0.7", True),
        ("2002:7f00:1::", "10.0.0.7", True),
        ("127.0.0.1", "127.0.1.1", False),
        ("fe80::2", "fe80::1", False),
        ("10.0.0.8", "10.0.0.7", False),
        ("10.0.0.8", "127.0.0.1", False),
        ("2001:db8::8", "10.0.0.7", False),
    ],
)
def test_where_a_server_may_lead_in_plain_text(address: str, server: str, astray: bool) -> None:
    assert (led_astray([address], [server]) is not None) is astray
    assert (led_astray(["10.0.0.9", address], [server]) is not None) is astray, "each of its addresses counts"
