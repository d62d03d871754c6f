"""The lookout: what connections may do that have proved nothing yet, and gRPC says nothing of.

gRPC caps connections in all, and closes one whose handshake takes too long. It knows no addresses: one that opens what
it may, or sends without end what is no call, is at liberty. So the sockets of the port are looked at four times a
second, and of those that no device has proved itself on

    one that is older than a handshake and a hello take     is hung up
    one that has sent more than they take                   is hung up
    the oldest, of an address that has too many, or of all  are hung up

The oldest, so that who comes now and means it is in before its turn has come. And an address of which many are gone
again without having proved anything, as those whose TLS is none, has the door all but shut to it for half a minute:
the system drops what would begin a connection (`transport/shut_out.py`), which costs nearly nothing. Its devices that
are in stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from cutlayer.errors import Refused
from cutlayer.gate.allowance import (
    HELLO_SECONDS,
    MAX_STRANGERS,
    SHUT_BUT_FOR_ONE_IN,
    SHUT_SECONDS,
    STRANGER_BYTES,
    STRANGERS_PER_ADDRESS,
    WASTED_AT_ONCE,
    WASTED_PER_SECOND,
)
from cutlayer.transport.grpc_carrier import HANDSHAKE_SECONDS
from cutlayer.transport.shut_out import shut_out
from cutlayer.transport.sockets import Connection, Descriptor, connection, sockets

NEVER_SHUT_OUT = frozenset({"127.0.0.1", "::1"})
"""Addresses of the machine itself: whoever comes through a front has one of them, and so has what `up` has started."""
PROVING_SECONDS = HANDSHAKE_SECONDS + HELLO_SECONDS + 5.0
"""Seconds that a stranger may take: more than gRPC and the door give it, because they end it with a word."""


@dataclass(frozen=True, slots=True)
class _Stranger:
    """A connection on which nobody has proved anything."""

    descriptor: Descriptor
    seen: Connection
    since: float
    paid_bytes: int
    """Bytes that had come when the call of a device on it was over."""


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
      shut: See `transport.shut_out.shut_out`.
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
        shut: Callable[..., None] = shut_out,
    ) -> None:
        self._port, self._most, self._per_address = port, most, per_address
        self._most_bytes, self._seconds = most_bytes, seconds
        self._opened, self._connected, self._shut = opened, connected, shut
        self._proved = Counter[str]()
        self._came_in: set[str] = set()  # since the last look
        self._left: set[str] = set()  # connections on which the call of a device is over
        self._strangers: dict[int, _Stranger] = {}  # of the last look, by identity of a socket
        self._wasted: dict[str, float] = {}  # by address, connections that came to nothing, less what it is allowed
        self._looked = 0.0
        self._shut_until: dict[str, float] = {}
        self._peers: dict[int, str | None] = {}  # by identity; None of what is no connection of the port

    def proved(self, peer: str) -> None:
        """A device has proved itself on a call from there."""
        self._proved[peer] += 1
        self._came_in.add(peer)

    def ended(self, peer: str) -> None:
        """Notes that a device's call from there is over; a connection without any is a stranger's again."""
        self._proved[peer] -= 1
        if not self._proved[peer]:
            del self._proved[peer]
            self._left.add(peer)

    def look(self, now: float) -> list[tuple[str, Refused]]:
        """Looks once, and hangs up.

        Args:
          now: Seconds.

        Returns:
          Of each connection that was ended, where it came from and why.
        """
        ended = list[tuple[str, Refused]]()
        strangers = self._found(now)
        for host in self._wasteful(now, strangers):
            ended.append((host, _wasted()))
        of_address: Counter[str] = Counter()
        staying = 0
        newest_first = sorted(strangers.items(), key=lambda item: item[1].since, reverse=True)
        for identity, one in newest_first:
            reason = None
            if one.seen.received_bytes - one.paid_bytes > self._most_bytes:
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
                if reason.reason != "flood":  # those were ended for their number or their silence, and are no waste
                    del strangers[identity]
        self._strangers = strangers
        return ended

    def _wasteful(self, now: float, strangers: Mapping[int, _Stranger]) -> list[str]:
        """The addresses to which the door is shut from now on, for what they have wasted since the last look."""
        allowed, self._looked = (now - self._looked) * WASTED_PER_SECOND, now
        self._wasted = {host: was - allowed for host, was in self._wasted.items() if was > allowed}
        for identity, one in self._strangers.items():
            peer, host = one.seen.peer, one.seen.host
            known = host in NEVER_SHUT_OUT or peer in self._proved or peer in self._came_in
            if identity not in strangers and not known:
                self._wasted[host] = self._wasted.get(host, 0.0) + 1
        self._came_in.clear()
        new = [host for host, was in self._wasted.items() if was > WASTED_AT_ONCE]
        shut = {host: until for host, until in self._shut_until.items() if until > now}
        for host in new:
            shut[host] = now + SHUT_SECONDS
            del self._wasted[host]
        if shut != self._shut_until:
            self._shut(self._port, shut, one_in=SHUT_BUT_FOR_ONE_IN)
            self._shut_until = shut
        return new

    def _found(self, now: float) -> dict[int, _Stranger]:
        """Those that there are, by identity of their sockets."""
        found, peers = dict[int, _Stranger](), dict[int, str | None]()
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
                since, paid_bytes = now, seen.received_bytes if seen.peer in self._left else 0
                if (before := self._strangers.get(key)) is not None:
                    since, paid_bytes = before.since, before.paid_bytes
                found[key] = _Stranger(descriptor, seen, since, paid_bytes)
        self._peers = peers
        self._left.intersection_update(peer for peer in peers.values() if peer)
        return found


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


def _wasted() -> Refused:
    return Refused(
        "too-often",
        f"address: expected at most {WASTED_PER_SECOND} connections a second that are seen to prove nothing, got more. "
        f"For {SHUT_SECONDS:g} s of {SHUT_BUT_FOR_ONE_IN} tries to begin one, one passes.",
    )
