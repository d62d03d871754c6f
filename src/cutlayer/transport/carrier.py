"""A carrier: an unreliable pipe of packets between two ends. A transport is a class that fits this.

What a carrier may do: end at any moment, lose what was under way, and, where it is not intact, change, repeat, reorder
and drop packets. `session.py` makes exactly-once messages of it.
"""

from __future__ import annotations

from typing import Protocol

from cutlayer.errors import WireError, leaves


class CarrierLost(WireError):
    """The connection has ended, or what came through it shows that something was lost."""


def most_telling(group: BaseExceptionGroup[WireError]) -> WireError:
    """Picks, from the errors that ended a connection, one that says more than that it ended, if there is one."""
    return min(
        (error for error in leaves(group) if isinstance(error, WireError)),
        key=lambda error: isinstance(error, CarrierLost),
    )


class Carrier(Protocol):
    """One end of a connection.

    Attributes:
      intact: whether what arrives is what was sent, in order: TLS and the kernel of one machine promise that.
    """

    @property
    def intact(self) -> bool: ...

    async def send(self, packet: bytes) -> None:
        """Hands the packet over; waits while the way is full.

        Raises:
          CarrierLost: The connection has ended.
        """

    async def receive(self) -> bytes:
        """Waits for the next packet.

        Raises:
          CarrierLost: The connection has ended.
        """

    def close(self) -> None:
        """Ends the connection, for both ends; whoever waits on it is told."""


class Dial(Protocol):
    """Opens a new connection."""

    async def __call__(self, address: str = "") -> Carrier:
        """Opens a new connection to the server.

        Args:
          address: Where the server has sent the device on to (`messages.Elsewhere`); empty for the server itself.

        Raises:
          CarrierLost: None can be had.
          JoinError: None may be opened to this address.
        """
