"""The number of last blocks that each device trains, from what its rounds measured.

Back-propagation stops at the deepest block that has an adapter, so a device's time, its memory and what it uploads
all grow with its depth. What a device can do is not declared but measured, round by round (LEGEND,
arXiv 2412.20004): seconds of a forward pass, of back-propagation per block, of upload per byte.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import DevicePlan, History, RoundPlan

KEEP = 0.8
"""Weight of the old value in a moving average, as recalled of the authors' sister papers."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """Seconds that a device was measured to take.

    Attributes:
      forward_seconds: of a step.
      backward_seconds: of a step, per block that trains.
      upload_seconds: per byte.
    """

    forward_seconds: float
    backward_seconds: float
    upload_seconds: float


def measured(history: History) -> dict[str, Capacity]:
    """The moving averages of every device that has trained; of records whose ranks are written out."""
    averages: dict[str, NDArray[np.float64]] = {}
    for record in history.records:
        depth = sum(rank > 0 for rank in record.ranks)
        if not (record.steps and record.bytes_up and depth):
            continue
        forward = (record.busy_seconds - record.backward_seconds) / record.steps
        backward = record.backward_seconds / record.steps / depth
        now = np.array([forward, backward, record.upload_seconds / record.bytes_up])
        before = averages.get(record.device)
        averages[record.device] = now if before is None else KEEP * before + (1 - KEEP) * now
    return {device: Capacity(*average.tolist()) for device, average in averages.items()}


def depth_by_time(*, least: int = 1, waiting: float = 1.0) -> Planner:
    """Gives each device its depth, so that a round trains most ranks per second, and leaves it the tail of the ranks.

    It needs the ranks in the plan; see `best_depths` for the choice. A device is given no depth that its memory does
    not hold with the whole model. One that was never measured counts as the mean of those that were; while nobody was,
    everyone trains as deep as it can, which is also what measures a block's back-propagation best.

    Args:
      least: The fewest blocks that a device trains.
      waiting: The most that devices may wait for the slowest on average, as a part of the round; 1 is no limit.

    Raises:
      ConfigError: `least` below 1 or (when planning) above the model's blocks; `waiting` not above 0 and up to 1.

    Example:
      >>> from cutlayer import arithmetic_ranks, depth_by_time, everyone
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), arithmetic_ranks(2), depth_by_time(), num_devices=2)
      >>> [device.ranks for device in plan.devices]  # as deep as each can, while nobody was measured
      [(2, 3, 4), (2, 3, 4)]
    """
    if least < 1:
        raise ConfigError(f"method.least: expected at least 1 block, got {least}. Change method.least.")
    if not 0 < waiting <= 1:
        raise ConfigError(f"method.waiting: expected above 0 and up to 1, got {waiting}. Change method.waiting.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        blocks = situation.costs.num_blocks
        if least > blocks:
            raise ConfigError(f"method.least: expected at most {blocks}, the model's blocks, got {least}. Lower it.")

        def at_depth(device: DevicePlan, depth: int) -> DevicePlan:
            return replace(device, cut=blocks, top=blocks, ranks=(0,) * (blocks - depth) + plan.ranks[blocks - depth :])

        def deepest(device: DevicePlan) -> int:
            memory = situation.profile(device.device).memory_bytes
            fits = (d for d in range(blocks, least, -1) if situation.device_bytes(at_depth(device, d)) <= memory)
            return next(fits, least)

        depths = {device.device: deepest(device) for device in plan.devices}
        capacities = measured(situation.history)
        if capacities:
            average = _mean(list(capacities.values()))
            uploads = [
                situation.costs.device_adapter_bytes(at_depth(plan.devices[0], d)) for d in range(least, blocks + 1)
            ]
            seconds = np.full((len(plan.devices), len(uploads)), np.inf)
            for row, device in enumerate(plan.devices):
                capacity = capacities.get(device.device, average)
                for column in range(depths[device.device] - least + 1):
                    step = capacity.forward_seconds + (least + column) * capacity.backward_seconds
                    seconds[row, column] = device.local_steps * step + capacity.upload_seconds * uploads[column]
            trained = [sum(plan.ranks[-depth:]) for depth in range(least, blocks + 1)]
            chosen = best_depths(seconds, np.array(trained), waiting=waiting)
            depths = {device.device: least + column for device, column in zip(plan.devices, chosen, strict=True)}
        return plan.with_each(lambda device: at_depth(device, depths[device.device]))

    return planner


def best_depths(seconds: NDArray[np.float64], trained: NDArray[np.int64], *, waiting: float = 1.0) -> list[int]:
    """The greedy configuration: one end for the whole round, and each device as deep as it gets until then.

    The end moves up from where the slowest device finishes its least depth, through every time at which some device
    could finish one more block. Of all these ends the one is taken at which most ranks are trained per second, among
    those that keep to `waiting`, or, where none does, at which the devices wait least.

    LEGEND's own rule is known to be greedy and to weigh the round's time against waiting; its lines are not known, and
    this is our reading.

    Args:
      seconds: (devices, depths) time of a round at each depth, rising along a row; inf where a device cannot.
      trained: (depths,) sum of the ranks that train at each depth.
      waiting: See `depth_by_time`.

    Returns:
      Each device's column.

    Example:
      >>> best_depths(np.array([[1.0, 2.0, 3.0], [4.0, 8.0, 12.0]]), np.array([1, 2, 3]))  # one is four times slower
      [2, 0]
    """
    rows, columns = np.nonzero(np.isfinite(seconds[:, 1:]))
    later, earlier = seconds[rows, columns + 1], seconds[rows, columns]
    order = np.argsort(later, kind="stable")
    end = np.maximum(np.concatenate([[0.0], later[order]]), seconds[:, 0].max())
    ranks = len(seconds) * trained[0] + np.cumsum(np.concatenate([[0], np.diff(trained)[columns[order]]]))
    busy = seconds[:, 0].sum() + np.cumsum(np.concatenate([[0.0], (later - earlier)[order]]))
    waits = 1 - busy / (len(seconds) * end)
    allowed = waits <= max(waiting, waits.min())
    best = end[np.argmax(np.where(allowed, ranks / end, -np.inf))]
    return [int(np.searchsorted(row, best, side="right")) - 1 for row in seconds]


def _mean(capacities: Sequence[Capacity]) -> Capacity:
    """The capacity of an average device."""
    columns = np.array([[c.forward_seconds, c.backward_seconds, c.upload_seconds] for c in capacities])
    return Capacity(*columns.mean(axis=0).tolist())
