"""The door: a gRPC server in front of the hub. Whoever comes proves who it is before a word of it is read."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc
import grpc.aio

from cutlayer.errors import ConfigError, Refused, WireError
from cutlayer.fleet.clock import now
from cutlayer.gate.allowance import (
    CONNECTIONS_PER_DEVICE,
    HELLO_SECONDS,
    LOOK_SECONDS,
    MAX_CONNECTIONS,
    MAX_STRANGERS,
)
from cutlayer.gate.hub import PASSING
from cutlayer.gate.lookout import Lookout
from cutlayer.gate.refusals import Refusals
from cutlayer.gate.roster import NAME, Roster
from cutlayer.transport.carrier import Carrier, CarrierLost
from cutlayer.transport.descriptors import most_sockets
from cutlayer.transport.grpc_carrier import CLOSE_SECONDS, HANDSHAKE_SECONDS, listen, peer_of, said_of
from cutlayer.transport.handshake import say
from cutlayer.transport.tls import ServerTls, proved
from cutlayer.wire.messages import Refusal

_log = logging.getLogger("cutlayer.door")

NO_TLS = (
    "connection: expected a stream over TLS, got none: it was plain text, or one end did not believe the other's "
    "certificate. Give the device this fleet's ca.crt and, where it has a certificate, one that is valid today."
)


class Desk(Protocol):
    """A hub (`hub.py`), or a machine that runs blocks (`span_desk.py`): it attends to those that the door lets in.

    Attributes:
      refusals: counts who is refused.
    """

    @property
    def refusals(self) -> Refusals: ...

    async def attend(self, carrier: Carrier, device: str) -> None:
        """Talks with a device until its connection ends."""


class Register(Protocol):
    """The devices of a fleet and their proofs: a file (`roster.py`), or those that Flower has called."""

    def admit(self, name: str, token: str) -> str:
        """Checks a device's token; returns its digest. Raises Refused."""

    def standing(self, name: str, digest: str) -> None:
        """Whether a device that proved itself by this digest may still be here. Raises Refused."""


class Admission:
    """The rule by which devices may come in.

    Args:
      roster: The devices of the fleet; None lets everybody in under the name that it says, which is for one machine
        or for a network on which everybody is trusted.
    """

    def __init__(self, roster: Register | None) -> None:
        self._roster = roster
        self._digests: dict[str, str] = {}  # what each device has proved itself by

    def admit(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> str:
        """The name of the device that calls.

        Raises:
          Refused: It may not come in.
        """
        name, token = said_of(context)
        certificate = proved(context.auth_context())
        if self._roster is None:
            if not NAME.fullmatch(name):
                raise Refused("wrong-name", "device: expected a name of letters, digits, `.`, `_`, `-`, got another.")
            return name
        if certificate is not None:
            if name != certificate.name:
                raise Refused(
                    "wrong-name",
                    f"device {certificate.name}: expected the name of its certificate, got another. Use its own.",
                )
            self._roster.standing(name, certificate.fingerprint)
            self._digests[name] = certificate.fingerprint
        else:
            self._digests[name] = self._roster.admit(name, token)
        return name

    def standing(self, device: str) -> None:
        """Whether a device that came in may still be here.

        Raises:
          Refused: Not any more.
        """
        if self._roster is not None:
            self._roster.standing(device, self._digests[device])


def door_of(
    address: str,
    folder: Path | None,
    opened: Callable[[int], None],
    admission: Callable[[Register | None], Admission] = Admission,
) -> GrpcDoor:
    """The door of a fleet folder: TLS, and the devices of its roster; plain text and everybody where there is none."""
    if folder is None:
        return GrpcDoor(address, admission(None), None, opened)
    roster = Roster(folder)
    tls = ServerTls(folder, require_client_certificate=roster.kind == "certificate")
    return GrpcDoor(address, admission(roster), tls, opened)


@dataclass
class GrpcDoor:
    """Lets devices in by gRPC.

    Attributes:
      address: `HOST:PORT`; port 0 takes a free one.
      admission: who may come in.
      tls: None for plain text.
      opened: told the port.
    """

    address: str
    admission: Admission
    tls: ServerTls | None
    opened: Callable[[int], None]
    _attended: int = field(default=0, init=False)  # streams so far
    _watching: list[asyncio.Task[None]] = field(default_factory=list, init=False)
    _lookout: Lookout | None = field(default=None, init=False)

    async def open(self, hub: Desk) -> None:
        """See `serve.Door`.

        Raises:
          ConfigError: The address cannot be had, or there are too few descriptors.
        """
        connected, turned_away = Counter[str](), set[Carrier]()

        async def attend(carrier: Carrier, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            self._attended += 1
            peer = peer_of(context)
            try:
                device = self.admission.admit(context)
                if connected[device] >= CONNECTIONS_PER_DEVICE:
                    raise Refused("too-many", f"device {device}: expected one connection, got more at a time.")
            except Refused as error:
                hub.refusals.count(None, error, peer)
                if len(turned_away) < MAX_STRANGERS:  # of more than that, nobody is told why
                    turned_away.add(carrier)
                    try:
                        await _turn_away(carrier, error)
                    finally:
                        turned_away.remove(carrier)
                carrier.close()
                return
            connected[device] += 1
            lookout = self._lookout
            if lookout is not None:
                lookout.proved(peer)
            _log.info("%s is connected from %s", device, peer)
            try:
                await hub.attend(carrier, device)
            finally:
                _log.info("%s has gone from %s", device, peer)
                connected[device] -= 1
                if lookout is not None:
                    lookout.ended(peer)

        try:
            credentials = None if self.tls is None else self.tls.credentials
            most = most_sockets(MAX_CONNECTIONS)
            self._server, port = await listen(attend, self.address, credentials, most_sockets=most)
        except OSError as error:
            raise ConfigError(f"serve: expected a free address, got {error}. Choose another with --port.") from None
        self._lookout = Lookout(port)
        self._watching = [asyncio.create_task(self._look_out(self._lookout, hub.refusals))]
        if self.tls is not None:
            self._watching.append(asyncio.create_task(self._count_what_tls_refuses(self.tls, hub.refusals)))
        self.opened(port)

    async def _look_out(self, lookout: Lookout, refusals: Refusals) -> None:
        """Ends connections of strangers that take more than a door has for them."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for peer, error in lookout.look(now()):
                refusals.count(None, error, peer)

    async def _count_what_tls_refuses(self, tls: ServerTls, refusals: Refusals) -> None:
        """Connections that never became a stream; one that takes longer to is counted once and made up for."""
        counted = 0
        while True:
            begun = tls.begun
            await asyncio.sleep(HANDSHAKE_SECONDS)
            for _ in range(begun - self._attended - counted):
                counted += 1
                refusals.count(None, Refused("no-tls", NO_TLS))

    async def close(self) -> None:
        """See `serve.Door`."""
        for task in self._watching:
            task.cancel()
        await self._server.stop(CLOSE_SECONDS)

    def standing(self, device: str) -> None:
        """See `serve.Door`."""
        self.admission.standing(device)


async def _turn_away(carrier: Carrier, error: Refused) -> None:
    """Tells a stranger why; one that does not listen is left."""
    try:
        async with asyncio.timeout(HELLO_SECONDS):
            await say(carrier, Refusal(error.reason, str(error), final=error.reason not in PASSING))
            await carrier.receive()  # its hello, which nobody reads: until then the answer is on its way
            await carrier.receive()
    except (CarrierLost, WireError, TimeoutError):
        pass
