"""A link over one connection on which one end asks and the other answers: nothing is numbered, kept or sent again.

It ends with its connection, and whoever asked asks elsewhere. What passes in rounds between a device and its server is
a session's matter (`session.py`).
"""

from __future__ import annotations

from cutlayer.errors import MalformedMessage
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import Carrier
from cutlayer.transport.handshake import part
from cutlayer.transport.packets import PIECE_BYTES, Kind, Packet, cut, pack, unpack
from cutlayer.wire.frames import decode, parts
from cutlayer.wire.messages import Message, passes_in_rounds


class ErrandLink:
    """See `Link`.

    Args:
      carrier: The connection, after its handshake.
      limit_bytes: The longest frame that may arrive.
      incoming: What all links of this process may hold of frames that are not whole yet.
    """

    def __init__(self, carrier: Carrier, limit_bytes: int, incoming: Budget) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self._carrier, self._limit_bytes, self._incoming = carrier, limit_bytes, incoming

    async def send(self, message: Message) -> None:
        """See `Link.send`.

        Raises:
          CarrierLost: The connection has ended.
        """
        frame = parts(message)
        total = sum(memoryview(part).nbytes for part in frame)
        for offset, pieces in cut(frame, PIECE_BYTES):
            packet = Packet(Kind.DATA, offset=offset, total=total)
            await self._carrier.send(pack(packet, check=not self._carrier.intact, pieces=pieces))
        self.bytes_sent += total

    async def receive(self) -> Message:
        """See `Link.receive`.

        Raises:
          CarrierLost: The connection has ended; with the other end's reason, where it gave one.
          MalformedMessage: Something else arrived.
        """
        packet = await self._next()
        total = packet.total
        if not 0 < total <= self._limit_bytes:
            raise MalformedMessage(f"frame length: expected 1 to {self._limit_bytes} bytes, got {total}. Drop it.")
        await self._incoming.take(total)
        try:
            frame, filled = bytearray(total), 0
            while True:
                if (packet.offset, packet.total) != (filled, total) or not packet.body:
                    raise MalformedMessage(
                        f"packet: expected the piece at {filled} of {total} bytes, got {packet.offset} of "
                        f"{packet.total}. Drop the connection."
                    )
                end = filled + len(packet.body)
                frame[filled:end], filled = packet.body, end
                if filled == total:
                    break
                packet = await self._next()
        finally:
            self._incoming.give_back(total)
        message = decode(frame, max_bytes=self._limit_bytes)
        if not passes_in_rounds(message):
            raise MalformedMessage(f"frame kind: expected a question or an answer, got {type(message).__name__}.")
        self.bytes_received += total
        return message

    async def _next(self) -> Packet:
        packet = unpack(await self._carrier.receive(), check=not self._carrier.intact)
        part(packet)
        if packet.kind is not Kind.DATA:
            raise MalformedMessage(f"packet: expected one of a frame, got kind {packet.kind.name.lower()}.")
        return packet
