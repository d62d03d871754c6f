"""The limits of what a connection may take of the server before its messages are even looked at.

The plan bounds a device's messages one by one: how many of each kind, how long, in which order (`guard.py`). What is
left to bound is what no plan speaks of: how many connections there are, how long one may say nothing, and how fast
packets come that carry no message, such as repeats, acknowledgements and signs of life.
"""

from __future__ import annotations

from cutlayer.errors import Refused

MAX_STRANGERS = 256
"""Connections that have not said hello yet: a fleet that comes back all at once passes in a second or two."""
MAX_CONNECTIONS = 1024 + MAX_STRANGERS
"""Connections in all: the largest fleet that is tried, and strangers. An idle one takes 48 KiB and a descriptor, so all
take 60 MiB."""
STRANGERS_PER_ADDRESS = 64
"""Strangers from one address: whoever is behind one router with as many others comes in within seconds all the same,
because it is the oldest that have to go."""
STRANGER_BYTES = 2**17
"""Bytes on the wire that a connection may send before it has proved itself: TLS and a call take some thousands."""
WASTED_AT_ONCE, WASTED_PER_SECOND = 32, 2
"""Connections of one address that were seen and are gone without having proved anything: so many in a burst, and so
many a second for good. Broken TLS costs the server a handshake each; of 500 a second a few are seen at a look, of
10,000 hundreds."""
SHUT_SECONDS = 30.0
"""Seconds for which the door is all but shut to an address that wasted more than that."""
SHUT_BUT_FOR_ONE_IN = 16
"""Tries of such an address to begin a connection, one passes: whoever is behind one router with a flood comes in."""
LOOK_SECONDS = 0.25
"""Seconds between two looks at the connections that have not proved themselves."""
CONNECTIONS_PER_DEVICE = 2
"""A device that comes back may be here before its broken connection is noticed. The new one takes the old one's place;
more than that is two devices that share a name."""
HELLO_SECONDS = 10.0
"""Seconds for a connection to say who it is: TLS and a hello are three round trips, and a bad mobile link takes 2 s for
one."""
HELLO_BYTES = 2**16
"""The longest packet of a connection that has not proved itself: a hello is a name, a token and some numbers."""

FAREWELL_SECONDS = 5.0
"""Seconds for the last message of a connection to leave."""

MESSAGES_PER_SECOND = 5_000.0
"""One core serves at most about 1,200 steps a second (1 MB each, measured) to some 5,000 (empty ones); a local step is
a packet up, an acknowledgement and, now and then, a sign of life."""
MESSAGES_AT_ONCE = 10_000.0
"""Two seconds' worth: what a link that was stuck delivers at once."""
BYTES_PER_SECOND = 4.0 * 2**30
"""Twice what gRPC carries on one core without TLS (1.9 GB/s, measured): no link that trains is slowed, and repeats
cannot hold the server for longer than they take to arrive."""


class Allowance:
    """A device's bucket of messages and of bytes: filled at a steady rate, emptied by what arrives.

    Args:
      frame_bytes: The longest frame that its plan allows: two of them always fit.
      now: Seconds, of the clock that `spend` is told.
      messages_per_second: Rate.
      bytes_per_second: Rate; a second's worth may come at once.
    """

    def __init__(
        self,
        frame_bytes: int,
        now: float,
        *,
        messages_per_second: float = MESSAGES_PER_SECOND,
        messages_at_once: float = MESSAGES_AT_ONCE,
        bytes_per_second: float = BYTES_PER_SECOND,
    ) -> None:
        self._rates = (messages_per_second, bytes_per_second)
        self._most = (messages_at_once, max(bytes_per_second, 2.0 * frame_bytes))
        self._left, self._at = self._most, now

    def spend(self, num_bytes: int, now: float) -> None:
        """A packet of this many bytes has arrived.

        Raises:
          Refused: flood: there is too little left. Nothing is taken then.
        """
        waited = max(0.0, now - self._at)
        self._at = max(self._at, now)
        messages, size = (
            min(most, left + rate * waited)
            for most, left, rate in zip(self._most, self._left, self._rates, strict=True)
        )
        if messages < 1 or size < num_bytes:
            self._left = (messages, size)
            raise Refused(
                "flood",
                f"connection: expected at most {self._rates[0]:.0f} packets and {self._rates[1]:.0f} bytes a second, "
                f"got more. Let the device wait for answers.",
            )
        self._left = (messages - 1, size - num_bytes)
