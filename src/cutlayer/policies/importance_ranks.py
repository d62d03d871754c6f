"""A rank for each weight matrix, by how much it matters to training, within each device's memory (HSplitLoRA).

    here                            HSplitLoRA (arXiv 2505.02795; from reviews, no code is public)
    ----------------------------    --------------------------------------------------------------------
    Weigh, `model/matrix_           the importance of a weight matrix: |w * gradient|, normalised by what
      importance.py`                  fine-tuning the matrix costs in memory
    smoothed()                      I_t = g_t I_(t-1) + (1 - g_t) i_t,
                                      g_t = 1 - exp(-(i_t / I_(t-1)) t / T)
    decided()                       ranks and cut change only when importance has moved by more than a threshold
    filled()                        high ranks for important matrices, from a set of ranks, within the device's memory

Our reading: what a round measures is the mean over its devices, by what they trained; between exact probes a matrix's
importance is the last exact one, times how its proxy has moved since; the threshold is on the sum of the changes; and
ranks are filled one rung of the ladder after the other, the matrix next whose importance is shared by the fewest
ranks, so that a matrix which matters twice as much has about twice the rank, and of equal ones none is left behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush
from typing import Any

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.policies.ranks import check_lowest
from cutlayer.types import Clause, DevicePlan, History, RoundPlan, StepRecord
from cutlayer.wire.messages import Update

EXACT, PROXY = "exact", "proxy"
"""Words for the two scores of a LoRA module: facts of an update, and by `<word>/<place of the module>` of a record."""
FAR = 64
"""Ranks over which memory is compared: it grows by as much with each of them, but for rounding."""


@dataclass(frozen=True, slots=True)
class Weigh(Clause):
    """Both ends weigh the LoRA modules that they train.

    Attributes:
      exact: whether the first local step of the round is weighed exactly, beside the proxy at every step.
    """

    exact: bool


def weighing(every: int) -> Planner:
    """Every device weighs; exactly in the first round and in every so many after it.

    Args:
      every: Rounds from one exact probe to the next.

    Raises:
      ConfigError: Fewer than 1.

    Example:
      >>> from cutlayer import everyone, weighing
      >>> from cutlayer.testing.playground import planned
      >>> [planned(everyone(), weighing(2), round=round).devices[0].clauses for round in range(2)]
      [(Weigh(exact=True),), (Weigh(exact=False),)]
    """
    if every < 1:
        raise ConfigError(f"method.probe_every: expected at least 1, got {every}. Change method.probe_every.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:  # noqa: ARG001
        return plan.with_each(lambda device: device.having(Weigh(exact=plan.round % every == 0)))

    return planner


def importance_of_modules(_plan: DevicePlan, update: Update) -> dict[str, Any]:
    """The facts of an update that plans go by: what a device found of the modules below its cut.

    Example:
      >>> import torch
      >>> from cutlayer import DevicePlan, importance_of_modules
      >>> from cutlayer.wire.messages import Update
      >>> update = Update("run", 0, "pi", {}, 0, 1, 1, 0.0, 0.5, facts={"proxy": torch.tensor([0.5, 0.25])})
      >>> importance_of_modules(DevicePlan("pi", cut=2), update)
      {'proxy/0': 0.5, 'proxy/1': 0.25}
    """
    return {
        f"{what}/{place}": score
        for what in (EXACT, PROXY)
        if what in update.facts
        for place, score in enumerate(update.facts[what].tolist())
    }


# ------------------------------------------------------------------ what was measured


def measured(records: Sequence[StepRecord], what: str) -> tuple[float, ...]:
    """The scores of modules, from the lowest: means over a round's devices by what they trained; empty if none are."""
    found = [(record.weight, scores) for record in records if (scores := _scores(record, what))]
    total = sum(weight for weight, _ in found)
    if not total:
        return ()
    modules = range(max(len(scores) for _, scores in found))
    return tuple(math.fsum(weight * scores.get(place, 0.0) for weight, scores in found) / total for place in modules)


def _scores(record: StepRecord, what: str) -> dict[int, float]:
    prefix = f"{what}/"
    return {int(name.removeprefix(prefix)): value for name, value in record.facts.items() if name.startswith(prefix)}


