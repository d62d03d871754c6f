"""Machines that run blocks, simulated: modelled machines and links, and failures by a seeded draw.

A machine that fails loses the call that it is at, some time after it has begun, and is gone for `outage_seconds`, at
most until the round is over; so rounds begin alike, and a run that was stopped between two of them goes on as the whole
run would have. Whoever asked learns of it a latency later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from cutlayer.errors import SpanLost
from cutlayer.fleet.clock import now
from cutlayer.fleet.link import Gateway, modelled_link
from cutlayer.fleet.machine import Machine, ModelledMachine
from cutlayer.fleet.profile import DeviceProfile, Fleet, SpanProfile
from cutlayer.model.base import Base
from cutlayer.packing import CompressedLink
from cutlayer.policies.spans import spans_of
from cutlayer.server.span import SpanServer
from cutlayer.types import Costs, Recorder
from cutlayer.wire.link import Link
from cutlayer.wire.messages import SpanAnswer, SpanCall

Packed = Callable[[Link], CompressedLink]
"""An end of a link, as the run packs what goes through it."""
Machines = Callable[[str, float, Recorder], Machine]
"""(name, FLOP/s, recorder) -> a machine on the virtual clock."""


class SimulatedSpans:
    """The machines of a fleet that run blocks.

    Args:
      fleet: Its spans; its server where it has none.
      base: The model, which all share.
      costs: What steps of a device cost.
      longest_tokens: The longest batch there can be.
      seed: For failures.
      record: Gets what they do.
      packed: Lies around both ends of each link.
      machines: Makes what they compute on.
      fails: Whether they fail and go away at all.
    """

    def __init__(
        self,
        fleet: Fleet,
        base: Base,
        costs: Costs,
        longest_tokens: int,
        *,
        seed: int,
        record: Recorder,
        packed: Packed,
        machines: Machines = ModelledMachine,
        fails: bool = True,
    ) -> None:
        self._packed = packed
        self._spans = {
            span.name: _Span(
                span,
                SpanServer(
                    span.name,
                    base,
                    machines(span.name, span.effective_flops, record),
                    costs,
                    span.blocks or (0, base.num_blocks),
                    longest_tokens,
                ),
                seed,
                fails=fails,
            )
            for span in spans_of(fleet)
        }

    def of(self, device: DeviceProfile, record: Recorder) -> _Way:
        """A device's way to them (`device.spans.Spans`); transfers are recorded as the device's."""
        return _Way(device, self._spans, record, self._packed)


class _Span:
    """One machine: what it runs, and whether it is there."""

    def __init__(self, profile: SpanProfile, server: SpanServer, seed: int, *, fails: bool) -> None:
        self.profile, self._server, self._seed, self._fails = profile, server, seed, fails
        self.gateway = Gateway(profile.connection)
        self._gone = (-1, 0.0)  # the round of its last failure, and when it is back

    def is_gone(self, round: int) -> bool:
        """Whether nobody answers here."""
        if not self._fails:
            return False
        out, until = self._gone
        return (out == round and now() < until) or self.profile.is_away(now())

    async def answer(self, call: SpanCall, number: int) -> SpanAnswer:
        """Runs a call, the device's so many-th of its round.

        Raises:
          SpanLost: It has failed.
        """
        where = [*f"{self.profile.name}/{call.device}".encode()]
        random = np.random.default_rng([self._seed, call.round, number, *where])
        if self._fails and random.random() < self.profile.failures:
            self._server.check(call)
            await self._server.machine.run(
                lambda: None,
                like=lambda: None,
                what="forward" if call.grad_BTD is None else "backward",
                flops=random.random() * self._server.flops(call),
                round=call.round,
                step=call.step,
                peer=call.device,
            )
            self._gone = (call.round, now() + self.profile.outage_seconds)
            raise _lost(self.profile.name, "a failure")
        answer = await self._server.answer(call)
        if self.is_gone(call.round):
            raise _lost(self.profile.name, "nothing: it is gone")
        return answer


class _Way:
    """One device's links to all machines, each made when it is first used."""

    def __init__(self, device: DeviceProfile, spans: dict[str, _Span], record: Recorder, packed: Packed) -> None:
        self._device, self._spans, self._record, self._packed = device, spans, record, packed
        self._ends: dict[str, tuple[CompressedLink, CompressedLink]] = {}
        self._round, self._calls = -1, 0

    @property
    def bytes_sent(self) -> int:
        """See `Spans`."""
        return sum(mine.bytes_sent for mine, _ in self._ends.values())

    @property
    def bytes_received(self) -> int:
        """See `Spans`."""
        return sum(mine.bytes_received for mine, _ in self._ends.values())

    async def ask(self, span: str, address: str, call: SpanCall) -> SpanAnswer:  # noqa: ARG002  it is simulated
        """See `Spans.ask`."""
        there = self._spans[span]
        profile = there.profile.link_to(self._device)
        self._calls = self._calls + 1 if call.round == self._round else 0
        self._round = call.round
        if there.is_gone(call.round):
            await asyncio.sleep(2 * profile.latency_seconds)
            raise _lost(span, "nothing: it is gone")
        if span not in self._ends:
            mine, other = modelled_link(profile, self._record, there.gateway)
            self._ends[span] = self._packed(mine), self._packed(other)
        mine_end, other_end = self._ends[span]
        await mine_end.send(call)
        arrived = await other_end.receive()
        assert isinstance(arrived, SpanCall), "nothing else passes here"
        try:
            answer = await there.answer(arrived, self._calls)
        except SpanLost:
            await asyncio.sleep(profile.latency_seconds)
            raise
        await other_end.send(answer)
        received = await mine_end.receive()
        assert isinstance(received, SpanAnswer), "nothing else passes here"
        return received


def _lost(span: str, got: str) -> SpanLost:
    return SpanLost(f"span {span}: expected an answer, got {got}. Nothing need be done: another is asked.")
