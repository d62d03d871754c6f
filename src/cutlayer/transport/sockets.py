"""This process's own connections at a port, as the system knows them: gRPC tells nobody of those that never speak.

They are found among the process's descriptors and looked at through a copy of each, so that none can become another
meanwhile. To hang up is to shut a connection down: gRPC sees its end and closes it. Where descriptors cannot be listed,
as on Windows, none are found.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cutlayer.transport.address import joined

_FOLDERS = (Path("/proc/self/fd"), Path("/dev/fd"))  # of Linux; of macOS
_TCP_INFO_BYTES = 136
_RECEIVED_AT = 128
"""Offset of `tcpi_bytes_received` in Linux's `struct tcp_info`, since 4.1."""


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A socket of this process.

    Attributes:
      number: its descriptor, which may be another socket's tomorrow.
      identity: of the socket, as long as it is open.
    """

    number: int
    identity: int


@dataclass(frozen=True, slots=True)
class Connection:
    """The other end of one.

    Attributes:
      host, port: where it is.
      received_bytes: that have arrived from there so far; 0 where the system does not say.
    """

    host: str
    port: int
    received_bytes: int

    @property
    def peer(self) -> str:
        """`HOST:PORT`, as gRPC says it of a call."""
        return joined(self.host, self.port)


def sockets() -> Iterator[Descriptor]:
    """All sockets of this process."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    if folder is None:
        return
    try:
        names = os.listdir(folder)
    except OSError:  # no descriptor is left to look at the others with
        return
    for name in names:
        try:
            status = os.fstat(int(name))
        except OSError:  # closed since
            continue
        if stat.S_ISSOCK(status.st_mode):
            yield Descriptor(int(name), status.st_ino)


def listeners(port: int) -> Iterator[socket.socket]:
    """Copies of the sockets by which this process listens at a port; whoever gets one closes it."""
    for descriptor in list(sockets()):  # at once: a copy would be found as well
        try:
            copy = os.dup(descriptor.number)
        except OSError:  # closed since, or no descriptor is left to look at it by
            continue
        try:
            found = socket.socket(fileno=copy)
        except OSError:  # no socket by now
            os.close(copy)
            continue
        if _listens(found, port):
            yield found
        else:
            found.close()


def _listens(found: socket.socket, port: int) -> bool:
    return (
        found.family in (socket.AF_INET, socket.AF_INET6)
        and found.getsockname()[1] == port
        and bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    )


def connection(descriptor: Descriptor, port: int, *, hang_up: bool = False) -> Connection | None:
    """The connection of a socket; None where it has none at this port, or is another by now.

    Args:
      descriptor: Of it.
      port: Where this process listens.
      hang_up: Whether to end it.

    Raises:
      OSError: No descriptor is left to look at it by.
    """
    try:
        copy = os.dup(descriptor.number)
    except OSError as error:
        if error.errno == errno.EBADF:  # closed since
            return None
        raise
    try:
        if os.fstat(copy).st_ino != descriptor.identity:
            return None
        with socket.socket(fileno=copy) as found:
            copy = -1
            if found.family not in (socket.AF_INET, socket.AF_INET6) or found.getsockname()[1] != port:
                return None
            host, there = found.getpeername()[:2]
            received = _received_bytes(found)
            if hang_up:
                found.shutdown(socket.SHUT_RDWR)
            return Connection(_plain(host), there, received)
    except OSError:  # one that listens, or has ended
        return None
    finally:
        if copy >= 0:
            os.close(copy)


def _received_bytes(found: socket.socket) -> int:
    if not hasattr(socket, "TCP_INFO"):
        return 0
    info = found.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return int(struct.unpack_from("=Q", info, _RECEIVED_AT)[0]) if len(info) >= _TCP_INFO_BYTES else 0


def _plain(host: str) -> str:
    """An IPv4 address that came by an IPv6 socket, as itself."""
    mapped = getattr(ipaddress.ip_address(host), "ipv4_mapped", None)
    return host if mapped is None else str(mapped)
