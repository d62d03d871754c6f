"""Cuts that make a round short: the devices' compute, the links and the server's time, weighed together.

Split Federated Learning Over Heterogeneous Edge Devices: Algorithm and Optimization (HSFL)
    Yunrui Sun, Gang Hu, Yinglei Teng, Dunbo Cai. 2024. https://arxiv.org/abs/2411.13907

    the paper                                            here
    -------------------------------------------------    ----------------------------------------
    latency of the slowest device, minimised             seconds of a round (latency_of)
    sample average approximation over channel states     link_slowdown(spread, samples)
    computing and transmission resources jointly         shares of the server and of its connection
    Lagrangian relaxation, branch and bound              _Loads.decide: a price of bandwidth; _Loads.bound
    genetic algorithm                                    _Search.genetic

What is certain (abstract): latency is minimised, over computing and transmission resources jointly and with cuts that
differ, by these tools. Our reading: all formulas, and how the tools are put together.

A device's round is its compute, its transfers and the server's work for it, one after the other. With the share beta of
the server's connection it sends at beta of the capacity, or at the rate of its own link if that is less; where the
fleet declares no capacity, links are the devices' own and nothing of them is shared. With the share phi of the server,
which does one piece of work at a time, two things hold: of the time from its first activations to its last answer the
server works for it at most the part phi; and once in a round, when devices that begin together meet at the server, its
piece takes 1 / phi of what it takes alone. In a round of one step this is a server that works for all at once, each at
its share of the speed, as the paper has it; why it is so in a longer one is docs/decisions/0028-shares-of-a-server.md.

For given cuts seconds come by bisection: a round can take tau seconds iff every device can have shares with which it
meets tau and which add up to at most 1. Of the pairs (beta, phi) with which a device meets tau it gets the one that
costs least at a price of bandwidth in terms of the server, in closed form. If at any price the cheapest shares together
cost more than the whole of both, no shares will do (weak duality); for given cuts there always is a price that shows
either, by convexity. With cuts left open, each device choosing its cheapest, the same test gives seconds that no cuts
can undercut, and cuts to start from; where nothing but the server is shared, they are the best that there are.

Shapes: P plans, N devices, C cuts that a device may have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import DeviceProfile, Fleet
from cutlayer.policies.cut import check_range, cuts_that_fit
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import DevicePlan, RoundPlan

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Bools = NDArray[np.bool_]

TOLERANCE, COARSE = 1e-7, 1e-5
"""Precision of seconds, as a part of them: of a plan that is reported, and of one that is tried."""
GAP = 1e-3
"""The search ends where its cuts are this near to what no cuts can undercut, as a part of it."""
POPULATION, GENERATIONS, TOURNAMENT, MUTATION = 40, 60, 3, 0.1
PRICES = (1e-9, 1e9)
"""Lowest and highest price of bandwidth: as good as nothing, and as good as all."""
TINY = 1e-100
"""Divisor in place of 0."""


@dataclass(frozen=True, slots=True)
class LatencyPlan:
    """Seconds that a round of a plan takes at best, and the shares with which it does.

    Attributes:
      seconds: From the first assignment to the last update.
      bandwidth_shares: By device, of the server's connection, each way; they add up to at most 1. Empty where the
        fleet declares none that is shared.
      server_shares: By device, of the server's time while it works for the device; they add up to at most 1.
    """

    seconds: float
    bandwidth_shares: Mapping[str, float]
    server_shares: Mapping[str, float]


def cut_by_latency(*, least: int = 1, spread: float = 0.0, samples: int = 20) -> Planner:
    """Cuts every device so that the round of the slowest is short, as `latency_of` reckons it.

    As many plans as the genetic search would try are tried one by one where there are no more; else the search finds
    cuts, by the run's seed. Cuts are the same in every round in which the same devices take part: put the planner after
    whatever thins the cohort.

    Args:
      least: The fewest blocks that a device must be able to hold; one that cannot is an error, never a silent 0.
      spread: Of the links' rates, see `link_slowdown`; 0 takes them as declared.
      samples: States of a link over which its transfers are averaged.

    Raises:
      ConfigError: A `spread` or `samples` that makes no sense; when planning, the model has fewer blocks than `least`,
        or a device's owner lends fewer.
      BudgetError: When planning, a device cannot hold `least` blocks.

    Example:
      >>> from cutlayer import cut_by_latency, everyone
      >>> from cutlayer.testing.playground import fleet_of, planned
      >>> plan = planned(everyone(), cut_by_latency(), fleet=fleet_of(3, max_blocks=(3,)))
      >>> [device.cut for device in plan.devices]  # the slowest holds little, those with time to spare spare the server
      [1, 2, 3]
    """
    _check_links(spread, samples)

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        check_range("least", least, situation)
        options = [sorted(cuts_that_fit(device, situation, least)) for device in plan.devices]
        search = _Search(
            _loads(plan, options, situation, spread, samples),
            np.array([len(cuts) for cuts in options]),
            situation.random(0, "cut_by_latency"),
        )
        chosen = zip(plan.devices, options, search.best().tolist(), strict=True)
        return replace(plan, devices=tuple(replace(device, cut=cuts[index]) for device, cuts, index in chosen))

    return planner


def latency_of(plan: RoundPlan, situation: Situation, *, spread: float = 0.0, samples: int = 20) -> LatencyPlan:
    """The shares with which the slowest device of a plan is done soonest; seconds are exact to `TOLERANCE`.

    Batches have the longest texts, go up and down whole, and are not compressed. Machines have their declared speeds.

    Args:
      plan: Devices, with their cuts.
      situation: What is known.
      spread: As of `cut_by_latency`.
      samples: As of `cut_by_latency`.

    Raises:
      ConfigError: A `spread` or `samples` that makes no sense.
    """
    _check_links(spread, samples)
    loads = _loads(plan, [[device.cut] for device in plan.devices], situation, spread, samples)
    seconds_P, price_P = loads.least_seconds()
    beta_PN1, phi_PN1 = loads.shares(seconds_P, price_P)
    names = [device.device for device in plan.devices]
    shared = bool(loads.wide.any())
    return LatencyPlan(
        float(seconds_P[0]),
        dict(zip(names, beta_PN1[0, :, 0].tolist(), strict=True)) if shared else {},
        dict(zip(names, phi_PN1[0, :, 0].tolist(), strict=True)),
    )


def link_slowdown(device: str, situation: Situation, spread: float, samples: int) -> float:
    """The factor by which a device's transfers take longer than at the declared rate, averaged over states of its link.

    A state multiplies the rate, be it that of the device's own link or its share of the server's connection, by
    exp(spread x a normal draw): half of the states are better than declared. The draws are the device's own, the same
    in every round.

    Args:
      device: Its name.
      situation: Whose seed draws.
      spread: Standard deviation of the rate's logarithm; 0 gives exactly 1.
      samples: Number of states.
    """
    draws = situation.random(0, f"link states of {device}").standard_normal(samples)
    return float(np.exp(-spread * draws).mean())


# ------------------------------------------------------------------ what a round is made of


@dataclass(frozen=True)
class _Loads:
    """The parts of the rounds of N devices, at each of C cuts, (N, C), or at those of P plans, (P, N, 1).

    With the share beta of the connection, transfers take `both / beta` seconds while both ways are slower than the
    device's own link, which is up to beta = `narrow`; from there on `rest + part / beta`, up to beta = `wide`, where
    both are as fast as its own link. A way on which nothing is shared, or sent, is in `fixed`.

    Attributes:
      fixed: Seconds that no share changes: compute, latency, transfers over links that are nobody else's, and pieces of
        work of the server but for one.
      piece: Seconds of the server's work for one step.
      pieces: For all of them.
      ends: Seconds before the first activations are at the server, and after the last answer, at the least.
      both: Seconds of shared transfers at the whole capacity, both ways.
      part: Those on the way that needs the larger share to be as fast as the device's own link.
      rest: Seconds on the other way, at the rate of the device's own link.
      narrow, wide: Shares at which the one and the other way are as fast as the device's own link.
      alone: Seconds of the round if nobody else takes part; infinite where the device cannot have that cut.
    """

    fixed: Floats
    piece: Floats
    pieces: Floats
    ends: Floats
    both: Floats
    part: Floats
    rest: Floats
    narrow: Floats
    wide: Floats
    alone: Floats

    def of(self, choice_PN: Ints) -> _Loads:
        """The loads of these cuts, each an index into what the device may have."""
        devices_N = np.arange(choice_PN.shape[1])
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        return _Loads(**{name: array_NC[devices_N, choice_PN][..., None] for name, array_NC in arrays.items()})

    def shares(self, seconds_P: Floats, price_P: Floats) -> tuple[Floats, Floats]:
        """The shares (beta, phi) with which each device's round takes so long, (P, N, C) each, at the least cost.

        Of the seconds that are left for transfers and a piece of work, x go to transfers: beta = both / x and
        phi = piece / (left - x), and price * beta + phi is least at beta = (both + sqrt(both * piece / price)) / left.
        Where that is above `narrow`, it is the same with what is left but for `rest`, from `narrow` to `wide`, because
        the cost is convex. Nor is more bandwidth of use than makes phi what all pieces together need.

        A device that cannot be done in time has an infinite phi.
        """
        seconds, price = seconds_P[:, None, None], price_P[:, None, None]
        left = np.maximum(seconds, self.alone) - self.fixed
        for_all = self.pieces / np.maximum(np.maximum(seconds, self.alone) - self.ends, TINY)
        balanced = self._beta(
            (self.both + np.sqrt(self.both * self.piece / price)) / np.maximum(left, TINY),  # 0 for who needs nobody
            (self.part + np.sqrt(self.part * self.piece / price)) / np.maximum(left - self.rest, TINY),
        )
        moving = left - self.piece / np.maximum(for_all, TINY)
        enough = self._beta(self.both / np.maximum(moving, TINY), self.part / np.maximum(moving - self.rest, TINY))
        beta = np.minimum(balanced, enough)
        some = np.maximum(beta, TINY)
        moving = np.where(beta < self.narrow, self.both / some, self.rest + self.part / some)
        phi = np.maximum(for_all, self.piece / np.maximum(left - moving, TINY))
        return beta, np.where(self.alone <= seconds, phi, np.inf)

    def _beta(self, slow: Floats, fast: Floats) -> Floats:
        """A share, given what it would be were both ways slower than the device's own link, and were but one."""
        beta: Floats = np.where(slow < self.narrow, slow, np.clip(fast, self.narrow, self.wide))
        return beta

    def decide(self, seconds_P: Floats, price_P: Floats) -> tuple[Bools, Bools, Floats, Ints]:
        """Whether rounds of so many seconds can be had, each device choosing the cut that costs it least.

        Args:
          seconds_P: What is asked about.
          price_P: Where to begin the search for a price that shows it.

        Returns:
          Whether the shares add up to at most 1 (P,); whether those of no cuts do (P,); the last price (P,), at which
          that shows; and the cuts chosen at it (P, N). Neither shows where only a mixture of cuts would do, or within
          the rounding of floating point.
        """
        low_P, high_P = (np.full(len(seconds_P), price) for price in PRICES)
        stride = 1.5  # at first no further than that from the price that it begins at, which is nearly right
        while True:
            beta, phi = self.shares(seconds_P, price_P)
            choice_PN = (price_P[:, None, None] * beta + phi).argmin(axis=-1)
            beta_P, phi_P = (np.take_along_axis(x, choice_PN[..., None], -1).sum(axis=(1, 2)) for x in (beta, phi))
            fits_P = (beta_P <= 1) & (phi_P <= 1)
            never_P = price_P * beta_P + phi_P > price_P + 1
            dear_P = beta_P > 1
            low_P, high_P = np.where(dear_P, price_P, low_P), np.where(dear_P, high_P, price_P)
            open_P = ~fits_P & ~never_P & (high_P > low_P * (1 + TOLERANCE))
            if not open_P.any():
                return fits_P, never_P, price_P, choice_PN
            halfway_P = np.clip(np.sqrt(low_P * high_P), price_P / stride, price_P * stride)
            price_P = np.where(open_P, halfway_P, price_P)
            stride *= stride

    def least_seconds(self, tolerance: float = TOLERANCE) -> tuple[Floats, Floats]:
        """The least seconds of each plan, (P,), and a price at which `shares` gives shares that do, (P,)."""
        low_P, high_P, price_P = *self._limits(), np.full(self._num_plans, PRICES[0])
        found_P = price_P
        while (high_P - low_P > tolerance * high_P).any():
            middle_P = (low_P + high_P) / 2
            fits_P, _, price_P, _ = self.decide(middle_P, price_P)
            high_P, low_P = np.where(fits_P, middle_P, high_P), np.where(fits_P, low_P, middle_P)
            found_P = np.where(fits_P, price_P, found_P)
        return high_P, found_P

    def bound(self) -> tuple[float, Ints]:
        """Seconds that no cuts can undercut, and cuts that may come near to it, (P, N); of one plan."""
        (low,), (high,), price_P = *self._limits(), np.full(1, PRICES[0])
        tried = []
        while high - low > TOLERANCE * high:
            middle = (low + high) / 2
            _, (never,), price_P, choice_PN = self.decide(np.array([middle]), price_P)
            low, high = (middle, high) if never else (low, middle)
            if not never:
                tried.append(choice_PN[0])
        return float(low), np.array(tried[::-1])

    def _limits(self) -> tuple[Floats, Floats]:
        """Seconds that are too few and enough, each (P,)."""
        first = self.alone.argmin(axis=-1)[..., None]
        alone, both, pieces, wide = (
            np.take_along_axis(x, first, -1)[..., 0].reshape(self._num_plans, -1)
            for x in (self.alone, self.both, self.pieces, self.wide)
        )
        equal = wide / np.maximum(1, wide.sum(axis=1, keepdims=True))
        slowed = alone + both / np.maximum(equal, TINY) + pieces.sum(axis=1, keepdims=True)
        return alone.max(axis=1), 2 * slowed.max(axis=1)

    @property
    def _num_plans(self) -> int:
        return len(self.alone) if self.alone.ndim == 3 else 1


