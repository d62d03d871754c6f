"""A connection whose device spends its allowance with every packet: what floods is refused before it is looked at."""

from __future__ import annotations

from collections.abc import Callable

from cutlayer.errors import Refused
from cutlayer.gate.allowance import HELLO_BYTES, Allowance
from cutlayer.transport.carrier import Carrier


class Metered:
    """The server's end of a carrier.

    Args:
      carrier: The connection.
      clock: Seconds.

    Attributes:
      allowance: what may arrive; None before the device has said hello, when only short packets may.
      stood: whether messages of rounds pass: a refusal of the handshake would not be read any more.
    """

    def __init__(self, carrier: Carrier, clock: Callable[[], float]) -> None:
        self._carrier, self._clock = carrier, clock
        self.allowance: Allowance | None = None
        self.stood = False

    @property
    def intact(self) -> bool:
        return self._carrier.intact

    async def send(self, packet: bytes) -> None:
        await self._carrier.send(packet)

    async def receive(self) -> bytes:
        """See `Carrier.receive`.

        Raises:
          Refused: flood, or a hello of unheard-of length.
        """
        packet = await self._carrier.receive()
        if self.allowance is not None:
            self.allowance.spend(len(packet), self._clock())
        elif len(packet) > HELLO_BYTES:
            raise Refused(
                "too-long", f"connection: expected a hello of at most {HELLO_BYTES} bytes, got {len(packet)}."
            )
        return packet

    def close(self) -> None:
        self._carrier.close()
