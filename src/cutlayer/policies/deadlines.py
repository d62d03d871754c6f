"""Deadlines of rounds in which devices run backward layer by layer, and the chances of how far each gets by then.

A round has one deadline for all. What a device may compute until then is the deadline less what its assignment and its
update take on the network; each of its local steps has an equal part of that. How far a step gets then is the
machine's matter. What is planned here is the deadline, where none is given, and the chances by which layers that not
all devices reach are averaged (`layerwise.py`).

Shapes: N blocks that are followed back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from cutlayer.errors import ConfigError
from cutlayer.policies.layerwise import REACHED, Reach, pieces_of
from cutlayer.policies.plan import Planner, Situation
from cutlayer.policies.stragglers import Stragglers
from cutlayer.types import DevicePlan, RoundPlan

FRAMES = 1.05, 4096
"""Size of an adapter on its way: so many times its tensors, and so many bytes more, as their names go with them."""
ROUNDING = 1 + 1e-6
"""A deadline is that much longer than what it is to leave room for."""
ODDS = ("measured", "model", "uniform")

PLANNED = Stragglers(seconds=math.inf, late="use")
"""The patience of a method whose plans say how long each round is: who is late is asked for what it has done."""


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of a device, at texts of one length.

    Attributes:
      way: seconds on the network for its assignment and its update.
      fixed: seconds of a local step whatever its batch: latencies.
      crossing: seconds of a sample on its way to the server and back, and there.
      forward: seconds that the device computes for a sample before it follows the first block back.
      block: seconds of a sample for each block that is followed back.
      blocks: how many there are.
    """

    way: float
    fixed: float
    crossing: float
    forward: float
    block: float
    blocks: int

    @property
    def ahead(self) -> float:
        """The time of a sample before its first block, counted in blocks."""
        return (self.crossing + self.forward) / self.block

    def round_seconds(self, local_steps: int, samples: int, blocks: float) -> float:
        """Seconds of a round whose steps go back through so many blocks."""
        sample = self.crossing + self.forward + blocks * self.block
        return self.way + local_steps * (self.fixed + samples * sample)

    def slower(self, times: float) -> Pace:
        """The pace of a machine that takes so many times as long."""
        return replace(self, forward=times * self.forward, block=times * self.block)


def pace_of(device: DevicePlan, situation: Situation, num_devices: int) -> Pace:
    """The pace of a device by its profile, declared or measured when it joined, at the longest texts.

    Args:
      device: Its plan.
      situation: What is known.
      num_devices: Of the round: they share the server's connection, and the server may serve each of the others first.
    """
    costs, tokens, profile = situation.costs, situation.num_tokens, situation.profile(device.device)
    pieces, speed = pieces_of(device, costs, situation.rank, 1, tokens), profile.effective_flops
    whole = situation.fleet.server
    up = _shared(profile.up_bits_per_second, whole.up_bits_per_second, num_devices)
    down = _shared(profile.down_bits_per_second, whole.down_bits_per_second, num_devices)
    share, more = FRAMES
    adapter_bits = 8 * (share * costs.device_adapter_bytes(device) + more)
    fixed = crossing = 0.0
    if not device.alone:
        server = costs.server(device, 1, tokens)
        served = (server.forward_flops + server.backward_flops) / whole.effective_flops
        bits = 8 * costs.activation_bytes(1, tokens)
        crossing = bits / up + bits / down + num_devices * served
        fixed = 2 * profile.latency_seconds
    return Pace(
        way=adapter_bits / up + adapter_bits / down + 2 * profile.latency_seconds,
        fixed=fixed,
        crossing=crossing,
        forward=(pieces.forward_flops + pieces.head_flops) / speed,
        block=pieces.block_flops / speed,
        blocks=len(pieces.blocks),
    )


def _shared(own: float, of_all: float | None, num_devices: int) -> float:
    """Bits per second of a device, where all send at the same time: at the deadline."""
    return own if of_all is None else min(own, of_all / num_devices)


def measured_paces(plan: RoundPlan, situation: Situation) -> dict[str, Pace]:
    """The paces of a round's devices, by name: slower or faster than their profiles say by what rounds have measured.

    So a device that is busy with something else is known to be slow, and so is what shorter texts take.
    """
    return {device.device: _measured_pace(device, situation, len(plan.devices)) for device in plan.devices}


def _measured_pace(device: DevicePlan, situation: Situation, num_devices: int) -> Pace:
    pace = pace_of(device, situation, num_devices)
    records = [record for record in situation.history.of(device.device) if record.samples and REACHED in record.facts]
    busy = modelled = 0.0
    for record in records:
        followed = sum(record.facts[REACHED][: record.cut]) / max(1, record.steps)
        busy += record.busy_seconds
        modelled += record.samples * (pace.forward + followed * pace.block)
    return pace.slower(busy / modelled) if modelled and busy else pace


# ------------------------------------------------------------------ one deadline for every round


