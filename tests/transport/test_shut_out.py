"""A port that is shut to some hosts: the system drops what would begin a connection from there, and nothing else."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from cutlayer.transport.shut_out import MOST_HOSTS, shut_out
from cutlayer.transport.sockets import listeners

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs filters of Linux's sockets")

SECONDS = 0.2
"""A connection on one machine begins in none; one whose beginning is dropped is tried again after a second."""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def port_of(listener: socket.socket) -> int:
    port: int = listener.getsockname()[1]
    return port


def gets_in(listener: socket.socket, host: str, to: str = "127.0.0.1") -> bool:
    try:
        with socket.create_connection((to, port_of(listener)), SECONDS, source_address=(host, 0)):
            return True
    except TimeoutError:
        return False


def test_who_is_shut_out_cannot_begin_and_others_can(listener: socket.socket) -> None:
    shut_out(port_of(listener), ["127.0.0.9", "127.0.0.2", "10.0.0.1", "fd00::1"], one_in=0)
    assert not gets_in(listener, "127.0.0.2")
    assert gets_in(listener, "127.0.0.3")
    shut_out(port_of(listener), ["127.0.0.3"], one_in=0)
    assert gets_in(listener, "127.0.0.2"), "in place of those before"
    assert not gets_in(listener, "127.0.0.3")
    shut_out(port_of(listener), [], one_in=0)
    assert gets_in(listener, "127.0.0.3")


def test_connections_that_there_are_stay(listener: socket.socket) -> None:
    with socket.create_connection(("127.0.0.1", port_of(listener)), SECONDS) as before:
        held, _ = listener.accept()
        with held:
            shut_out(port_of(listener), ["127.0.0.1"], one_in=0)
            before.sendall(b"still here")
            assert held.recv(10) == b"still here"


def test_of_so_many_tries_one_passes(listener: socket.socket) -> None:
    shut_out(port_of(listener), ["127.0.0.2"], one_in=1)
    assert gets_in(listener, "127.0.0.2")
    shut_out(port_of(listener), ["127.0.0.2"], one_in=2**31)
    assert not gets_in(listener, "127.0.0.2")


def test_no_more_hosts_than_a_program_may_have(listener: socket.socket) -> None:
    hosts = [f"10.0.0.{number}" for number in range(MOST_HOSTS - 1)]
    shut_out(port_of(listener), [*hosts, "127.0.0.2", "127.0.0.3"], one_in=16)
    shut_out(port_of(listener), [*hosts, "127.0.0.2", "127.0.0.3"], one_in=0)
    assert not gets_in(listener, "127.0.0.2")
    assert gets_in(listener, "127.0.0.3")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="needs IPv6")
def test_both_kinds_of_addresses_at_one_socket() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        shut_out(port_of(listener), ["127.0.0.2"], one_in=0)
        assert not gets_in(listener, "127.0.0.2")
        assert gets_in(listener, "::1", "::1")
        shut_out(port_of(listener), ["fd00::1", "::1"], one_in=0)
        assert not gets_in(listener, "::1", "::1")
        assert gets_in(listener, "127.0.0.2")


def test_other_ports_are_not_its_matter(listener: socket.socket) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, socket.socket(type=socket.SOCK_DGRAM):
        found = list(listeners(port_of(listener)))
        assert [one.getsockname() for one in found] == [listener.getsockname()]
        for one in found:
            one.close()
        shut_out(port_of(listener), ["127.0.0.1"], one_in=0)
        assert gets_in(other, "127.0.0.1")
