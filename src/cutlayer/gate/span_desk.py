"""The desk of a machine that runs blocks: what comes through its door, call by call, and what of it is let through.

    door: TLS, who it is -> hello, in that name -> Welcome -> SpanCall -> SpanAnswer -> SpanCall -> ...

Before each call it is asked whether the device may still be here, so a device that is revoked is refused at its next.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from cutlayer.errors import DivergedError, Refused, WireError
from cutlayer.fleet.clock import now
from cutlayer.gate.allowance import FAREWELL_SECONDS, HELLO_SECONDS, Allowance
from cutlayer.gate.metered import Metered
from cutlayer.gate.refusals import Refusals
from cutlayer.packing import CompressedLink
from cutlayer.server.span import SpanServer
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import Carrier, CarrierLost
from cutlayer.transport.errand import ErrandLink
from cutlayer.transport.handshake import expect_hello, hear, say, say_goodbye
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Message, SpanCall, Welcome

IN_FLIGHT_BYTES = 256 * 2**20
"""Half arrived, of all devices together."""


class SpanDesk:
    """Takes in connections.

    Args:
      server: Answers calls.
      run: The run's identifier.
      fingerprint: Of the model's files.
      packed: Lies around the link of each connection.
      limit_bytes: The longest call that there can be.
      standing: Whether a device may still be here; raises Refused.

    Attributes:
      refusals: who was refused, and why.
    """

    def __init__(
        self,
        server: SpanServer,
        run: str,
        fingerprint: str,
        packed: Callable[[Link], CompressedLink],
        limit_bytes: int,
        standing: Callable[[str], None],
    ) -> None:
        self.refusals = Refusals(now)
        self._server, self._run, self._fingerprint = server, run, fingerprint
        self._packed, self._limit_bytes, self._standing = packed, limit_bytes, standing
        self._incoming = Budget(IN_FLIGHT_BYTES)

    async def attend(self, carrier: Carrier, device: str) -> None:
        """Answers a device until its connection ends.

        Args:
          carrier: The connection.
          device: Who it is, as it has proved.
        """
        metered = Metered(carrier, now)
        try:
            await self._attend(metered, device)
        except CarrierLost:
            pass  # it may come again
        except WireError as error:
            self.refusals.count(device, error)
            with contextlib.suppress(CarrierLost, TimeoutError):
                async with asyncio.timeout(FAREWELL_SECONDS):
                    await say_goodbye(metered, str(error))
        finally:
            carrier.close()

    async def _attend(self, carrier: Metered, device: str) -> None:
        await self._greeted(carrier, device)
        carrier.allowance = Allowance(self._limit_bytes, now())
        await say(carrier, Welcome(self._run, self._server.name, device, 0, "", (), self._fingerprint, ""))
        link = self._packed(ErrandLink(carrier, self._limit_bytes, self._incoming))
        while True:
            message = await link.receive()
            self._standing(device)
            answer = await self._server.answer(self._checked(message, device))
            try:
                await link.send(answer)
            except DivergedError as error:  # of numbers that were sent here
                raise Refused("not-finite", str(error)) from None

    async def _greeted(self, carrier: Carrier, device: str) -> None:
        try:
            async with asyncio.timeout(HELLO_SECONDS):
                hello = await hear(carrier)
        except TimeoutError:
            raise Refused(
                "too-slow", f"device {device}: expected a hello within {HELLO_SECONDS:g} s, got none."
            ) from None
        expect_hello(hello, device)

    def _checked(self, message: Message, device: str) -> SpanCall:
        if not isinstance(message, SpanCall):
            raise Refused("wrong-kind", f"device {device}: expected a call, got {type(message).__name__}.")
        if message.run != self._run:
            raise Refused(
                "wrong-run", f"device {device}: expected a call of run {self._run}, got one of another. Start it anew."
            )
        if message.device != device:
            raise Refused("wrong-device", f"device {device}: expected a call in its own name, got another's.")
        return message
