"""A batch's way through blocks that other machines run: what went into each run of blocks stays here.

    forward   block after block to whoever holds it; what went in is kept; who fails is banned, and the way goes on from
              the block that was next, with somebody else
    back      the same runs of blocks in reverse, each from what went in; who fails is banned, and that run alone is
              routed anew: where it takes several machines now, it is run forward to learn what goes into each

So machines keep nothing, and a failure costs what it interrupted. Gradients are those of the unsplit model, whoever
failed, because blocks and their inputs are the same wherever they are run.

Fault-tolerant training of Petals (arXiv 2312.08361): its public code, `sequential_autograd.py`.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from cutlayer.device.spans import Spans
from cutlayer.errors import SpanLost
from cutlayer.fleet.clock import now
from cutlayer.policies.routing import LONGEST_WAIT_SECONDS, Hop, Router, wait_seconds
from cutlayer.types import Adapter
from cutlayer.wire.messages import Message, SpanAnswer, SpanCall


class Interrupted(Exception):
    """The server has something to say, and the step is given up.

    Attributes:
      message: what it says.
    """

    def __init__(self, message: Message) -> None:
        super().__init__(type(message).__name__)
        self.message = message


@dataclass(slots=True)
class Counted:
    """Counts of what became of calls.

    Attributes:
      calls: that were answered.
      lost: that were not.
      repeated: blocks that were run forward again because of that.
    """

    calls: int = 0
    lost: int = 0
    repeated: int = 0


@dataclass(frozen=True, slots=True)
class Errand:
    """The things that all calls of one batch have in common.

    Attributes:
      run, round, step, device: of the calls.
      mask_BT: the batch's padding.
      adapter: the trainable tensors, by block.
      lowest: the lowest block that trains, here or there.
    """

    run: str
    round: int
    step: int
    device: str
    mask_BT: Tensor
    adapter: Mapping[int, Adapter]
    lowest: int

    def call(self, hop: Hop, h_BTD: Tensor, grad_BTD: Tensor | None) -> SpanCall:
        """The call of one run of blocks."""
        own = {name: value for at in range(hop.first, hop.end) for name, value in self.adapter.get(at, {}).items()}
        below = self.lowest < hop.first
        return SpanCall(
            self.run,
            self.round,
            self.step,
            self.device,
            hop.first,
            hop.end,
            h_BTD,
            self.mask_BT,
            grad_BTD,
            below,
            own,
        )


class Chain:
    """One batch's way, forward and back.

    Args:
      errand: What its calls have in common.
      spans: Asks machines.
      addresses: Where they listen.
      router: Chooses among them.
      counted: Counts.
      heard: What the server says meanwhile; None while it says nothing.
      restarts: Whether a failure begins the whole way anew.
    """

    def __init__(
        self,
        errand: Errand,
        spans: Spans,
        addresses: Mapping[str, str],
        router: Router,
        counted: Counted,
        heard: Callable[[], Message | None],
        *,
        restarts: bool = False,
    ) -> None:
        self._errand, self._spans, self._addresses, self._router = errand, spans, addresses, router
        self._counted, self._heard, self._restarts = counted, heard, restarts
        self._way: list[tuple[Hop, Tensor]] = []  # runs of blocks that were run, with what went into each
        self._furthest = 0  # the block up to which the batch has been
        self._failures = 0  # one after the other

    async def forward(self, first: int, end: int, h_BTD: Tensor) -> Tensor:
        """The output of blocks [first, end), (B, T, D).

        Raises:
          Interrupted: The server has something to say.
        """
        at, given_BTD = first, h_BTD
        while at < end:
            hop = await self._hop(at, end)
            answer = await self._ask(hop, h_BTD, None)
            if answer is None:
                if self._restarts:
                    self._way.clear()
                    at, h_BTD = first, given_BTD
                continue
            self._counted.repeated += max(0, min(hop.end, self._furthest) - hop.first)
            self._furthest = max(self._furthest, hop.end)
            self._way.append((hop, h_BTD))
            assert answer.h_BTD is not None, "a forward pass is answered by what came out"
            at, h_BTD = hop.end, answer.h_BTD
        return h_BTD

    async def back(self, grad_BTD: Tensor) -> tuple[Tensor | None, Adapter]:
        """The gradient by what went in, None where nobody waits for it, and those by the trainable tensors.

        Raises:
          Interrupted: The server has something to say.
        """
        gradients: Adapter = {}
        last_BTD: Tensor | None = grad_BTD
        whole = (self._way[0][0].first, self._way[-1][0].end, self._way[0][1])
        while self._way and last_BTD is not None:
            hop, h_BTD = self._way.pop()
            answer = None if self._router.banned(hop.span, now()) else await self._ask(hop, h_BTD, last_BTD)
            if answer is not None:
                gradients |= answer.gradients
                last_BTD = answer.grad_BTD
            elif self._restarts:
                self._way, gradients, last_BTD = [], {}, grad_BTD
                await self.forward(*whole)
            else:
                await self._route_anew(hop, h_BTD)
        return last_BTD, gradients

    async def _route_anew(self, lost: Hop, h_BTD: Tensor) -> None:
        """Puts others in the place of one that has failed; the last of them need not run forward before it runs."""
        at = lost.first
        while at < lost.end:
            hop = await self._hop(at, lost.end)
            if hop.end == lost.end:
                self._way.append((hop, h_BTD))
                return
            answer = await self._ask(hop, h_BTD, None)
            if answer is None:
                continue
            self._counted.repeated += hop.end - hop.first
            self._way.append((hop, h_BTD))
            assert answer.h_BTD is not None, "a forward pass is answered by what came out"
            at, h_BTD = hop.end, answer.h_BTD

    async def _hop(self, at: int, end: int) -> Hop:
        """The next machine and its run of blocks; waits while everybody who holds the block is banned."""
        while True:
            if (message := self._heard()) is not None:
                raise Interrupted(message)
            if (hop := self._router.hop(at, end, now())) is not None:
                return hop
            await asyncio.sleep(min(max(0.0, self._router.free_at(at) - now()), LONGEST_WAIT_SECONDS))

    async def _ask(self, hop: Hop, h_BTD: Tensor, grad_BTD: Tensor | None) -> SpanAnswer | None:
        """Asks, once; None where no answer has come. The device waits before it asks anybody again."""
        if (message := self._heard()) is not None:
            raise Interrupted(message)
        try:
            call = self._errand.call(hop, h_BTD, grad_BTD)
            answer = await self._spans.ask(hop.span, self._addresses[hop.span], call)
        except SpanLost:
            self._counted.lost += 1
            self._failures += 1
            self._router.failed(hop.span, now())
            await asyncio.sleep(wait_seconds(self._failures))
            return None
        self._failures = 0
        self._counted.calls += 1
        self._router.answered(hop.span)
        return answer
