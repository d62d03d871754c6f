"""The lookout: what connections may do that have proved nothing yet, and gRPC says nothing of.

gRPC caps connections in all, and closes one whose handshake takes too long. It knows no addresses: one that opens what
it may, or sends without end what is no call, is at liberty. So the sockets of the port are looked at four times a
second, and of those that no device has proved itself on

    one that is older than a handshake and a hello take     is hung up
    one that has sent more than they take                   is hung up
    the oldest, of an address that has too many, or of all  are hung up

The oldest, so that who comes now and means it is in before its turn has come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cutlayer.errors import Refused
from cutlayer.gate.allowance import HELLO_SECONDS, MAX_STRANGERS, STRANGER_BYTES, STRANGERS_PER_ADDRESS
from cutlayer.transport.grpc_carrier import HANDSHAKE_SECONDS
from cutlayer.transport.sockets import Connection, Descriptor, connection, sockets

PROVING_SECONDS = HANDSHAKE_SECONDS + HELLO_SECONDS + 5.0
"""What gRPC and the door end themselves they end with a word."""


@dataclass(frozen=True, slots=True)
class _Stranger:
    """A connection on which nobody has proved anything."""

    descriptor: Descriptor
    seen: Connection
    since: float


class Lookout:
    """Looks at the connections of a port.

    Args:
      port: Where this process listens.
      most: Strangers in all.
      per_address: Of them, from one address.
      most_bytes: That one may have sent.
      seconds: That one may take.
      opened: This process's sockets; another in tests.
      connected: See `transport.sockets.connection`.
    """

    def __init__(
        self,
        port: int,
        *,
        most: int = MAX_STRANGERS,
        per_address: int = STRANGERS_PER_ADDRESS,
        most_bytes: int = STRANGER_BYTES,
        seconds: float = PROVING_SECONDS,
        opened: Callable[[], Iterable[Descriptor]] = sockets,
        connected: Callable[..., Connection | None] = connection,
    ) -> None:
        self._port, self._most, self._per_address = port, most, per_address
        self._most_bytes, self._seconds = most_bytes, seconds
        self._opened, self._connected = opened, connected
        self._proved = Counter[str]()
        self._since: dict[int, float] = {}  # by identity of a socket, of strangers
        self._peers: dict[int, str | None] = {}  # by identity; None of what is no connection of the port

    def proved(self, peer: str) -> None:
        """A device has proved itself on a call from there."""
        self._proved[peer] += 1

    def ended(self, peer: str) -> None:
        """That call is over; a connection without any is a stranger's again."""
        self._proved[peer] -= 1
        if not self._proved[peer]:
            del self._proved[peer]

    def look(self, now: float) -> list[tuple[str, Refused]]:
        """Looks once, and hangs up.

        Args:
          now: Seconds.

        Returns:
          Of each connection that was ended, where it came from and why.
        """
        ended = list[tuple[str, Refused]]()
        strangers = self._strangers(now)
        of_address: Counter[str] = Counter()
        staying = 0
        for one in reversed(strangers):  # the newest first
            reason = None
            if one.seen.received_bytes > self._most_bytes:
                reason = _flood(self._most_bytes)
            elif now - one.since > self._seconds:
                reason = _slow(self._seconds)
            elif of_address[one.seen.host] >= self._per_address or staying >= self._most:
                reason = _many(self._per_address, self._most)
            else:
                of_address[one.seen.host] += 1
                staying += 1
            if reason is not None and self._connected(one.descriptor, self._port, hang_up=True) is not None:
                ended.append((one.seen.peer, reason))
        return ended

    def _strangers(self, now: float) -> list[_Stranger]:
        """Those that there are, the oldest first."""
        found, peers = list[_Stranger](), dict[int, str | None]()
        for descriptor in self._opened():
            key = descriptor.identity
            peers[key] = self._peers.get(key, "")
            if peers[key] is None or peers[key] in self._proved:
                continue
            try:
                seen = self._connected(descriptor, self._port)
            except OSError:  # there is no descriptor to look at it by: at the next look
                continue
            peers[key] = None if seen is None else seen.peer
            if seen is not None and seen.peer not in self._proved:
                found.append(_Stranger(descriptor, seen, self._since.get(key, now)))
        self._peers, self._since = peers, {one.descriptor.identity: one.since for one in found}
        return sorted(found, key=lambda one: one.since)


def _flood(most: int) -> Refused:
    return Refused("flood", f"connection: expected at most {most} bytes before anything is proved, got more.")


def _slow(seconds: float) -> Refused:
    return Refused("too-slow", f"connection: expected a device that proves itself within {seconds:g} s, got none.")


def _many(per_address: int, most: int) -> Refused:
    return Refused(
        "too-many",
        f"connection: expected at most {per_address} of one address that have proved nothing, and {most} in all, got "
        "more. The oldest was ended.",
    )
