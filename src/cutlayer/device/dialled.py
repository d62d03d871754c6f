"""A real device's way to machines that run blocks: a connection to each, opened when it is first asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from cutlayer import __version__
from cutlayer.errors import SpanLost, WireError
from cutlayer.packing import CompressedLink
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import Carrier, Dial
from cutlayer.transport.errand import ErrandLink
from cutlayer.transport.handshake import hear, say
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Hello, SpanAnswer, SpanCall, Welcome

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 180.0
"""Seconds for an answer, as in Petals' public code."""
LIMIT_BYTES = 8 * 2**30
"""A device believes whom it asks, but not any number."""


@dataclass(frozen=True, slots=True)
class _Connection:
    carrier: Carrier
    link: CompressedLink


class DialledSpans:
    """See `Spans`.

    Args:
      name: The device's.
      run: The run's identifier.
      fingerprint: Of the model's files, which must be theirs.
      dial: Opens a connection to an address, as to the device's server: with its proof, over TLS.
      packed: Lies around the link of each connection.
      notice: Told of each machine that does not answer, for a person to read.
    """

    def __init__(
        self,
        name: str,
        run: str,
        fingerprint: str,
        dial: Dial,
        packed: Callable[[Link], CompressedLink],
        notice: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._notice = notice
        self._name, self._run, self._fingerprint, self._dial, self._packed = name, run, fingerprint, dial, packed
        self._open: dict[str, _Connection] = {}
        self._incoming = Budget(LIMIT_BYTES)
        self._sent = self._received = 0  # over connections that have ended

    @property
    def bytes_sent(self) -> int:
        """See `Spans`."""
        return self._sent + sum(one.link.bytes_sent for one in self._open.values())

    @property
    def bytes_received(self) -> int:
        """See `Spans`."""
        return self._received + sum(one.link.bytes_received for one in self._open.values())

    async def ask(self, span: str, address: str, call: SpanCall) -> SpanAnswer:
        """See `Spans.ask`.

        Raises:
          JoinError: The address may not be dialled without TLS.
        """
        try:
            if span not in self._open:
                async with asyncio.timeout(CONNECT_SECONDS):
                    self._open[span] = await self._connected(span, address)
            link = self._open[span].link
            async with asyncio.timeout(ANSWER_SECONDS):
                await link.send(call)
                answer = await link.receive()
        except (WireError, TimeoutError) as error:
            self._close(span)
            why = str(error) or "none in time"
            self._notice(f"span {span} at {address} does not answer ({why}): another is asked")
            raise SpanLost(f"span {span} at {address}: expected an answer, got {why}. Another is asked.") from None
        except BaseException:  # whoever asked has given up: what comes next would answer another call
            self._close(span)
            raise
        if not isinstance(answer, SpanAnswer):
            self._close(span)
            raise SpanLost(f"span {span} at {address}: expected an answer, got {type(answer).__name__}.")
        return answer

    async def _connected(self, span: str, address: str) -> _Connection:
        carrier = await self._dial(address)
        try:
            await say(carrier, Hello(self._name, __version__))
            welcome = await hear(carrier)
            if not isinstance(welcome, Welcome):
                raise SpanLost(f"span {span}: expected a welcome, got {type(welcome).__name__}.")
            if (welcome.run, welcome.fingerprint) != (self._run, self._fingerprint):
                raise SpanLost(f"span {span}: expected run {self._run} and its model, got another. Start it anew.")
        except BaseException:
            carrier.close()
            raise
        return _Connection(carrier, self._packed(ErrandLink(carrier, LIMIT_BYTES, self._incoming)))

    def close(self) -> None:
        """Ends all connections."""
        for span in list(self._open):
            self._close(span)

    def _close(self, span: str) -> None:
        if (connection := self._open.pop(span, None)) is not None:
            self._sent += connection.link.bytes_sent
            self._received += connection.link.bytes_received
            connection.carrier.close()
