"""A process's own connections, found among its descriptors: whose they are, what they sent, and their end."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest

from cutlayer.transport.sockets import Connection, Descriptor, connection, sockets

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs the descriptors that Linux lists")


@pytest.fixture
def pair() -> Iterator[tuple[int, socket.socket, socket.socket]]:
    """A port, its end of a connection, and the other end."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as theirs,
        listener.accept()[0] as ours,
    ):
        yield listener.getsockname()[1], ours, theirs


def found(port: int) -> dict[int, Connection]:
    seen = {descriptor.number: connection(descriptor, port) for descriptor in sockets()}
    return {number: one for number, one in seen.items() if one is not None}


def test_a_connection_is_found_by_its_port_with_what_it_sent(pair: tuple[int, socket.socket, socket.socket]) -> None:
    port, ours, theirs = pair
    theirs.sendall(b"x" * 1000)
    assert ours.recv(2000)
    assert found(port) == {ours.fileno(): Connection("127.0.0.1", theirs.getsockname()[1], 1000)}
    assert found(port)[ours.fileno()].peer == f"127.0.0.1:{theirs.getsockname()[1]}"
    assert found(port + 1) == {}


def test_looking_takes_no_descriptor_for_good(pair: tuple[int, socket.socket, socket.socket]) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        found(pair[0])
    assert len(os.listdir("/proc/self/fd")) == before


def test_who_is_hung_up_on_reads_the_end(pair: tuple[int, socket.socket, socket.socket]) -> None:
    port, ours, theirs = pair
    mine = next(one for one in sockets() if one.number == ours.fileno())
    assert connection(mine, port, hang_up=True) is not None
    assert theirs.recv(10) == b""
    assert ours.fileno() >= 0, "whoever has it closes it"


def test_a_descriptor_that_is_another_socket_by_now_is_left_alone(
    pair: tuple[int, socket.socket, socket.socket],
) -> None:
    port, ours, theirs = pair
    stale = Descriptor(ours.fileno(), os.fstat(theirs.fileno()).st_ino)
    assert connection(stale, port, hang_up=True) is None
    theirs.sendall(b"still here")
    assert ours.recv(20) == b"still here"
    assert connection(Descriptor(10**6, 1), port) is None


def test_without_a_descriptor_to_look_by_it_says_so(
    pair: tuple[int, socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_number: int) -> int:
        raise OSError(24, "Too many open files")

    mine = next(iter(sockets()))
    monkeypatch.setattr(os, "dup", none_left)
    with pytest.raises(OSError, match="Too many"):
        connection(mine, pair[0])


@pytest.mark.skipif(not socket.has_ipv6 or sys.platform != "linux", reason="needs an IPv6 socket that takes IPv4")
def test_an_address_has_one_name_over_either_kind_of_socket() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as theirs, listener.accept()[0] as ours:
            assert found(port)[ours.fileno()].peer == f"127.0.0.1:{theirs.getsockname()[1]}"
        with socket.create_connection(("::1", port)) as theirs, listener.accept()[0] as ours:
            assert found(port)[ours.fileno()].peer == f"[::1]:{theirs.getsockname()[1]}"
