"""The order in which the stages of a server work on micro-batches, with the backward pass in one piece or in two.

Zero Bubble Pipeline Parallelism
    Penghui Qi, Xinyi Wan, Guangxing Huang, Min Lin. ICLR 2024. https://arxiv.org/abs/2401.10241

The backward pass of a stage is two things: the gradient of its input, for which the stage below waits, and the
gradients of its weights, for which nobody does. Each stage works on what others wait for, and on weights while it
would idle. A greedy list schedule of ours, not the paper's: a stage does, of what can be done when it is free, `input`
(or, in one piece, `backward`) before `forward` before `weight`, earlier micro-batches first. No stage is more forward
passes ahead of its backward passes than there are stages from it to the last (1F1B): memory stays bounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Piece = Literal["forward", "input", "weight", "backward"]
RANK: dict[Piece, int] = {"input": 0, "backward": 0, "forward": 1, "weight": 2}
"""Ranks of the pieces: the lowest goes first."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One piece of work: what a stage does for a micro-batch, from when to when if every stage had its machine."""

    stage: int
    what: Piece
    micro_batch: int
    start_seconds: float
    end_seconds: float


def schedule(
    stages: int,
    micro_batches: int,
    *,
    decomposed: bool,
    seconds: Callable[[int, Piece], float] = lambda _stage, _what: 1.0,
) -> list[Slot]:
    """The pieces in the order in which they start; on one machine, done in this order, each finds what it needs.

    Args:
      stages: At least 1; the lowest has no input gradient to give, so its backward pass is all `weight`.
      micro_batches: At least 1.
      decomposed: Whether the backward pass is done in two pieces.
      seconds: (stage, piece) -> what it takes, above 0.
    """
    ended: dict[tuple[int, Piece, int], float] = {}
    free = [0.0] * stages
    left = [
        (stage, what, micro_batch)
        for stage in range(stages)
        for micro_batch in range(micro_batches)
        for what in _pieces(stage, decomposed)
    ]
    slots: list[Slot] = []

    def ready(stage: int, what: Piece, micro_batch: int) -> float | None:
        """Time from which on a piece can be done; None while its needs have no time or the stage is too far ahead."""
        if what == "forward" and _ahead(slots, stage) >= stages - stage:
            return None
        times = [ended.get((*need, micro_batch)) for need in _needs(stage, what, stages, decomposed)]
        return None if None in times else max([free[stage], *(time for time in times if time is not None)])

    while left:
        able = [(start, piece) for piece in left if (start := ready(*piece)) is not None]
        first = min(start for start, _ in able)
        stage = min(piece[0] for start, piece in able if start == first)
        chosen = min(
            (piece for start, piece in able if start == first and piece[0] == stage),
            key=lambda piece: (RANK[piece[1]], piece[2]),
        )
        left.remove(chosen)
        ended[chosen] = free[stage] = first + seconds(*chosen[:2])
        slots.append(Slot(*chosen, first, ended[chosen]))
    return slots


def _pieces(stage: int, decomposed: bool) -> tuple[Piece, ...]:
    if not decomposed:
        return ("forward", "backward")
    return ("forward", "input", "weight") if stage else ("forward", "weight")


def _needs(stage: int, what: Piece, stages: int, decomposed: bool) -> list[tuple[int, Piece]]:
    """The pieces that must have been done, for the same micro-batch, before this one."""
    if what == "forward":
        return [(stage - 1, "forward")] if stage else []
    if what == "weight" and stage:
        return [(stage, "input")]
    above: Piece = "input" if decomposed else "backward"
    return [(stage, "forward"), *([(stage + 1, above)] if stage + 1 < stages else [])]


def _ahead(slots: list[Slot], stage: int) -> int:
    """Number of forward passes by which a stage is ahead of its backward passes."""
    mine = [slot.what for slot in slots if slot.stage == stage]
    return mine.count("forward") - mine.count("backward") - mine.count("input" if stage else "weight")