def layer_deadline(seconds: float | None = None, *, reach: float = 0.5, odds: str = "measured") -> Planner:
    """Ends every round after so long; devices stop so early that their updates are there by then.

    Args:
      seconds: Of a round; None for as long as the slowest device of the round needs to go back through the part `reach`
        of its blocks in every step, by its profile at the longest texts, and by what rounds have measured.
      reach: At 1, without `seconds`, rounds have no deadline at all.
      odds: Where the chances come from with which devices are taken to reach a block: `measured`, how often they did,
        and as long as little was measured the model; `model`, exponential times at their pace; `uniform`, every depth
        alike, as the paper simulates it.

    Raises:
      ConfigError: A number or a word that there is not; when planning, a deadline by which nobody can do anything.

    Example:
      >>> from cutlayer import everyone, layer_deadline, whole_model
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), whole_model(), layer_deadline(30.0))
      >>> plan.deadline_seconds, all(device.clauses[0].seconds < 30 for device in plan.devices)
      (30.0, True)
    """
    check_seconds("deadline", seconds)
    if not 0 < reach <= 1:
        raise ConfigError(f"method.reach: expected above 0 and at most 1, got {reach}. Change method.reach.")
    if odds not in ODDS:
        raise ConfigError(f"method.odds: expected one of {', '.join(ODDS)}, got {odds!r}. Change method.odds.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        if seconds is None and reach == 1:
            return plan
        paces = measured_paces(plan, situation)
        deadline = deadline_for(plan, paces, reach) if seconds is None else seconds
        if deadline <= (least := min(pace.way for pace in paces.values())):
            raise ConfigError(
                f"method.deadline: expected above {least:.3g} s, in which the adapter goes to the device with the best "
                f"link and back, got {deadline:g} s. Raise method.deadline."
            )
        return timed(plan, situation, paces, deadline, odds)

    return planner


def deadline_for(plan: RoundPlan, paces: Mapping[str, Pace], reach: float) -> float:
    """Seconds in which the slowest device goes back through so much of its blocks in every step."""

    def needs(device: DevicePlan) -> float:
        pace = paces[device.device]
        return pace.round_seconds(device.local_steps, device.batch_size, math.ceil(reach * pace.blocks))

    return ROUNDING * max(needs(device) for device in plan.devices)


def timed(plan: RoundPlan, situation: Situation, paces: Mapping[str, Pace], deadline: float, odds: str) -> RoundPlan:
    """The plan with its deadline, and what each device may compute until then.

    Args:
      plan: The round's.
      situation: What is known.
      paces: Of its devices.
      deadline: In seconds.
      odds: One of `ODDS`.
    """

    def until_then(device: DevicePlan) -> DevicePlan:
        pace = paces[device.device]
        seconds = max(0.0, deadline - pace.way)
        return device.having(Reach(seconds, _odds(device, pace, seconds, situation, odds)))

    return replace(plan.with_each(until_then), deadline_seconds=deadline)


# ------------------------------------------------------------------ chances


def chances_by_model(pace: Pace, seconds: float, samples: int) -> tuple[float, ...]:
    """The chances that a step of so many seconds gets through the head, and to each block from the output down.

    Times are exponential, of the mean that the pace says.
    """
    if not pace.blocks:
        return (1.0,)
    layers = pace.ahead + np.arange(pace.blocks + 1)
    within = max(0.0, seconds - pace.fixed) / (samples * pace.block)
    return tuple(torch.special.gammainc(torch.from_numpy(layers), torch.full((len(layers),), within).double()).tolist())


def chances_of_any_depth(blocks: int) -> tuple[float, ...]:
    """The same where a device's depth is any number of blocks from 1 on, all alike.

    >>> chances_of_any_depth(4)
    (1.0, 1.0, 0.75, 0.5, 0.25)
    """
    return (1.0, *((blocks - depth) / blocks for depth in range(blocks)))


def _odds(device: DevicePlan, pace: Pace, seconds: float, situation: Situation, odds: str) -> tuple[float, ...]:
    """See `Reach.odds`."""
    if odds == "uniform":
        head, *down = chances_of_any_depth(pace.blocks)
    else:
        head, *down = chances_by_model(pace, seconds / device.local_steps, device.batch_size)
    down += [0.0] * (device.cut - len(down))  # below the lowest block that has an adapter
    held = [*reversed(down), *([head] if device.alone else [])]
    if odds == "measured":
        held = _measured(device.device, situation, held)
    return (*held, *([1.0] * (situation.costs.num_blocks + 1 - len(held))))


def _measured(device: str, situation: Situation, before: list[float]) -> list[float]:
    """The part of the rounds in which each place was reached; what was thought before counts as one round.

    A round that the device has left reached nothing.
    """
    rounds = situation.history.of(device)
    counts = [record.facts.get(REACHED, []) for record in rounds]
    return [
        (sum(len(one) > place and one[place] > 0 for one in counts) + chance) / (len(rounds) + 1)
        for place, chance in enumerate(before)
    ]


def check_seconds(option: str, seconds: float | None) -> None:
    """Raises ConfigError for a time that is none."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise ConfigError(f"method.{option}: expected above 0 s, got {seconds}. Change method.{option}.")