def smoothed(before: Sequence[float], now: Sequence[float], progress: float) -> tuple[float, ...]:
    """The importance after one more round.

    Args:
      before: That so far.
      now: What the round measured.
      progress: t / T, the part of the run that is done with this round.

    Example:
      >>> smoothed([1.0, 1.0], [3.0, 3.0], progress=0.01)[0] > 2.9, smoothed([1.0], [3.0], progress=1.0)[0] < 1.2
      (True, True)
    """
    return tuple(_smoothed(old, new, progress) for old, new in zip(before, now, strict=True))


def _smoothed(old: float, new: float, progress: float) -> float:
    keep = 1 - math.exp(-(new / old) * progress) if old > 0 else 0.0
    return keep * old + (1 - keep) * new


def decided(history: History, rounds: int, threshold: float) -> tuple[float, ...]:
    """The importance of each module by which ranks and cuts are chosen; nothing before there is any.

    It is the smoothed one of the round after which that had last moved far enough from the one before it.

    Args:
      history: What rounds have measured.
      rounds: Of the whole run.
      threshold: How far is enough: the sum of all changes, as a part of the sum of all importance.
    """
    by_round: dict[int, list[StepRecord]] = {}
    for record in history.records:
        by_round.setdefault(record.round, []).append(record)
    exact: tuple[float, ...] = ()
    reference: tuple[float, ...] = ()
    importance: tuple[float, ...] = ()
    chosen: tuple[float, ...] = ()
    for round, records in sorted(by_round.items()):
        proxy = measured(records, PROXY)
        probed = measured(records, EXACT)
        if probed and proxy:
            exact, reference = probed, proxy
        if not (exact and proxy):
            continue
        now = tuple(map(_moved, exact, reference, proxy))
        importance = smoothed(importance, now, (round + 1) / rounds) if importance else now
        if not chosen or _distance(importance, chosen) > threshold * sum(chosen):
            chosen = importance
    return chosen


def _moved(exact: float, reference: float, proxy: float) -> float:
    """An exact importance, moved as its proxy has; where that says nothing (B was 0 all the time), as it was."""
    return exact * proxy / reference if reference > 0 and proxy > 0 else exact


def _distance(one: Sequence[float], other: Sequence[float]) -> float:
    return math.fsum(abs(a - b) for a, b in zip(one, other, strict=True))


# ------------------------------------------------------------------ ranks within memory


def ladder(lowest: int, highest: int) -> tuple[int, ...]:
    """The ranks that there are: the lowest, twice that, and so on, and the highest.

    Example:
      >>> ladder(1, 12)
      (1, 2, 4, 8, 12)
    """
    rungs = [lowest]
    while 2 * rungs[-1] < highest:
        rungs.append(2 * rungs[-1])
    return tuple(dict.fromkeys([*rungs, highest]))


def filled(
    importance: Sequence[float], rungs: Sequence[int], bytes_each: Sequence[float], free_bytes: float
) -> tuple[int, ...]:
    """Ranks from a ladder, within memory: all begin on the lowest rung, and the most important rise first.

    Next to rise is the one whose importance by its rank is the largest, of equal ones the first; one for whose next
    rung there is no room stays.

    Args:
      importance: Of each matrix.
      rungs: The ladder.
      bytes_each: What one more rank of each takes.
      free_bytes: What is left beside the lowest rung.

    Example:
      >>> filled([4.0, 1.0, 1.0], (1, 2, 4, 8), [10, 10, 10], free_bytes=90)
      (8, 2, 2)
    """
    ranks, heights = [rungs[0]] * len(importance), [0] * len(importance)
    waiting = [(-value / rungs[0], place) for place, value in enumerate(importance)]
    heapify(waiting)
    while waiting:
        _, place = heappop(waiting)
        height = heights[place] + 1
        if height == len(rungs):
            continue
        more_bytes = (rungs[height] - ranks[place]) * bytes_each[place]
        if more_bytes > free_bytes:
            continue
        free_bytes -= more_bytes
        ranks[place], heights[place] = rungs[height], height
        heappush(waiting, (-importance[place] / rungs[height], place))
    return tuple(ranks)


