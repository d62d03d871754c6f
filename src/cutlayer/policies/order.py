"""Rules by which the server chooses whom it serves next of the devices that have arrived.

Memory-Efficient Split Federated Learning for LLM Fine-Tuning on Heterogeneous Mobile Devices
    Xiaopei Chen, Liang Li, Fei Ji, Wen Wu. IEEE INFOCOM IEILM 2025. https://arxiv.org/abs/2506.02940

That the paper optimises this order is in its abstract. Its rule (`ratio`: device-side adapters over device
speed, largest first) is recalled, not read, and whether it waits for a device that is not here is unknown:
hence both `ratio` and `strict_ratio`. `optimal` is ours: docs/decisions/0003-exact-server-order.md.

    order           serves first                              waits for a device
    --------------  ----------------------------------------  -------------------------
    fifo            who came first                            no
    random          anyone, by seed                           no
    longest_tail    who has most to do afterwards (Schrage)   no
    ratio           the largest ratio of those here           no
    strict_ratio    the largest ratio of all                  always
    optimal         the first of the best schedule            where the schedule gains by it

All ties go to the device name that sorts first, so no decision depends on the order of a list.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from cutlayer.errors import ConfigError
from cutlayer.policies.carlier import Job, Schedule, carlier, makespan, preemptive_bound, schrage
from cutlayer.state import State, Stateless

__all__ = [
    "ORDERS",
    "Job",
    "OptimalOrder",
    "Order",
    "Schedule",
    "carlier",
    "fifo",
    "longest_tail",
    "makespan",
    "optimal",
    "order_by_name",
    "preemptive_bound",
    "random_order",
    "ratio",
    "schrage",
    "simulate",
    "strict_ratio",
]


class Order(Protocol):
    """A rule for the server's queue. What it carries from one decision to the next is in its state.

    Attributes:
      name: as in a run file.
      waits: whether it may leave an arrived job waiting for one that is expected, however late that is.
    """

    name: str

    @property
    def waits(self) -> bool: ...

    def pick(self, now: float, arrived: Sequence[Job], expected: Sequence[Job]) -> Job | None:
        """Chooses the arrived job to serve now, or None to wait for the next arrival.

        Args:
          now: the time, in seconds from the jobs' origin.
          arrived: jobs whose activations are here.
          expected: jobs on their way, with the estimated time of arrival. One that will not come must be
            taken out by whoever gives up on its device: an order may wait as long as it is in here.

        Returns:
          One of `arrived`; None only while something is expected, or where nothing has arrived. Ask again at
          the next arrival, and when an expected time has passed without one.
        """

    def state(self) -> State:
        """The state that a resumed run needs to decide as this one would have."""

    def load(self, state: State) -> None:
        """Goes on from a `state`."""


@dataclass(slots=True)
class _Smallest(Stateless):
    """Serves the arrived job with the smallest key; never lets the server idle while one waits."""

    name: str
    key: Callable[[Job], float]
    waits: ClassVar[bool] = False

    def pick(self, now: float, arrived: Sequence[Job], expected: Sequence[Job]) -> Job | None:  # noqa: ARG002
        return min(arrived, key=lambda job: (self.key(job), job.device), default=None)


class _StrictRatio(Stateless):
    name = "strict_ratio"
    waits = True

    def pick(self, now: float, arrived: Sequence[Job], expected: Sequence[Job]) -> Job | None:  # noqa: ARG002
        first = min([*arrived, *expected], key=lambda job: (-job.ratio, job.device), default=None)
        return first if first in arrived else None


class _Random:
    name = "random"
    waits = False

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.num_picks = 0

    def pick(self, now: float, arrived: Sequence[Job], expected: Sequence[Job]) -> Job | None:  # noqa: ARG002
        if not arrived:
            return None
        # A fresh generator per pick: the state to save is a count, not a generator's 625 words.
        generator = random.Random(f"{self.seed}/{self.num_picks}")
        self.num_picks += 1
        return generator.choice(sorted(arrived, key=lambda job: job.device))

    def state(self) -> State:
        return State({"seed": self.seed, "num_picks": self.num_picks})

    def load(self, state: State) -> None:
        self.seed, self.num_picks = int(state.facts["seed"]), int(state.facts["num_picks"])


class OptimalOrder:
    """See `optimal`.

    Attributes:
      num_truncated: decisions in which the node limit was hit and the best schedule found was followed.
    """

    name = "optimal"
    waits = True

    def __init__(self, max_nodes: int) -> None:
        self.max_nodes = max_nodes
        self.num_truncated = 0

    def pick(self, now: float, arrived: Sequence[Job], expected: Sequence[Job]) -> Job | None:
        if not arrived:
            return None
        here = {replace(job, release_seconds=0.0): job for job in arrived}
        # When a late one will come nobody knows: it is planned once it is here.
        due = [job for job in expected if job.release_seconds > now]
        coming = [replace(job, release_seconds=job.release_seconds - now) for job in due]
        schedule = carlier([*here, *coming], max_nodes=self.max_nodes)
        self.num_truncated += not schedule.optimal
        return here.get(schedule.sequence[0])

    def state(self) -> State:
        return State({"num_truncated": self.num_truncated})

    def load(self, state: State) -> None:
        self.num_truncated = int(state.facts["num_truncated"])


def fifo() -> Order:
    """First come, first served.

    Example:
      >>> from cutlayer import fifo
      >>> from cutlayer.policies.carlier import Job
      >>> here = [Job("a", 0.0, 1.0, tail_seconds=1.0, ratio=1.0), Job("b", 1.0, 1.0, tail_seconds=9.0, ratio=2.0)]
      >>> fifo().pick(2.0, here, expected=[]).device
      'a'
    """
    return _Smallest("fifo", lambda job: job.release_seconds)


def random_order(seed: int) -> Order:
    """Any of those here with equal chance: the n-th choice depends on the seed, n and who is here.

    Example:
      >>> from cutlayer import random_order
      >>> from cutlayer.policies.carlier import Job
      >>> here = [Job("a", 0.0, 1.0, tail_seconds=1.0, ratio=1.0), Job("b", 1.0, 1.0, tail_seconds=9.0, ratio=2.0)]
      >>> random_order(seed=3).pick(2.0, here, expected=[]).device
      'b'
    """
    return _Random(seed)


def longest_tail() -> Order:
    """The device with the longest tail, of those here: optimal where all arrive together, else within twice.

    Example:
      >>> from cutlayer import longest_tail
      >>> from cutlayer.policies.carlier import Job
      >>> here = [Job("a", 0.0, 1.0, tail_seconds=1.0, ratio=1.0), Job("b", 1.0, 1.0, tail_seconds=9.0, ratio=2.0)]
      >>> longest_tail().pick(2.0, here, expected=[]).device
      'b'
    """
    return _Smallest("longest_tail", lambda job: -job.tail_seconds)


def ratio() -> Order:
    """The device with the most device-side adapters per FLOP/s of its own, of those here (recalled rule).

    Example:
      >>> from cutlayer import ratio
      >>> from cutlayer.policies.carlier import Job
      >>> here = [Job("a", 0.0, 1.0, tail_seconds=1.0, ratio=1.0), Job("b", 1.0, 1.0, tail_seconds=9.0, ratio=2.0)]
      >>> ratio().pick(2.0, here, expected=[]).device
      'b'
    """
    return _Smallest("ratio", lambda job: -job.ratio)


def strict_ratio() -> Order:
    """Descending ratio over all devices: the server idles until the next in line is here.

    Example:
      >>> from cutlayer import strict_ratio
      >>> from cutlayer.policies.carlier import Job
      >>> here, due = Job("a", 0.0, 5.0, tail_seconds=0.0, ratio=1.0), Job("b", 0.5, 1.0, tail_seconds=9.0, ratio=2.0)
      >>> print(strict_ratio().pick(0.0, [here], expected=[due]))  # it waits for b
      None
    """
    return _StrictRatio()


def optimal(*, max_nodes: int = 500) -> OptimalOrder:
    """The first job of a schedule of least makespan, found anew at every decision from who is here or due.

    It lets the server wait for a device that is due where that shortens the step, never for one that is late.

    Args:
      max_nodes: the search's limit per decision. Where it is hit, the best schedule found is followed, which
        is at least as good as `longest_tail` from here on, and the order's `num_truncated` counts it. Cohorts
        of up to 16 devices were not seen to reach 200; the hardest of 30 and more can reach any limit.

    Example:
      >>> from cutlayer import optimal
      >>> from cutlayer.policies.carlier import Job
      >>> here, due = Job("a", 0.0, 5.0, tail_seconds=0.0, ratio=1.0), Job("b", 0.5, 1.0, tail_seconds=9.0, ratio=2.0)
      >>> print(optimal().pick(0.0, [here], expected=[due]))  # it waits for b
      None
    """
    return OptimalOrder(max_nodes)


ORDERS: dict[str, Callable[..., Order]] = {
    "fifo": fifo,
    "random": random_order,
    "longest_tail": longest_tail,
    "ratio": ratio,
    "strict_ratio": strict_ratio,
    "optimal": optimal,
}


def order_by_name(name: str, seed: int) -> Order:
    """Builds an order; `seed` is used by `random` alone.

    Raises:
      ConfigError: no order has this name.

    Example:
      >>> from cutlayer import order_by_name
      >>> from cutlayer.policies.carlier import Job
      >>> here = [Job("a", 0.0, 1.0, tail_seconds=1.0, ratio=1.0), Job("b", 1.0, 1.0, tail_seconds=9.0, ratio=2.0)]
      >>> order_by_name("longest_tail", seed=0).pick(2.0, here, expected=[]).device
      'b'
    """
    if name not in ORDERS:
        raise ConfigError(f"order: expected one of {', '.join(ORDERS)}, got {name!r}. Choose one of these.")
    return random_order(seed) if name == "random" else ORDERS[name]()


def simulate(order: Order, jobs: Sequence[Job]) -> Schedule:
    """Plays one step: each job is `expected`, with its true release, until then and `arrived` from then on.

    Args:
      order: is asked whenever the server is free and someone is here.
      jobs: releases count from the start of the step.

    Returns:
      The schedule as it happened, pauses included; `optimal` is False because nothing was proven.

    Raises:
      ConfigError: the order chose a job that is not here, or waits for nothing.
    """
    left, sequence, start_seconds = list(jobs), list[Job](), list[float]()
    now = end = 0.0
    while left:
        arrived = [job for job in left if job.release_seconds <= now]
        expected = [job for job in left if job.release_seconds > now]
        job = order.pick(now, arrived, expected) if arrived else None
        if job is None and expected:
            now = min(job.release_seconds for job in expected)
            continue
        if job is None or job not in arrived:
            got = "None with nothing expected" if job is None else job.device
            raise ConfigError(f"order {order.name}: expected a job that is here, got {got}. Mend its pick().")
        left.remove(job)
        sequence.append(job)
        start_seconds.append(now)
        now += job.work_seconds
        end = max(end, now + job.tail_seconds)
    return Schedule(tuple(sequence), tuple(start_seconds), end, optimal=False, num_nodes=0)
