"""The blocks that each machine of a swarm holds: where the swarm is weakest; and who moves when that has changed.

As the public code of Petals does it (arXiv 2312.08361, `block_selection.py`). A block's throughput is the sum of the
throughputs of those who hold it, the swarm's is that of its weakest block. Who joins takes the window of blocks whose
throughputs, sorted, are the least in the order of a dictionary. A machine moves where the swarm's throughput is below
`quality` times what could be reached if it did and the others then moved after it. (The paper asks for a gain of a
fifth, the code for a quality below 0.75.)

Ours: machines are asked in the order of the fleet, not by chance, and nobody's move leaves a block without a holder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Held = dict[str, tuple[int, int]]
"""The blocks [first, end) that each machine holds, by its name."""
EPSILON = 1e-9


@dataclass(frozen=True, slots=True)
class Holder:
    """A machine of a swarm.

    Attributes:
      name: its name.
      length: how many blocks it holds.
      throughput: requests, or tokens, that pass through it in a second.
      blocks: those that it holds for good, [first, end); None where it may move.
    """

    name: str
    length: int
    throughput: float
    blocks: tuple[int, int] | None = None


def window(throughputs: Sequence[float], length: int) -> int:
    """The first block of the window that a machine takes which joins.

    Args:
      throughputs: Of each block.
      length: Of the window.

    Example:
      >>> window([3.0, 0.0, 1.0, 0.0, 2.0], 2)  # of [0, 3], [0, 1], [0, 1] and [0, 2], the first that is least
      1
    """
    starts = range(len(throughputs) - length + 1)
    return min(starts, key=lambda start: (sorted(throughputs[start : start + length]), start))


def place(holders: Iterable[Holder], blocks: range) -> Held:
    """The blocks of each machine, if they join one after the other; those that cannot move are there from the start.

    Args:
      holders: In the order in which they join.
      blocks: Those that are wanted.

    Example:
      >>> place([Holder("a", 2, 1.0), Holder("b", 2, 1.0), Holder("c", 4, 1.0, (0, 4))], range(6))
      {'a': (4, 6), 'b': (0, 2), 'c': (0, 4)}
    """
    holders = list(holders)
    held = {holder.name: holder.blocks for holder in holders if holder.blocks is not None}
    for holder in holders:
        if holder.blocks is None:
            held[holder.name] = _joined(held, holder, {one.name: one for one in holders}, blocks)
    return {holder.name: held[holder.name] for holder in holders}


def throughputs_of(held: Mapping[str, tuple[int, int]], of: Mapping[str, Holder], blocks: range) -> NDArray[np.float64]:
    """The throughput of each wanted block."""
    result = np.zeros(len(blocks))
    for name, (first, end) in held.items():
        result[max(0, first - blocks.start) : max(0, end - blocks.start)] += of[name].throughput
    return result


def rebalance(held: Mapping[str, tuple[int, int]], holders: Sequence[Holder], blocks: range, quality: float) -> Held:
    """The blocks of each machine after all have moved whose move is worth it.

    Args:
      held: Before.
      holders: Those who are there, in the order in which they are asked.
      blocks: Those that are wanted.
      quality: A machine moves where the swarm's throughput is below so much of what could be reached.

    Example:
      >>> holders = [Holder(name, 2, 1.0) for name in "abc"]
      >>> rebalance({"a": (0, 2), "b": (0, 2), "c": (0, 2)}, holders, range(4), 0.75)
      {'a': (2, 4), 'b': (0, 2), 'c': (0, 2)}
    """
    of = {holder.name: holder for holder in holders}
    now = {name: held[name] for name in of}
    for _ in range(len(holders)):
        movers = (holder for holder in holders if holder.blocks is None and _moves(now, holder, of, blocks, quality))
        mover = next(movers, None)
        if mover is None:
            break
        now[mover.name] = _joined(_without(now, mover.name), mover, of, blocks)
    return now


def _moves(
    held: Mapping[str, tuple[int, int]], holder: Holder, of: Mapping[str, Holder], blocks: range, quality: float
) -> bool:
    """Whether a machine should take other blocks: what the swarm gains, if the others then move after it."""
    current = _least(held, of, blocks)
    others = _without(held, holder.name)
    if current > EPSILON and _least(others, of, blocks) <= EPSILON:
        return False  # it alone holds something
    new = _joined(others, holder, of, blocks)
    if new == held[holder.name]:
        return False
    after = {**others, holder.name: new}
    movable = [one for one in of.values() if one.blocks is None and one is not holder]
    for _ in range(len(of)):  # until nobody moves; two that swap places for ever stop here
        moved = False
        for one in movable:
            rest = _without(after, one.name)
            if _least(after, of, blocks) > EPSILON and _least(rest, of, blocks) <= EPSILON:
                continue
            again = _joined(rest, one, of, blocks)
            moved = moved or again != after[one.name]
            after = {**rest, one.name: again}
        if not moved:
            break
    reachable = _least(after, of, blocks)
    return reachable > EPSILON and current / reachable < quality - EPSILON


def _joined(
    held: Mapping[str, tuple[int, int]], holder: Holder, of: Mapping[str, Holder], blocks: range
) -> tuple[int, int]:
    """The blocks of a machine that joins those who hold these."""
    length = min(holder.length, len(blocks))
    first = blocks.start + window(throughputs_of(held, of, blocks).tolist(), length)
    return first, first + length


def _least(held: Mapping[str, tuple[int, int]], of: Mapping[str, Holder], blocks: range) -> float:
    """The throughput of the weakest block."""
    return float(throughputs_of(held, of, blocks).min())


def _without(held: Mapping[str, tuple[int, int]], name: str) -> Held:
    return {other: blocks for other, blocks in held.items() if other != name}