def _loads(
    plan: RoundPlan, options: Sequence[Sequence[int]], situation: Situation, spread: float, samples: int
) -> _Loads:
    """The parts of the rounds of a plan's devices, at each of the cuts that they may have."""
    amounts, width = cache(partial(_amounts, situation)), max(map(len, options))
    rows = []
    for device, cuts in zip(plan.devices, options, strict=True):
        profile = situation.profile(device.device)
        slowdown = link_slowdown(device.device, situation, spread, samples)
        at_cuts = [amounts(replace(device, device="", cut=cut)) for cut in cuts]
        terms = [_terms(profile, situation.fleet, slowdown, at_cut) for at_cut in at_cuts]
        rows.append(terms + [NO_CUT] * (width - len(cuts)))
    return _Loads(**{name: np.array([[terms[name] for terms in row] for row in rows]) for name in NO_CUT})


@dataclass(frozen=True, slots=True)
class _Amounts:
    """The work and the data of a device's round, whoever the device is.

    Attributes:
      steps: Local steps.
      flops: Its own, for a step.
      server_flops: The server's, for a step.
      step_bits: Activations up and gradients down, of a step.
      adapter_bits: The adapter that comes at the beginning and goes at the end.
      waits: For how many answers a step waits.
    """

    steps: int
    flops: float
    server_flops: float
    step_bits: tuple[float, float]
    adapter_bits: float
    waits: int