def ranks_within(
    device: DevicePlan, situation: Situation, importance: Sequence[float], rungs: Sequence[int]
) -> tuple[int, ...]:
    """The ranks of what a device holds, within its memory; empty where it holds nothing.

    Args:
      device: With its cut; the lowest rung fits.
      situation: What a step costs, and the device's memory.
      importance: Of each LoRA module of the model, or of each block.
      rungs: The ladder.
    """
    each = len(importance) // situation.costs.num_blocks  # modules of a block
    held, memory_bytes = device.cut * each, situation.profile(device.device).memory_bytes
    lowest = (rungs[0],) * held

    def needed(ranks: Sequence[int], cut: int) -> int:
        everywhere = (*ranks, *(rungs[0],) * (len(importance) - len(ranks)))  # what is above the cut is not there
        return situation.device_bytes(replace(device, cut=cut, ranks=everywhere))

    if not held:
        return ()
    of_one = _bytes_of_one_rank(lambda ranks: needed(ranks, cut=1), each, rungs)
    free_bytes: float = memory_bytes - needed(lowest, device.cut)
    while free_bytes >= 0:
        ranks = filled(importance[:held], rungs, of_one * device.cut, free_bytes)
        over = needed(ranks, device.cut) - memory_bytes
        if over <= 0:
            return ranks
        free_bytes -= max(over, 1)  # rounding
    return lowest


def ranks_on_server(
    plan: RoundPlan, situation: Situation, importance: Sequence[float], rungs: Sequence[int]
) -> tuple[int, ...]:
    """The ranks of the server's one adapter, on all of the model, within the server's memory. See `ranks_within`.

    What is below every cut is not there; it is on the lowest rung.
    """
    each = len(importance) // situation.costs.num_blocks
    shallowest = min(plan.devices, key=lambda device: device.cut)
    held = (situation.costs.num_blocks - shallowest.cut) * each
    below = (rungs[0],) * (len(importance) - held)

    def needed(ranks: Sequence[int]) -> int:
        everywhere = (*(rungs[0],) * (len(importance) - len(ranks)), *ranks)
        whole = replace(shallowest, ranks=everywhere)
        return situation.costs.server(whole, shallowest.batch_size, situation.num_tokens).memory_bytes

    if not held:
        return below
    of_one = _bytes_of_one_rank(needed, each, rungs)
    free_bytes = situation.fleet.server.memory_bytes - needed(())
    return (*below, *filled(importance[len(below) :], rungs, of_one * (held // each), free_bytes))


def _bytes_of_one_rank(needed: Callable[[Sequence[int]], int], each: int, rungs: Sequence[int]) -> list[float]:
    """Bytes that one more rank of each module of a block takes, from the memory that ranks on one block need."""
    lowest, more = (rungs[0],) * each, FAR
    at_lowest = needed(lowest)
    return [
        (needed((*lowest[:place], rungs[0] + more, *lowest[place + 1 :])) - at_lowest) / more for place in range(each)
    ]


def importance_for(situation: Situation, threshold: float) -> tuple[float, ...]:
    """The importance to plan by, of each LoRA module: `decided`; all alike before anything was measured.

    Args:
      situation: What rounds have measured.
      threshold: See `decided`.
    """
    alike = (1.0,) * (situation.num_modules or situation.costs.num_blocks)
    return decided(situation.history, situation.rounds, threshold) or alike


def ranks_by_importance(*, lowest: int = 1, threshold: float = 0.1) -> Planner:
    """A rank for each LoRA module of each device, as its memory allows, most important first; the server's likewise.

    Comes after cuts. The full adapter has the run's rank, the ladder's highest, everywhere; what a device or the server
    trains of it are the first rows of each factor: let adapters begin anew after each round
    (`policies.stack.begin_anew`). In the first round, when nothing was measured, all modules count alike.

    Args:
      lowest: The ladder's lowest rank.
      threshold: By how much importance must have moved before ranks change: see `decided`.

    Raises:
      ConfigError: A negative threshold; when planning, a lowest rank that is not between 1 and the run's.

    Example:
      >>> from cutlayer import cut_at, everyone, ranks_by_importance
      >>> from cutlayer.testing.playground import planned
      >>> planned(everyone(), cut_at(1), ranks_by_importance()).devices[0].ranks
      (8, 8, 8)
    """
    check_threshold(threshold)

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        check_lowest(lowest, situation)
        rungs, importance = ladder(lowest, situation.rank), importance_for(situation, threshold)
        of_server = ranks_on_server(plan, situation, importance, rungs)

        def at_its_ranks(device: DevicePlan) -> DevicePlan:
            own = ranks_within(device, situation, importance, rungs)
            return replace(device, ranks=(*own, *of_server[len(own) :]))

        return replace(plan.with_each(at_its_ranks), ranks=(situation.rank,) * situation.costs.num_blocks)

    return planner


def check_threshold(threshold: float) -> None:
    """Raises ConfigError for a negative one."""
    if not threshold >= 0:
        raise ConfigError(f"method.threshold: expected at least 0, got {threshold}. Change method.threshold.")
