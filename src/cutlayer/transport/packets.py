"""Packets: what a carrier moves. A frame (`frames.py`) in one or several pieces, or a heartbeat.

    bytes   0..4     magic "CUTP"
            4        kind: 0 data, 1 heartbeat, 2 handshake, 3 goodbye, 4 declined
            5..8     zero
            8..12    round that the numbers count in, uint32 (round + 1, so that 0 is "none yet")
            12..16   check: xxh3 of the whole packet with these four bytes zero, low half; zero: its sender made none
            16..24   number: of the frame, from 1; in a heartbeat, of the last frame sent
            24..32   received: of the last frame received whole
            32..40   offset of this piece in its frame
            40..48   total length of the frame
            48..     the piece

Numbers are little-endian. The header is 48 bytes, a multiple of 16, so that a frame of one piece is aligned where it
lies. The check is for carriers that cannot promise that bytes arrive as they were sent (`Carrier.intact`); TLS can.
Each end judges by what it sees, and a tunnel may look like this machine to one of them: no check is no damage.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import xxhash

from cutlayer.errors import MalformedMessage
from cutlayer.transport.carrier import CarrierLost

MAGIC = b"CUTP"
HEADER_BYTES = 48
PIECE_BYTES = 2 * 2**20
"""Longest piece: large enough that a packet's cost is its bytes, small enough that no frame holds up a heartbeat."""

Buffer = bytes | bytearray | memoryview
_HEADER = struct.Struct("<4sB3xIIQQQQ")
_CHECK = struct.Struct("<I")
_CHECK_AT = slice(12, 16)


class Damaged(CarrierLost):
    """The bytes that arrived are not those that were sent: no word of the peer's, who need not be blamed for it."""


class Kind(IntEnum):
    """The kind of a packet."""

    DATA = 0
    HEARTBEAT = 1
    HANDSHAKE = 2
    GOODBYE = 3
    DECLINED = 4
    """A goodbye for good, of a device whose owner does not allow what the server asks for."""


_KINDS = {kind.value: kind for kind in Kind}


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet; the fields are those of the header. `round` is -1 before the first."""

    kind: Kind
    round: int = -1
    number: int = 0
    received: int = 0
    offset: int = 0
    total: int = 0
    body: Buffer = b""


def pack(packet: Packet, *, check: bool, pieces: Sequence[Buffer] | None = None) -> bytes:
    """The packet as bytes.

    Args:
      packet: What to send.
      check: Whether the carrier needs a check.
      pieces: The body in several parts, instead of `packet.body`: all are copied once.
    """
    body = (packet.body,) if pieces is None else pieces
    header = _HEADER.pack(
        MAGIC, packet.kind, packet.round + 1, 0, packet.number, packet.received, packet.offset, packet.total
    )
    if check:
        header = header[:12] + _CHECK.pack(_digest(header, body)) + header[16:]
    return b"".join((header, *body))


def unpack(packet: Buffer, *, check: bool) -> Packet:
    """The packet in these bytes; its body is a view of them.

    Raises:
      Damaged: It has a check, and something changed it on its way.
      MalformedMessage: It is none. Nothing else is raised, whatever the bytes.
    """
    view = memoryview(packet).cast("B")
    if check and not _is_as_it_was_sent(view):
        raise Damaged("packet: expected the bytes that were sent, got others. Drop the connection: it is damaged.")
    if len(view) < HEADER_BYTES:
        raise _malformed(f"at least {HEADER_BYTES} bytes", f"{len(view)}")
    magic, kind, round, _, number, received, offset, total = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise _malformed(f"the magic {MAGIC!r}", repr(bytes(magic)))
    if kind not in _KINDS:
        raise _malformed("a kind of packet", str(kind))
    body = view[HEADER_BYTES:]
    if offset + len(body) > total:
        raise _malformed(f"a piece inside its frame of {total} bytes", f"{offset} + {len(body)}")
    if len(body) > PIECE_BYTES:
        raise _malformed(f"a piece of at most {PIECE_BYTES} bytes", f"{len(body)}")
    return Packet(_KINDS[kind], round - 1, number, received, offset, total, body)


def cut(parts: Sequence[Buffer], piece_bytes: int) -> Iterator[tuple[int, list[Buffer]]]:
    """A frame that lies in several buffers as (offset, buffers) of pieces of at most this length; copies nothing."""
    offset, room = 0, piece_bytes
    piece: list[Buffer] = []
    for part in parts:
        view = memoryview(part).cast("B")
        while len(view):
            taken = view[:room]
            piece.append(taken)
            room -= len(taken)
            view = view[len(taken) :]
            if room == 0:
                yield offset, piece
                offset, piece, room = offset + piece_bytes, [], piece_bytes
    if piece:
        yield offset, piece


def _is_as_it_was_sent(packet: memoryview) -> bool:
    if len(packet) >= HEADER_BYTES and bytes(packet[_CHECK_AT]) == bytes(4):
        return True  # its sender made none: it sees this machine at the other end
    header = bytes(packet[:12]) + bytes(4) + bytes(packet[16:HEADER_BYTES])
    return bytes(packet[_CHECK_AT]) == _CHECK.pack(_digest(header, (packet[HEADER_BYTES:],)))


def _digest(header: bytes, body: Sequence[Buffer]) -> int:
    state = xxhash.xxh3_64(header)
    for part in body:
        state.update(part)
    return state.intdigest() & 0xFFFFFFFF


def _malformed(expected: str, got: str) -> MalformedMessage:
    return MalformedMessage(f"packet: expected {expected}, got {got}. Is the other end cutlayer?")