def _amounts(situation: Situation, plan: DevicePlan) -> _Amounts:
    shape, costs = (plan, plan.batch_size, situation.num_tokens), situation.costs
    own, adapter_bits = costs.device(*shape), 8 * costs.device_adapter_bytes(plan)
    flops = own.forward_flops + own.backward_flops
    if plan.alone:
        return _Amounts(plan.local_steps, flops, 0.0, (0.0, 0.0), adapter_bits, waits=0)
    served, bits = costs.server(*shape), 8 * costs.activation_bytes(*shape[1:])
    answered = costs.device_adapter_bytes(plan.below) > 0  # what trains nothing is answered with a loss alone
    step_bits = (bits * (1 + plan.head), bits * (answered + plan.head))  # twice, of a device that has the labels
    server_flops = served.forward_flops + served.backward_flops
    return _Amounts(plan.local_steps, flops, server_flops, step_bits, adapter_bits, waits=1 + plan.head)


NO_CUT = {field.name: 0.0 for field in fields(_Loads)} | {"alone": math.inf}
"""The terms of a cut that a device cannot have."""


def _terms(profile: DeviceProfile, fleet: Fleet, slowdown: float, amounts: _Amounts) -> dict[str, float]:
    """The fields of `_Loads`, for one device at one cut."""
    steps, rates, server = amounts.steps, fleet.rates(profile), fleet.server
    step = amounts.flops / profile.effective_flops + 2 * profile.latency_seconds * amounts.waits
    piece = amounts.server_flops / server.effective_flops
    once = [slowdown * amounts.adapter_bits / rate for rate in rates]
    each = [slowdown * bits / rate for bits, rate in zip(amounts.step_bits, rates, strict=True)]
    sent = [one + steps * other for one, other in zip(once, each, strict=True)]
    capacities = server.up_bits_per_second, server.down_bits_per_second
    limits = [rate / (capacity or math.inf) for rate, capacity in zip(rates, capacities, strict=True)]
    (narrow, rest), (wide, last) = sorted(
        (limit, seconds) if limit and seconds else (0.0, 0.0) for limit, seconds in zip(limits, sent, strict=True)
    )
    alone = 2 * profile.latency_seconds + steps * (step + piece) + sum(sent)
    return {
        "fixed": alone - rest - last - piece,
        "piece": piece,
        "pieces": steps * piece,
        "ends": 2 * profile.latency_seconds + step + sum(once) + sum(each),
        "both": narrow * rest + wide * last,
        "part": wide * last,
        "rest": rest,
        "narrow": narrow,
        "wide": wide,
        "alone": alone,
    }


