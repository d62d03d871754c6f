"""Deadlines of all rounds and batches of all devices, planned together so that a bound on the loss is least.

Adaptive Deadline and Batch Layered Synchronized Federated Learning (ADEL-FL)
    Asaf Goren, Natalie Lang, Nir Shlezinger, Alejandro Cohen. 2025. https://arxiv.org/abs/2505.23973

    the paper, and the authors' code                          here
    -----------------------------------------------------     ------------------------------------------
    a layer of u takes Exp(P_u / S_u), the network B_u        Pace: what a block takes, and what comes before
    Pr(layer i is not reached) = Q(i, T / m)                  Bound.layers: i and what comes ahead, see below
    min over T_1..T_R, m of sum_t a_t (B + C_t), where
      a_t = eta_t^2 prod_{s > t} (1 - rho eta_s)              Bound.weights
      B = sum_u sigma^2 / (U^2 m P_u)                         Bound.noise / m
      C_t = G^2 4U/(U-1) sum_i (1 + p_i)/(1 - 2 p_i)          Bound.at, p_i = Q^U
    sum_t T_t <= budget, T_t >= t_min; scipy                  solved: SLSQP, and p_i < 1/2
    S_u = round(m P_u max(0, (T_1 - B_u) / T_1))              batches

Certain, from the authors' code: all formulas above. Terms that neither a deadline nor m changes are left out, and of
sigma and G only the ratio decides. Their minimiser may make p_i larger than 1/2, where the bound turns negative: here
it may not. The paper's devices run backward from the first moment; here a forward pass and the head come before the
first block, and count as so many blocks as they take as long (`Pace.ahead`), all of them exponential. The random times
are the model by which deadlines are found and chances are told; what a device does in a run is its machine's matter.

Shapes: R rounds, N blocks that are followed back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cutlayer.errors import ConfigError
from cutlayer.policies.deadlines import ROUNDING, Pace, check_seconds, deadline_for, pace_of, timed
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import DevicePlan, RoundPlan

Floats = NDArray[np.float64]

MOST_MISSED = 0.45
"""The chance that nobody reaches the lowest block is kept below this; at 1/2 the bound is infinite."""


def deadlines_and_batches(
    budget: float | None = None, *, noise: float = 29.0, eta: float = 0.5, rho: float = 0.3, rates: str = "inverse"
) -> Planner:
    """Plans all rounds' deadlines and the devices' batches together, so that a bound on the loss is least (ADEL-FL).

    Every device gets as many samples as let it go as far back as the others, in expectation; and no more than its
    memory holds. Deadlines are the same for all devices and may differ from round to round. The solution depends on
    the devices of the round and their profiles: as long as these stay, it is that of the first round.

    Args:
      budget: Seconds of all rounds together; None for as long as `layer_deadline()` would take.
      noise: Standard deviation of a sample's gradient, in norms of a gradient (sigma / G).
      eta: The first learning rate of the bound; not of the run.
      rho: Its strong convexity.
      rates: `inverse`, eta over the number of the round, or `constant`.

    Raises:
      ConfigError: A number or a word that there is not; when planning, a budget in which a device cannot go back
        through one block of one sample in every step, or no scipy.

    Example:
      >>> from cutlayer import deadlines_and_batches, everyone, whole_model
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), whole_model(), deadlines_and_batches(60.0), rounds=10)
      >>> speeds = [1, 3, 5]  # of the three devices
      >>> [round(device.batch_size / speed / plan.devices[0].batch_size) for device, speed in zip(plan.devices, speeds)]
      [1, 1, 1]
    """
    check_seconds("budget", budget)
    for name, value in (("noise", noise), ("eta", eta), ("rho", rho)):
        if not 0 <= value < math.inf:
            raise ConfigError(f"method.{name}: expected at least 0, got {value}. Change method.{name}.")
    if not rho * eta < 1:
        raise ConfigError(
            f"method.eta: expected below 1 / method.rho ({1 / rho:.3g}), got {eta}. Change method.eta or method.rho."
        )
    if rates not in RATES:
        raise ConfigError(f"method.rates: expected one of {', '.join(RATES)}, got {rates!r}. Change method.rates.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        rounds = situation.rounds
        paces = {one.device: pace_of(one, situation, len(plan.devices)) for one in plan.devices}
        total = rounds * deadline_for(plan, paces, reach=0.5) if budget is None else budget
        steps = max(device.local_steps for device in plan.devices)
        bound = Bound(
            total=total,
            rounds=rounds,
            local_steps=steps,
            paces=tuple(paces[device.device] for device in plan.devices),
            noise_ratio=noise,
            eta=eta,
            rho=rho,
            rates=rates,
        )
        schedule = solved(bound)
        sizes = batches(schedule, paces, steps)
        sized = plan.with_each(
            lambda device: _within_memory(replace(device, batch_size=sizes[device.device]), situation)
        )
        return timed(sized, situation, paces, schedule.deadlines[plan.round], "model")

    return planner


RATES: dict[str, Callable[[Floats], Floats]] = {"inverse": lambda t: 1 / (t + 1), "constant": np.ones_like}


@dataclass(frozen=True, slots=True)
class Schedule:
    """A solution.

    Attributes:
      deadlines: seconds of each round.
      block_seconds: m, what a block takes of everybody's local step where the network takes nothing.
    """

    deadlines: tuple[float, ...]
    block_seconds: float


def batches(schedule: Schedule, paces: Mapping[str, Pace], local_steps: int) -> dict[str, int]:
    """The samples of each device's steps, the same in every round: as many as take `block_seconds` a block in what is
    left of the first round when the network has had its part; at least one.
    """
    first = schedule.deadlines[0]

    def size(pace: Pace) -> int:
        left = max(0.0, first - pace.way - local_steps * pace.fixed)
        return max(1, round(schedule.block_seconds / pace.block * left / first))

    return {device: size(pace) for device, pace in paces.items()}


@dataclass(frozen=True)
class Bound:
    """A bound on the distance to the best loss, which is minimised over deadlines T_R and m.

    Attributes:
      total: seconds of all rounds.
      rounds: R.
      local_steps: of a device in a round; a step has its part of a deadline.
      paces: of the devices.
      noise_ratio, eta, rho, rates: see `deadlines_and_batches`.
    """

    total: float
    rounds: int
    local_steps: int
    paces: tuple[Pace, ...]
    noise_ratio: float
    eta: float
    rho: float
    rates: str

    @cached_property
    def layers(self) -> Floats:
        """Blocks of work up to the end of each block from the output down; a device is as far ahead as any other."""
        pace = self.paces[0]
        layers_N: Floats = pace.ahead + np.arange(1.0, pace.blocks + 1)
        return layers_N

    @cached_property
    def weights(self) -> Floats:
        """a_t: how much of what a round adds is left at the end."""
        rates_R = self.eta * RATES[self.rates](np.arange(self.rounds, dtype=np.float64))
        kept_R = 1 - self.rho * rates_R
        after_R = np.append(np.cumprod(kept_R[::-1])[::-1][1:], 1.0)
        weights_R = rates_R**2 * after_R
        normal_R: Floats = weights_R / weights_R.mean() if weights_R.any() else np.ones(self.rounds)
        return normal_R

    @property
    def noise(self) -> float:
        """B m: what small batches cost."""
        return self.noise_ratio**2 * sum(pace.block for pace in self.paces) / len(self.paces) ** 2

    @property
    def scale(self) -> float:
        """4U / (U - 1), taken to be 4 where one device is all there are."""
        return 4 * len(self.paces) / max(1, len(self.paces) - 1)

    @cached_property
    def least_layers(self) -> float:
        """Layers of a step in expectation at which nobody reaching the lowest block is as likely as it may be."""
        return float(_scipy("special").gammainccinv(self.layers[-1], MOST_MISSED ** (1 / len(self.paces))))

    @property
    def least_seconds(self) -> float:
        """Seconds in which every device goes back through one block of one sample in every step."""
        return ROUNDING * max(pace.round_seconds(self.local_steps, 1, 1) for pace in self.paces)

    def at(self, deadlines_R: Floats, m: float) -> tuple[float, Floats, float]:
        """The bound, and its slopes by the deadlines and by m."""
        within_R1 = (deadlines_R / (self.local_steps * m))[:, None]
        special = _scipy("special")
        missed_RN = special.gammaincc(self.layers, within_R1)
        nobody_RN = missed_RN ** len(self.paces)
        layer_RN, by_nobody_RN = _of_a_layer(nobody_RN)
        density_RN = np.exp((self.layers - 1) * np.log(within_R1) - within_R1 - special.gammaln(self.layers))
        slope_RN = -by_nobody_RN * len(self.paces) * missed_RN ** (len(self.paces) - 1) * density_RN
        value = (self.weights * (self.noise / m + self.scale * layer_RN.sum(axis=1))).sum()
        by_within_R = self.weights * self.scale * slope_RN.sum(axis=1)
        by_deadlines_R = by_within_R / (self.local_steps * m)
        by_m = -(self.weights * self.noise).sum() / m**2 - (by_within_R * within_R1[:, 0]).sum() / m
        return float(value), by_deadlines_R, float(by_m)


def _of_a_layer(nobody: Floats) -> tuple[Floats, Floats]:
    """(1 + p) / (1 - 2 p) and its slope; from MOST_MISSED on, where no solution lies, a straight line."""
    p = np.minimum(nobody, MOST_MISSED)
    slope = 3 / (1 - 2 * p) ** 2
    return (1 + p) / (1 - 2 * p) + slope * (nobody - p), slope


@cache
def solved(bound: Bound) -> Schedule:
    """The deadlines and m at which the bound is least.

    Raises:
      ConfigError: The budget is too short for a device, or scipy is not installed.
    """
    optimize = _scipy("optimize")
    rounds, mean = bound.rounds, bound.total / bound.rounds
    if mean < bound.least_seconds:
        raise ConfigError(
            f"method.budget: expected at least {rounds * bound.least_seconds:.3g} s for {rounds} rounds, in which "
            f"every device goes back through one block of one sample in each step, got {bound.total:.3g} s. Raise "
            "method.budget, lower train.local_steps or train.rounds, or leave the slowest device out."
        )
    most = mean / (bound.local_steps * bound.least_layers)  # of m, where all deadlines are alike
    start = min(1.0, bound.least_layers / bound.layers[-1])

    def value(x: Floats) -> tuple[float, Floats]:
        value, by_deadlines_R, by_m = bound.at(x[:-1] * mean, x[-1] * most)
        return value, np.append(by_deadlines_R * mean, by_m * most)

    sums = np.append(np.ones(rounds), 0.0)[None]
    reaches = np.hstack([np.eye(rounds), -np.ones((rounds, 1))])  # T_t / mean >= m / most
    found = optimize.minimize(
        value,
        np.append(np.ones(rounds), start),
        jac=True,
        method="SLSQP",
        bounds=[(bound.least_seconds / mean, None)] * rounds + [(1e-3, 1.0)],
        constraints=[
            optimize.LinearConstraint(sums, ub=rounds),
            optimize.LinearConstraint(reaches, lb=0.0),
        ],
        options={"maxiter": 500, "ftol": 1e-10},
    )
    deadlines_R = found.x[:-1] * mean * min(1.0, rounds / found.x[:-1].sum())
    m = min(found.x[-1] * most, deadlines_R.min() / (bound.local_steps * bound.least_layers))
    return Schedule(tuple(deadlines_R.tolist()), float(m))


def _scipy(part: str) -> Any:
    """The module `scipy.<part>`, imported where deadlines are solved: on a device it would only take memory."""
    try:
        return import_module(f"scipy.{part}")
    except ImportError as error:
        raise ConfigError(
            "method adel: expected scipy to be installed, which solves for the deadlines, got an ImportError. Install "
            "cutlayer[deadlines]."
        ) from error


def _within_memory(device: DevicePlan, situation: Situation) -> DevicePlan:
    """The device with its batch, or the largest smaller one that its memory holds."""
    room, size = situation.profile(device.device).memory_bytes, device.batch_size
    while size > 1 and situation.device_bytes(replace(device, batch_size=size)) > room:
        size -= 1
    return replace(device, batch_size=size)
