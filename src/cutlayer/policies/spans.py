"""The blocks that devices leave to machines that run them for whoever asks, and the addresses of the machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from cutlayer.errors import BudgetError, ConfigError
from cutlayer.fleet.profile import Fleet, ServerProfile, SpanProfile
from cutlayer.policies.cut import check_range
from cutlayer.policies.placement import Held, Holder, place, rebalance
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, Cost, DevicePlan, RoundPlan
from cutlayer.wire.messages import Update

Trained = Literal["everywhere", "below"]
Recover = Literal["replay", "restart"]
WIDE = 1e15
"""Bits per second of a connection that is never too narrow."""
COUNTED = ("calls", "lost", "repeated", "span_bytes_up", "span_bytes_down")
"""Counts of a device in a round: calls that were answered, calls that were not, blocks that were run again in a
forward pass, bytes to the machines that run blocks, bytes from them."""


@dataclass(frozen=True, slots=True)
class Through(Clause):
    """The machines that run the blocks of a plan which its device does not hold.

    Attributes:
      first: blocks from here to the last are run by others.
      spans: names of machines.
      firsts, ends: what each of them holds, blocks [first, end).
      addresses: where each of them listens; empty where it is simulated.
      restarts: whether a failure begins the step anew, and not only what was lost.
    """

    first: int
    spans: tuple[str, ...]
    firsts: tuple[int, ...]
    ends: tuple[int, ...]
    addresses: tuple[str, ...]
    restarts: bool = False

    @property
    def held(self) -> dict[str, tuple[int, int]]:
        """The blocks [first, end) that each machine holds, by its name."""
        return dict(zip(self.spans, zip(self.firsts, self.ends, strict=True), strict=True))

    @property
    def address(self) -> dict[str, str]:
        """The address at which each machine listens, by its name."""
        return dict(zip(self.spans, self.addresses, strict=True))


def through_spans(cut: int, *, trained: str = "everywhere", quality: float = 0.75, recover: str = "replay") -> Planner:
    """Leaves the blocks from `cut` on to the fleet's spans, which are placed where the swarm is weakest.

    Where the fleet has none, its server runs all of them. Comes before `whole_model`, which then asks for the memory of
    what is left on a device: embeddings, blocks below the cut, the head, all that trains.

    Args:
      cut: Blocks that devices hold themselves.
      trained: Whether all blocks have an adapter (`everywhere`), whose tensors travel with each call, or those below
        the cut alone (`below`).
      quality: A span moves where the swarm's throughput is below so much of what could be reached; 0 for never.
      recover: What a failure costs: `replay`, what was lost; `restart`, the local step.

    Raises:
      ConfigError: Another word, a quality that is not from 0 to 1; when planning, a cut that the model does not have,
        spans of other blocks than it has, or a block that no span holds.
      BudgetError: When planning, a span that cannot hold a block.

    Example:
      >>> from cutlayer import everyone, through_spans, whole_model
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), through_spans(1), whole_model(), num_devices=1)
      >>> plan.devices[0].clauses
      (Through(first=1, spans=('server',), firsts=(1,), ends=(3,), addresses=('',), restarts=False),)
    """
    for option, word, words in (("adapters", trained, get_args(Trained)), ("recover", recover, get_args(Recover))):
        if word not in words:
            raise ConfigError(f"method.{option}: expected one of {', '.join(words)}, got {word!r}. Change it.")
    if not 0 <= quality <= 1:
        raise ConfigError(f"method.quality: expected from 0 to 1, got {quality}. Change method.quality.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        check_range("cut", cut, situation)
        num_blocks = situation.costs.num_blocks
        if trained == "below":
            ranks = (situation.rank,) * cut + (0,) * (num_blocks - cut)
            plan = replace(plan.with_each(lambda device: replace(device, ranks=ranks)), ranks=ranks)
        if cut == num_blocks:
            return plan
        spans = spans_of(situation.fleet)
        held = _held(spans, range(cut, num_blocks), situation, quality)
        names = tuple(held)
        of = {span.name: span for span in spans}
        clause = Through(
            first=cut,
            spans=names,
            firsts=tuple(held[name][0] for name in names),
            ends=tuple(held[name][1] for name in names),
            addresses=tuple(of[name].address for name in names),
            restarts=recover == "restart",
        )
        return plan.with_each(lambda device: device.having(clause))

    return planner


def check_listening(plan: RoundPlan) -> None:
    """Raises ConfigError where a plan of a real fleet names a machine that nobody can dial."""
    for device in plan.devices:
        through = device.clause(Through)
        silent = [] if through is None else [name for name, address in through.address.items() if not address]
        if silent:
            raise ConfigError(
                f"fleet.spans: expected an address for each span of a real fleet, got none for {', '.join(silent)}. "
                "Start `cutlayer serve RUN.yaml --span FIRST:END` for each, and write where they listen."
            )


def spans_of(fleet: Fleet) -> tuple[SpanProfile, ...]:
    """The machines of a fleet that run blocks: its spans; where it has none, its server, for all blocks."""
    return fleet.spans or (_as_span(fleet.server),)


def _as_span(server: ServerProfile) -> SpanProfile:
    return SpanProfile(
        name=server.name,
        flops_per_second=server.flops_per_second,
        efficiency=server.efficiency,
        memory_bytes=server.memory_bytes,
        up_bits_per_second=server.down_bits_per_second or WIDE,
        down_bits_per_second=server.up_bits_per_second or WIDE,
        latency_seconds=0.0,
    )


def _held(spans: Sequence[SpanProfile], blocks: range, situation: Situation, quality: float) -> Held:
    """The blocks of each span that is there; of all, where those alone do not hold every block."""
    if not situation.fleet.spans:
        return {span.name: (blocks.start, blocks.stop) for span in spans}
    holders = [_holder(span, blocks, situation) for span in spans]
    everybody = place(holders, blocks)
    here = [holder for holder, span in zip(holders, spans, strict=True) if span.here]
    held = rebalance(everybody, here, blocks, quality) if here else {}
    if _missing(held, blocks):
        held = everybody
    if missing := _missing(held, blocks):
        raise ConfigError(
            f"fleet.spans: expected every block from {blocks.start} to {blocks.stop - 1} on a span, got none with "
            f"block {missing[0]}. Add spans or memory, or raise method.cut."
        )
    return held


def _missing(held: Mapping[str, tuple[int, int]], blocks: range) -> list[int]:
    return [block for block in blocks if not any(first <= block < end for first, end in held.values())]


def _holder(span: SpanProfile, blocks: range, situation: Situation) -> Holder:
    """The number of blocks that a span holds, and its throughput.

    As Petals reckons it: a span of n blocks is asked for (n + 1) / 2 of them on average, and what comes and goes are
    activations.
    """
    num_blocks, num_tokens = situation.costs.num_blocks, situation.batch_size * situation.num_tokens
    if span.blocks is not None:
        first, end = span.blocks
        if end > num_blocks:
            raise ConfigError(
                f"fleet.spans: expected blocks up to {num_blocks}, the model's, got {first}:{end} on {span.name}. "
                "Correct them."
            )
        length = end - first
    else:
        length = max((n for n in range(len(blocks) + 1) if _bytes_of(n, situation) <= span.memory_bytes), default=0)
    if not length:
        need = _bytes_of(1, situation)
        raise BudgetError(
            f"span {span.name}: expected room for a block, {need / 2**20:.4g} MiB at batch size "
            f"{situation.batch_size}, got {span.memory_bytes / 2**20:.4g} MiB. Leave it out, or lower the batch size.",
            device=span.name,
            need_bytes=need,
            have_bytes=span.memory_bytes,
        )
    block_flops = _device(1, situation).forward_flops - _device(0, situation).forward_flops
    computes = num_tokens * span.effective_flops / block_flops / ((length + 1) / 2)
    bits = 8 * situation.costs.activation_bytes(situation.batch_size, situation.num_tokens)
    carries = num_tokens * min(span.up_bits_per_second, span.down_bits_per_second) / bits
    return Holder(span.name, length, min(computes, carries), span.blocks)


def _bytes_of(num_blocks: int, situation: Situation) -> int:
    """Memory of so many frozen blocks, with what a batch keeps in them for a backward pass."""
    return _device(num_blocks, situation).memory_bytes - _device(0, situation).memory_bytes


def _device(cut: int, situation: Situation) -> Cost:
    """The step of a device with so many blocks, all of which have an adapter."""
    return situation.costs.device(DevicePlan("", cut=cut), situation.batch_size, situation.num_tokens)


def counted_of_spans(_plan: DevicePlan, update: Update) -> dict[str, Any]:
    """The counts of a device's calls in its update, as a record keeps them.

    Example:
      >>> import torch
      >>> from cutlayer import DevicePlan, counted_of_spans
      >>> from cutlayer.wire.messages import Update
      >>> update = Update("run", 0, "pi", {}, 1, 1, 1, 0.5, 0.5, facts={"spans": torch.tensor([4, 1, 2, 900, 800])})
      >>> counted_of_spans(DevicePlan("pi"), update)
      {'calls': 4, 'lost': 1, 'repeated': 2, 'span_bytes_up': 900, 'span_bytes_down': 800}
    """
    if "spans" not in update.facts:
        return {}
    return dict(zip(COUNTED, update.facts["spans"].tolist(), strict=True))
