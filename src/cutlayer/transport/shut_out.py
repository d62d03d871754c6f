"""A port that is shut to some hosts, by the system: what would begin a connection from there is dropped.

gRPC accepts whatever comes and begins TLS with it, ten thousand times a second, before anybody can say no. A filter on
the socket that listens (Linux; a program of classic BPF, for which nobody need be root) says no before there is a
connection. Whoever sent what is dropped waits a second and sends it again: so who calls as fast as he can becomes slow,
and who means it comes in after some tries.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterable

from cutlayer.transport.sockets import listeners

MOST_HOSTS = 64
"""Hosts in one program, which is run for each packet that comes to the socket that listens."""
_ATTACH, _DETACH = 26, 27  # SO_ATTACH_FILTER, SO_DETACH_FILTER
_LOAD_BYTE, _LOAD_WORD, _AND, _JUMP, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x30, 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_IP = 2**32 - 0x100000
"""The offset from which on what is loaded is of the header of IP; from 0 on, it is of that of TCP."""
_RANDOM = 2**32 - 0x1000 + 56
_FLAGS_AT, _SYN, _ACK = 13, 0x02, 0x10
_SOURCE_AT = {4: 12, 6: 8}
_WHOLE = 2**32 - 1

_Step = tuple[int, int, int, int | str]  # code, steps to skip if so, steps to skip if not, operand or label


def shut_out(port: int, hosts: Iterable[str], *, one_in: int) -> None:
    """Shuts this process's port to hosts, in place of those to which it was shut before.

    Args:
      port: Where this process listens. Connections that there are stay.
      hosts: Their addresses; of more than `MOST_HOSTS` the first, and of one of IPv6 all that share its first 64 bits.
      one_in: Of so many tries one passes, by chance; 0 for none.
    """
    if not sys.platform.startswith("linux"):
        return
    program = _program([*hosts][:MOST_HOSTS], one_in)
    for listener in listeners(port):
        with listener, contextlib.suppress(OSError):  # a system that has no filters leaves all as it was
            if program:
                code = ctypes.create_string_buffer(b"".join(program))
                listener.setsockopt(socket.SOL_SOCKET, _ATTACH, struct.pack("HP", len(program), ctypes.addressof(code)))
            else:
                listener.setsockopt(socket.SOL_SOCKET, _DETACH, 0)


def _program(hosts: list[str], one_in: int) -> list[bytes]:
    """Says of a packet whether it passes; nothing where there is nobody to shut out."""
    if not hosts:
        return []
    sources = [ipaddress.ip_address(host.partition("%")[0]) for host in hosts]
    chance: list[_Step] = []
    if one_in:
        chance = [(_LOAD_WORD, 0, 0, _RANDOM), (_IF_AT_LEAST, 1, 0, _WHOLE // one_in), (_RETURN, 0, 0, _WHOLE)]
    return _assembled(
        [
            (_LOAD_BYTE, 0, 0, _FLAGS_AT),
            (_AND, 0, 0, _SYN | _ACK),
            (_IF_EQUAL, 1, 0, _SYN),
            (_JUMP, 0, 0, "pass"),
            (_LOAD_BYTE, 0, 0, _IP),
            (_AND, 0, 0, 0xF0),
            (_IF_EQUAL, 1, 0, 0x40),
            (_JUMP, 0, 0, "six"),
            (_LOAD_WORD, 0, 0, _IP + _SOURCE_AT[4]),
            *(step for one in sources if one.version == 4 for step in _drop_if(int(one))),
            (_JUMP, 0, 0, "pass"),
            "six",
            *(step for one in sources if one.version == 6 for step in _drop_network(int(one) >> 64)),
            "pass",
            (_RETURN, 0, 0, _WHOLE),
            "drop",
            *chance,
            (_RETURN, 0, 0, 0),
        ]
    )


def _drop_if(word: int) -> list[_Step]:
    return [(_IF_EQUAL, 0, 1, word), (_JUMP, 0, 0, "drop")]


def _drop_network(bits: int) -> list[_Step]:
    at = _IP + _SOURCE_AT[6]
    low = _drop_if(bits & _WHOLE)
    return [
        (_LOAD_WORD, 0, 0, at),
        (_IF_EQUAL, 0, 1 + len(low), bits >> 32),
        (_LOAD_WORD, 0, 0, at + 4),
        *low,
    ]


def _assembled(lines: list[_Step | str]) -> list[bytes]:
    """The steps, with jumps as numbers of steps; a line that is a word alone is a label."""
    steps, labels = list[_Step](), dict[str, int]()
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(steps)
        else:
            steps.append(line)
    return [
        struct.pack("=HBBI", code, yes, no, operand if isinstance(operand, int) else labels[operand] - number - 1)
        for number, (code, yes, no, operand) in enumerate(steps)
    ]
