"""Packets: what was packed is unpacked, and what was damaged is refused."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.errors import MalformedMessage
from cutlayer.transport.packets import HEADER_BYTES, PIECE_BYTES, Damaged, Kind, Packet, cut, pack, unpack

UINT64 = st.integers(0, 2**64 - 1)


@given(
    kind=st.sampled_from(Kind),
    round=st.integers(-1, 2**32 - 2),
    number=UINT64,
    received=UINT64,
    offset=st.integers(0, 2**62),
    body=st.binary(max_size=100),
    rest=st.integers(0, 2**62),
    check=st.booleans(),
)
def test_round_trip(
    kind: Kind, round: int, number: int, received: int, offset: int, body: bytes, rest: int, check: bool
) -> None:
    packet = Packet(kind, round, number, received, offset, offset + len(body) + rest, body)
    packed = pack(packet, check=check)
    assert len(packed) == HEADER_BYTES + len(body)
    again = unpack(packed, check=check)
    assert (again.kind, again.round, again.number, again.received, again.offset, again.total) == (
        kind,
        round,
        number,
        received,
        offset,
        packet.total,
    )
    assert bytes(again.body) == body


def test_a_body_in_parts_is_one_body() -> None:
    packet = Packet(Kind.DATA, 3, 1, 0, 0, 6, b"abcdef")
    assert pack(packet, check=True) == pack(Packet(Kind.DATA, 3, 1, 0, 0, 6), check=True, pieces=[b"abc", b"", b"def"])


@given(place=st.integers(0, HEADER_BYTES + 9), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(place: int, bit: int) -> None:
    damaged = bytearray(pack(Packet(Kind.DATA, 3, 1, 0, 0, 10, b"0123456789"), check=True))
    damaged[place] ^= 1 << bit
    with pytest.raises(Damaged, match="packet"):
        unpack(damaged, check=True)


def test_a_packet_without_a_check_passes_an_end_that_would_check() -> None:
    """Its sender sees this machine at the other end, which sees a tunnel."""
    assert bytes(unpack(pack(Packet(Kind.DATA, 3, 1, 0, 0, 3, b"abc"), check=False), check=True).body) == b"abc"


@pytest.mark.parametrize("length", [0, 11, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 9])
def test_a_packet_that_was_cut_short_is_noticed(length: int) -> None:
    with pytest.raises(Damaged, match="packet"):
        unpack(pack(Packet(Kind.DATA, 3, 1, 0, 0, 10, b"0123456789"), check=True)[:length], check=True)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_packet_or_refused(data: bytes) -> None:
    for check in (False, True):
        with contextlib.suppress(MalformedMessage, Damaged):
            unpack(data, check=check)


def test_a_piece_outside_its_frame_is_refused() -> None:
    outside = pack(Packet(Kind.DATA, 0, 1, 0, 1, 3, b"abc"), check=False)
    with pytest.raises(MalformedMessage, match="inside its frame of 3 bytes"):
        unpack(outside, check=False)
    too_long = pack(Packet(Kind.DATA, 0, 1, 0, 0, PIECE_BYTES + 1, bytes(PIECE_BYTES + 1)), check=False)
    with pytest.raises(MalformedMessage, match="at most"):
        unpack(too_long, check=False)


@given(parts=st.lists(st.binary(max_size=20), max_size=6), piece=st.integers(1, 25))
def test_pieces_are_the_frame_and_none_is_too_long(parts: list[bytes], piece: int) -> None:
    found = list(cut(parts, piece))
    assert b"".join(bytes(part) for _, buffers in found for part in buffers) == b"".join(parts)
    lengths = [sum(map(len, buffers)) for _, buffers in found]
    assert [offset for offset, _ in found] == [sum(lengths[:index]) for index in range(len(found))]
    assert all(length == piece for length in lengths[:-1])
    assert all(0 < length <= piece for length in lengths)