# ------------------------------------------------------------------ which cuts


@dataclass(frozen=True)
class _Search:
    """The search for the cuts with which a round is shortest; cuts are indices into what each device may have.

    Attributes:
      loads: Of every device at every cut that it may have, (N, C).
      num_N: How many it may have.
      rng: Of every draw.
    """

    loads: _Loads
    num_N: Ints
    rng: np.random.Generator

    def best(self) -> Ints:
        """The best cuts that were found, (N,)."""
        bound, tried_PN = self.loads.bound()
        start_PN = np.unique(tried_PN, axis=0)
        seconds_P = self.seconds(start_PN)
        if seconds_P.min() <= bound * (1 + GAP):
            return _first(start_PN, seconds_P)
        if math.prod(self.num_N.tolist()) <= POPULATION * (GENERATIONS + 1):
            return self.enumerated()
        return self.genetic(start_PN[seconds_P.argsort(kind="stable")], bound)

    def seconds(self, choice_PN: Ints) -> Floats:
        """Seconds of the round with each of these cuts, (P,)."""
        return self.loads.of(choice_PN).least_seconds(COARSE)[0]

    def enumerated(self) -> Ints:
        """The best of all cuts, (N,)."""
        every_PN = np.array(list(itertools.product(*map(range, self.num_N))))
        return _first(every_PN, self.seconds(every_PN))

    def genetic(self, start_PN: Ints, bound: float) -> Ints:
        """The best cuts of a genetic search, (N,); the best of a generation are in the next.

        Args:
          start_PN: Cuts to begin with, the best first; the rest of the first generation is drawn.
          bound: Seconds at which there is nothing more to find.
        """
        start_PN = start_PN[:POPULATION]
        drawn_PN = self.rng.integers(self.num_N, size=(POPULATION - len(start_PN), len(self.num_N)))
        choice_PN = np.concatenate([start_PN, drawn_PN])
        seconds_P = self.seconds(choice_PN)
        for _ in range(GENERATIONS):
            if seconds_P.min() <= bound * (1 + GAP):
                break
            best, child_PN = seconds_P.argmin(), self._children(choice_PN, seconds_P)
            choice_PN = np.concatenate([choice_PN[[best]], child_PN])
            seconds_P = np.concatenate([seconds_P[[best]], self.seconds(child_PN)])
        return _first(choice_PN, seconds_P)

    def _children(self, choice_PN: Ints, seconds_P: Floats) -> Ints:
        """A generation but for its best: of two tournaments' winners, each cut of either, some moved by one block."""
        shape = (POPULATION - 1, choice_PN.shape[1])
        drawn = self.rng.integers(len(choice_PN), size=(2, shape[0], TOURNAMENT))
        winners = np.take_along_axis(drawn, seconds_P[drawn].argmin(axis=2)[..., None], axis=2)[..., 0]
        crossed_PN = np.where(self.rng.random(shape) < 0.5, choice_PN[winners[0]], choice_PN[winners[1]])
        moves_PN = self.rng.choice((-1, 1), size=shape) * (self.rng.random(shape) < MUTATION)
        children_PN: Ints = np.clip(crossed_PN + moves_PN, 0, self.num_N - 1)
        return children_PN


def _first(choice_PN: Ints, seconds_P: Floats) -> Ints:
    """The best cuts, (N,); of equals, those that come first."""
    best_N: Ints = choice_PN[seconds_P.argmin()]
    return best_N


def _check_links(spread: float, samples: int) -> None:
    if not (math.isfinite(spread) and spread >= 0):
        raise ConfigError(f"method.spread: expected at least 0, got {spread}. Change method.spread.")
    if samples < 1:
        raise ConfigError(f"method.samples: expected at least 1, got {samples}. Change method.samples.")
