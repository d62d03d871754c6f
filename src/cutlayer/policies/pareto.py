"""Time against energy: cut, bandwidth share and clock of every device, on the Pareto front of a round.

Predictive GAN-powered Multi-Objective Optimization for Hybrid Federated Split Learning
    Benshun Yin, Zhiyong Chen, Meixia Tao. 2022. https://arxiv.org/abs/2209.02428

    the paper                                           here
    -----------------------------------------------     ----------------------------------------
    time and energy of a round                          Tradeoff.of
    split, bandwidth and CPU frequency                  Choice: cut, share of a connection, clock
    solutions that others do not dominate               front
    a generator and a discriminator look for them       policies.pareto_search

Certain (abstract): several objectives, time and energy, over these decisions, and a predictive GAN that looks for
solutions. Our reading: all formulas, the levels of shares and clocks, and which point of the front is played. The paper
weighs objectives that nobody has to weigh beforehand; a run needs one plan, and `weight` picks it.

A device's step, one piece after the other: its own compute, the server's, four transfers. With a delay of d steps d + 1
of them are under way, so that steps follow each other in the time of the slowest piece, or of a (d+1)th of all. The
server does one thing at a time, so a round takes at least all that it does. Energy is of devices alone
(`fleet/allotment.py`): the server is plugged in.

Shapes: P plans, K devices, C cuts that a device may have, 3 decisions: cut, share, clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from cutlayer.errors import ConfigError
from cutlayer.fleet.allotment import Allotment
from cutlayer.policies.cut import check_range, cuts_that_fit
from cutlayer.policies.delay import delay_of
from cutlayer.policies.pareto_search import SEARCHES, front, span_of
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import DevicePlan, RoundPlan

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

CLOCKS = (0.4, 0.6, 0.8, 1.0)
"""Clocks of a device, as parts of its highest."""
SHARES = (1, 2, 3, 4, 5)
"""Shares of a connection that several devices use, in proportion to each other."""


def pareto_plan(*, search: str = "gan", evaluations: int = 1024, weight: float = 0.5, least: int = 1) -> Planner:
    """Gives every device a cut, a share of the connection and a clock: a plan that no other that was found dominates.

    The head must be on the devices (`labels_on_devices`), and the delay decided (`delayed`), before. Plans are the same
    in every round in which the same devices take part.

    Args:
      search: How plans are looked for: enumerate (all, or as many as may be tried, drawn evenly), nsga2 (of pymoo, the
        extra `pareto`), or gan.
      evaluations: The most plans that are tried.
      weight: Of time in the choice among the plans that are left: 1 the fastest, 0 the most frugal.
      least: The fewest blocks on a device, below the tail.

    Raises:
      ConfigError: An option that makes no sense; when planning, a device that cannot be cut below its tail.
      BudgetError: When planning, a device cannot hold `least` blocks.

    Example:
      >>> from cutlayer import everyone, labels_on_devices, pareto_plan
      >>> from cutlayer.testing.playground import planned
      >>> def frequencies(weight: float) -> list[float]:
      ...     planner = pareto_plan(search="enumerate", weight=weight)
      ...     plan = planned(everyone(), labels_on_devices(), planner, num_devices=2)
      ...     return [device.clauses[0].frequency for device in plan.devices]
      >>> frequencies(weight=0.0), max(frequencies(weight=1.0))
      ([0.4, 0.4], 1.0)
    """
    if search not in SEARCHES:
        raise ConfigError(f"method.search: expected one of {', '.join(SEARCHES)}, got {search!r}. Choose one of these.")
    if evaluations < 1:
        raise ConfigError(f"method.evaluations: expected at least 1, got {evaluations}. Change method.evaluations.")
    if not 0 <= weight <= 1:
        raise ConfigError(f"method.weight: expected 0 to 1, got {weight}. Change method.weight.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        check_range("least", least, situation)
        tradeoff = tradeoff_of(plan, situation, least)
        seed = int(situation.random(0, "pareto_plan").integers(2**31))
        found_PK3, points_P2 = found(tradeoff, search, evaluations, seed)
        choice_K3 = found_PK3[chosen(points_P2, weight)]
        shares_K, clocks_K = tradeoff.allotted(choice_K3[None])
        return replace(
            plan,
            devices=tuple(
                replace(device, cut=tradeoff.cuts[k][choice_K3[k, 0]]).having(
                    Allotment(float(clocks_K[0, k]), float(shares_K[0, k]))
                )
                for k, device in enumerate(plan.devices)
            ),
        )

    return planner


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """Plain numbers, so that they can be hashed: they give the seconds and joules of K devices' rounds at each cut.

    Attributes:
      cuts: by device, those that it may have.
      flops: by device and cut, its own in a step; server_flops: the server's.
      bits: by device and cut, of a step, up and down.
      adapter_bits: by device and cut, of the adapter, each way.
      speeds, rates, latencies, watts, radio: of each device; rates up and down.
      server_speed: of the server; capacity: of its connection up and down, infinite where nothing is shared.
      steps, delays: of each device in a round.
    """

    cuts: tuple[tuple[int, ...], ...]
    flops: tuple[tuple[float, ...], ...]
    server_flops: tuple[tuple[float, ...], ...]
    bits: tuple[tuple[tuple[float, float], ...], ...]
    adapter_bits: tuple[tuple[float, ...], ...]
    speeds: tuple[float, ...]
    rates: tuple[tuple[float, float], ...]
    latencies: tuple[float, ...]
    watts: tuple[float, ...]
    radio: tuple[float, ...]
    server_speed: float
    capacity: tuple[float, float]
    steps: tuple[int, ...]
    delays: tuple[int, ...]

    @property
    def sizes(self) -> Ints:
        """The number of levels of each decision, (K, 3)."""
        shares = len(SHARES) if len(self.cuts) > 1 and np.isfinite(self.capacity).any() else 1
        return np.array([(len(cuts), shares, len(CLOCKS)) for cuts in self.cuts])

    def allotted(self, choice_PK3: Ints) -> tuple[Floats, Floats]:
        """The shares of the connection, which add up to 1 in each plan, and the clocks; (P, K) both."""
        share_PK = np.array(SHARES, dtype=np.float64)[choice_PK3[..., 1]]
        return share_PK / share_PK.sum(1, keepdims=True), np.array(CLOCKS)[choice_PK3[..., 2]]

    def of(self, choice_PK3: Ints) -> Floats:
        """Seconds and joules of a round of each of these plans, (P, 2)."""
        share_PK, clock_PK = self.allotted(choice_PK3)
        cut_PK = choice_PK3[..., 0]
        devices = range(len(self.cuts))

        def at_cut(table: tuple[tuple[float, ...], ...]) -> Floats:
            return np.stack([np.array(table[k], dtype=np.float64)[cut_PK[:, k]] for k in devices], axis=1)

        compute_PK = at_cut(self.flops) / (np.array(self.speeds) * clock_PK)
        server_PK = at_cut(self.server_flops) / self.server_speed
        adapter_PK = at_cut(self.adapter_bits)
        crossing, once = [], []
        for way in (0, 1):
            rate_PK = np.minimum(np.array(self.rates)[:, way], share_PK * self.capacity[way])
            bits = tuple(tuple(pair[way] for pair in row) for row in self.bits)
            crossing.append(at_cut(bits) / rate_PK)
            once.append(adapter_PK / rate_PK)
        (up_PK, down_PK), ends_PK = crossing, once[0] + once[1]
        latency_K, steps_K, delay_K = np.array(self.latencies), np.array(self.steps), np.array(self.delays)
        chain_PK = compute_PK + server_PK + up_PK + down_PK + 4 * latency_K
        period_PK = np.maximum.reduce([compute_PK, server_PK, up_PK, down_PK, chain_PK / (1 + delay_K)])
        seconds_PK = ends_PK + 2 * latency_K + chain_PK + (steps_K - 1) * period_PK
        seconds_P = np.maximum(seconds_PK.max(1), (steps_K * server_PK).sum(1))
        on_air_PK = ends_PK + steps_K * (up_PK + down_PK)
        joules_PK = np.array(self.watts) * clock_PK**3 * steps_K * compute_PK + np.array(self.radio) * on_air_PK
        return np.stack([seconds_P, joules_PK.sum(1)], axis=1)


def tradeoff_of(plan: RoundPlan, situation: Situation, least: int = 1) -> Tradeoff:
    """The tradeoff of the devices in a plan, at every cut that they may have.

    Args:
      plan: Whose devices hold a tail.
      situation: What is known.
      least: The fewest blocks below it.

    Raises:
      ConfigError: A device has no cut below its tail.
      BudgetError: A device cannot hold `least` blocks.
    """
    cuts = [_cuts(device, situation, least) for device in plan.devices]
    plans = [[replace(device, cut=cut) for cut in own] for device, own in zip(plan.devices, cuts, strict=True)]
    profiles = [situation.profile(device.device) for device in plan.devices]
    server, costs = situation.fleet.server, situation.costs

    def flops(device: DevicePlan) -> float:
        cost = costs.device(device, device.batch_size, situation.num_tokens)
        return cost.forward_flops + cost.backward_flops

    def server_flops(device: DevicePlan) -> float:
        cost = costs.server(device, device.batch_size, situation.num_tokens)
        return cost.forward_flops + cost.backward_flops

    def bits(device: DevicePlan) -> tuple[float, float]:
        crossing = 8.0 * costs.activation_bytes(device.batch_size, situation.num_tokens)
        answered = costs.device_adapter_bytes(device.below) > 0
        return 2 * crossing, (1 + answered) * crossing

    return Tradeoff(
        cuts=tuple(map(tuple, cuts)),
        flops=tuple(tuple(map(flops, row)) for row in plans),
        server_flops=tuple(tuple(map(server_flops, row)) for row in plans),
        bits=tuple(tuple(map(bits, row)) for row in plans),
        adapter_bits=tuple(tuple(8.0 * costs.device_adapter_bytes(device) for device in row) for row in plans),
        speeds=tuple(profile.effective_flops for profile in profiles),
        rates=tuple((profile.up_bits_per_second, profile.down_bits_per_second) for profile in profiles),
        latencies=tuple(profile.latency_seconds for profile in profiles),
        watts=tuple(profile.watts for profile in profiles),
        radio=tuple(profile.radio_watts for profile in profiles),
        server_speed=server.effective_flops,
        capacity=(server.up_bits_per_second or float("inf"), server.down_bits_per_second or float("inf")),
        steps=tuple(device.local_steps for device in plan.devices),
        delays=tuple(delay_of(device) for device in plan.devices),
    )


@lru_cache(maxsize=64)  # a search is a function of its arguments, and every round asks for the same
def found(tradeoff: Tradeoff, search: str, evaluations: int, seed: int) -> tuple[Ints, Floats]:
    """The plans of those that a search has tried which none of these dominates, fastest first.

    Args:
      tradeoff: What plans take.
      search: See `pareto_plan`.
      evaluations: The most plans that are tried.
      seed: Of the search.

    Returns:
      Choices (P, K, 3), and what they take, (P, 2).
    """
    tried_PK3 = SEARCHES[search](tradeoff.of, tradeoff.sizes, evaluations, np.random.default_rng(seed))
    points_P2 = tradeoff.of(tried_PK3)
    best_P = front(points_P2)
    return tried_PK3[best_P], points_P2[best_P]


def chosen(points_P2: Floats, weight: float) -> int:
    """The place of the point of a front that is played: the nearest to the best of both, each by its span there.

    Args:
      points_P2: Seconds and joules.
      weight: Of the seconds.

    Example:
      >>> points = np.array([[1.0, 9.0], [2.0, 4.0], [8.0, 1.0]])
      >>> [chosen(points, weight) for weight in (0.0, 0.5, 1.0)]
      [2, 1, 0]
    """
    low_2, width_2 = span_of(points_P2)
    return int((((points_P2 - low_2) / width_2) @ np.array([weight, 1 - weight])).argmin())


def _cuts(device: DevicePlan, situation: Situation, least: int) -> list[int]:
    """The cuts that leave something to the server, in ascending order."""
    if device.top is None or device.top <= least:
        raise ConfigError(
            f"method.least: expected fewer than the blocks below the tail on {device.device}, which begins at "
            f"{device.top}, got {least}. Lower method.least, or method.tail."
        )
    return sorted(cut for cut in cuts_that_fit(device, situation, least) if cut < device.top)
