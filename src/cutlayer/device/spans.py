"""A device's way to the machines that run blocks for it: simulated (`run/spans.py`) or real (`device/dialled.py`)."""

from __future__ import annotations

from typing import Protocol

from cutlayer.wire.messages import SpanAnswer, SpanCall


class Spans(Protocol):
    """Asks machines, by the names that they have in a plan.

    Attributes:
      bytes_sent: length of the frames that went to them, in bytes.
      bytes_received: length of the frames that came from them.
    """

    @property
    def bytes_sent(self) -> int: ...

    @property
    def bytes_received(self) -> int: ...

    async def ask(self, span: str, address: str, call: SpanCall) -> SpanAnswer:
        """Asks one machine, once.

        Args:
          span: Its name.
          address: Where it listens; empty where it is simulated.
          call: What it is to run.

        Raises:
          SpanLost: It does not answer, or refuses.
        """
