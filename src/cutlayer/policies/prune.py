"""The part of a device's model that is pruned by a round, and the choice of the units that go.

A pruning ratio is the share of each block's heads and FFN channels that is gone. Where a device scores its units, the
ratio only grows: what is gone stays gone. Where the size of the frozen weights decides, it may fall as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.errors import ConfigError
from cutlayer.model.structure import units_by_name
from cutlayer.types import Adapter, Clause, Kept


@dataclass(frozen=True, slots=True)
class Prune(Clause):
    """The share of its model that a device prunes.

    Attributes:
      ratio: the share of each block's heads and FFN channels that it has removed by this round, below 1.
      score: whether it scores heads and channels as it trains, for a later round to prune by; else it chooses them
        by the size of their weights, anew in each round.
    """

    ratio: float
    score: bool = True


def most_important(importance: Adapter, kept: Kept, left: tuple[int, int]) -> Kept:
    """The units of `kept` that are left when the least important ones of every block are removed.

    Block by block, as LoRAPrune's code does it: all blocks keep the same number, so a model's config can still say
    what it is, and what it costs depends on the ratio alone. Of equal units the earlier one stays.

    Args:
      importance: Of every unit, by `<block>.heads` and `<block>.channels`.
      kept: What was left so far.
      left: How many heads and channels to leave in a block; a block that has fewer loses none.
    """

    def choose(name: str, units: tuple[int, ...], num_left: int) -> tuple[int, ...]:
        scores = importance[name].tolist()
        return tuple(sorted(sorted(units, key=lambda unit: (-scores[unit], unit))[:num_left]))

    heads, channels = left
    chosen = {
        name: choose(name, units, heads if name.endswith(".heads") else channels) for name, units in units_by_name(kept)
    }
    blocks = range(len(kept.heads))
    return Kept(
        tuple(chosen[f"{block}.heads"] for block in blocks), tuple(chosen[f"{block}.channels"] for block in blocks)
    )


def check_target(target: float) -> None:
    """Raises ConfigError unless 0 <= target < 1."""
    if not 0 <= target < 1:
        raise ConfigError(
            f"method.prune: expected a share of heads and channels, from 0 to below 1, got {target}. "
            "Change method.prune."
        )


def reachable(target: float, so_far: float | None, pace: float, round: int, rounds: int) -> tuple[float, float]:
    """The lowest and the highest ratio for this round: never back, at most `pace` on, the target in the last round.

    A device that takes part for the first time has scored nothing yet: it prunes no more than it must. One that
    missed rounds may have to prune more than `pace` at once.

    Args:
      target: Of the last round.
      so_far: The device's ratio when it last took part; None if it never did.
      pace: The most that a round may add; at least target / (rounds - 1).
      round: From 0.
      rounds: Of the whole run, at least 2 if anything is to be pruned.
    """
    left = rounds - 1 - round
    lowest = max(so_far or 0.0, target - pace * left) if left > 0 else target
    return lowest, lowest if so_far is None else max(lowest, min(target, so_far + pace))
