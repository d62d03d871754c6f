"""An address is put together and taken apart in one place, and what is none is one line."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.transport.address import host_of, joined, parted


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "2001:db8::7", "pi-1", "fleet.example.org"])
@pytest.mark.parametrize("port", [0, 1, 65535])
def test_what_is_put_together_is_taken_apart(host: str, port: int) -> None:
    address = joined(host, port)
    assert parted(address, "join") == (host, port)
    assert host_of(address) == host
    assert joined(f"[{host}]", port) == f"[{host}]:{port}"


@pytest.mark.parametrize(
    "address", ["localhost", "localhost:", ":7070", "::1:7070", "::1", "[]:1", "a:b", "a:-1", "a:٣"]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match=r"join: expected HOST:PORT, an IPv6 address in brackets, got "):
        parted(address, "join")


@pytest.mark.parametrize("port", [65536, 99999, 10**30])
def test_a_port_that_there_is_not(port: int) -> None:
    with pytest.raises(ConfigError, match="expected a port up to 65535"):
        parted(f"localhost:{port}", "join")
    with pytest.raises(ConfigError, match="serve: expected a port from 0 to 65535"):
        joined("localhost", port, "serve")
