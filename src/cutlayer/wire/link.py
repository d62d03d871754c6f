"""One end of a connection between a device and the server. A transport is a class that fits this."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from cutlayer.errors import WireError
from cutlayer.wire.messages import Message


class Link(Protocol):
    """Carries messages both ways, each direction in order. The two directions do not wait for each other.

    Whoever waits may be cancelled: a message that `receive` had not returned comes with the next call, and one that was
    being sent arrives whole or not at all. On the server both may raise `DeviceGone`: from then on all calls of this
    round do, and those that wait.

    Attributes:
      bytes_sent: length of the frames whose sending has ended, in bytes.
      bytes_received: length of the frames that `receive` has returned, in bytes.
    """

    @property
    def bytes_sent(self) -> int: ...

    @property
    def bytes_received(self) -> int: ...

    async def send(self, message: Message) -> None:
        """Returns when the last byte has left this end, which is before it arrives at the other."""
        ...

    async def receive(self) -> Message:
        """Waits for the next message. Whoever holds a tensor of it must not write to it."""
        ...


@runtime_checkable
class Refusing(Protocol):
    """A server's end that can show its device the door, for what it has let through and what came of that."""

    def refuse(self, error: WireError) -> None:
        """Counts why, and ends the connection; the device may come again, for the next round."""


class Around:
    """A link around another, which it counts as and passes everything on to: what is special overrides.

    Args:
      link: The inner end.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def bytes_sent(self) -> int:
        return self._link.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._link.bytes_received

    async def send(self, message: Message) -> None:
        """See `Link.send`."""
        await self._link.send(message)

    async def receive(self) -> Message:
        """See `Link.receive`."""
        return await self._link.receive()


def unexpected(device: str, expected: str, message: object) -> WireError:
    """The error for a message that this point of the conversation has no place for."""
    return WireError(
        f"device {device}: expected {expected}, got {type(message).__name__}. Do both ends run one version?"
    )
