"""The classes of the things that a machine does (`Event.what`): computing, transferring, or neither."""

from __future__ import annotations

SERVER = "server"
"""`Event.who` of the server; every other name is a device."""

COMPUTE = frozenset({"forward", "backward", "step", "aggregate"})
NETWORK = frozenset({"upload", "download"})
WAIT = "wait"
