"""The order of jobs on one machine that ends soonest: 1|r_j,q_j|Cmax, solved exactly.

The one-machine sequencing problem
    Jacques Carlier. European Journal of Operational Research 11, 1982, pages 42-47.
    https://doi.org/10.1016/S0377-2217(82)80007-6

    the paper                                      here
    ------------------------------------------     ---------------------------------
    head a_i, processing d_i, tail q_i             Job.release, .work, .tail _seconds
    Schrage schedule                               schrage
    Jackson's preemptive schedule, lower bound     preemptive_bound
    critical path, critical job c, critical set J  _critical
    c before all of J, or after all of J           _branches

The machine is the server, a job is one device's batch: its head is the device-side forward and the upload,
its tail the download and the device-side backward. The problem is strongly NP-hard, but at the size of a
cohort the first schedule or a handful of nodes is mostly the end of it. Hard are 30 jobs and more whose heads
and tails each spread over about two thirds of the total work: there a limit on the nodes is needed, and the gap
that it leaves is measured in docs/decisions/0003-exact-server-order.md.

Times are floats and no equality of sums is ever asked for. The search ends all the same: every branch
strictly raises a head or a tail, none beyond the best makespan. Schedules closer than `TIE` count as equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush, heapreplace
from itertools import count
from math import inf

Times = list[float]
"""One time per job, by its rank in `_canonical` order."""

TIE = 1e-12
"""Relative gain: a schedule that is better by less replaces none (the rounding of a sum is about 1e-16)."""


@dataclass(frozen=True, slots=True)
class Job:
    """One device's batch, as the server's queue sees it. Times count from one common origin."""

    device: str
    release_seconds: float
    """Time at which the device's activations are, or are expected to be, at the server."""
    work_seconds: float
    """Server-side forward, backward and adapter step."""
    tail_seconds: float
    """Download of the gradient and device-side backward."""
    ratio: float
    """Device-side adapters over the device's FLOP per second."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The devices in the order in which they are served, when each is, and when the last is done.

    `optimal` means proven; `num_nodes` is how many nodes of the search tree were opened (0: no search).
    """

    sequence: tuple[Job, ...]
    start_seconds: tuple[float, ...]
    makespan_seconds: float
    optimal: bool
    num_nodes: int


def starts(sequence: Iterable[Job]) -> list[float]:
    """The time at which each job starts if jobs are served in this order, each as soon as it can be."""
    times, free = [], -inf
    for job in sequence:
        times.append(max(free, job.release_seconds))
        free = times[-1] + job.work_seconds
    return times


def makespan(sequence: Sequence[Job]) -> float:
    """The time at which the last device has finished its tail, in seconds; 0 for no jobs."""
    started = zip(sequence, starts(sequence), strict=True)
    return max((start + job.work_seconds + job.tail_seconds for job, start in started), default=0.0)


def schrage(jobs: Iterable[Job]) -> list[Job]:
    """Serves, whenever the machine is free, the arrived job of the largest tail: at most 2x the optimum."""
    ranked = _canonical(jobs)
    return [ranked[j] for j in _schrage(*_times(ranked))]


def preemptive_bound(jobs: Iterable[Job]) -> float:
    """The optimum if jobs could be interrupted (Jackson's rule), in seconds: no schedule is shorter."""
    return _preemptive(*_times(_canonical(jobs)))


def carlier(jobs: Iterable[Job], *, max_nodes: int = 10_000) -> Schedule:
    """Finds a sequence of least makespan by Carlier's branch and bound, the most promising node first.

    Args:
      jobs: one job per device, in any order: the result does not depend on it.
      max_nodes: at least 1. When so many nodes were opened, the best schedule so far is returned with
        `optimal=False`. The first node is the Schrage schedule, so it is never worse than that.

    Example:
      >>> slow, quick = Job("slow", 1, 1, 9, 0), Job("quick", 0, 3, 0, 0)
      >>> [job.device for job in carlier([slow, quick]).sequence]    # an idle second that pays
      ['slow', 'quick']
    """
    ranked = _canonical(jobs)
    heads, works, tails = _times(ranked)
    best, best_seconds, num_nodes, serial = list[Job](), inf, 0, count()
    nodes = [(_preemptive(heads, works, tails), next(serial), heads, tails)]
    while nodes and nodes[0][0] < best_seconds * (1 - TIE) and num_nodes < max_nodes:
        _, _, heads, tails = heappop(nodes)
        num_nodes += 1
        order = _schrage(heads, works, tails)
        sequence = [ranked[j] for j in order]
        if (seconds := makespan(sequence)) < best_seconds * (1 - TIE):
            best, best_seconds = sequence, seconds
        for branch in _branches(order, heads, works, tails):
            bound = _preemptive(branch[0], works, branch[1])
            if bound < best_seconds * (1 - TIE):
                heappush(nodes, (bound, next(serial), *branch))
    optimal = not nodes or nodes[0][0] >= best_seconds * (1 - TIE)
    return Schedule(tuple(best), tuple(starts(best)), makespan(best), optimal, num_nodes)


def _canonical(jobs: Iterable[Job]) -> list[Job]:
    """The jobs by device name, so that ties fall the same way whatever order they were given in."""
    return sorted(jobs, key=lambda job: (job.device, job.release_seconds, job.work_seconds, job.tail_seconds))


def _times(jobs: Sequence[Job]) -> tuple[Times, Times, Times]:
    heads = [job.release_seconds for job in jobs]
    return heads, [job.work_seconds for job in jobs], [job.tail_seconds for job in jobs]


def _schrage(heads: Times, works: Times, tails: Times) -> list[int]:
    """The Schrage sequence as ranks, in O(n log n)."""
    waiting = sorted(range(len(heads)), key=heads.__getitem__, reverse=True)
    ready: list[tuple[float, int]] = []
    order: list[int] = []
    now = -inf
    while waiting or ready:
        if not ready:
            now = max(now, heads[waiting[-1]])
        while waiting and heads[waiting[-1]] <= now:
            j = waiting.pop()
            heappush(ready, (-tails[j], j))
        _, j = heappop(ready)
        order.append(j)
        now += works[j]
    return order


def _preemptive(heads: Times, works: Times, tails: Times) -> float:
    """The makespan of Jackson's preemptive schedule: an arrival with a larger tail takes the machine over."""
    arrivals = sorted(range(len(heads)), key=heads.__getitem__)
    ready: list[tuple[float, float]] = []  # (-tail, work left)
    now, longest = -inf, 0.0
    for position, j in enumerate(arrivals):
        now = max(now, heads[j])
        heappush(ready, (-tails[j], works[j]))
        following = heads[arrivals[position + 1]] if position + 1 < len(arrivals) else inf
        while ready and now < following:
            tail, left = ready[0]
            if now + left > following:
                heapreplace(ready, (tail, left - (following - now)))
                now = following
            else:
                heappop(ready)
                now += left
                longest = max(longest, now - tail)
    return longest


def _critical(order: list[int], heads: Times, works: Times, tails: Times) -> tuple[int, list[int]] | None:
    """The critical job and the critical set of a Schrage sequence; None where the sequence is optimal.

    The block runs without a pause from a job that the machine waited for to the job p that ends the makespan.
    If no tail in it is shorter than p's, the block's own bound is met. Otherwise c is the last job with a
    shorter tail and the set is what follows it: all of them arrived while c was served, and p is the last.
    """
    now, longest, first, block = -inf, -inf, 0, list[int]()
    for position, j in enumerate(order):
        if heads[j] > now:
            now, first = heads[j], position
        now += works[j]
        if now + tails[j] > longest:
            longest, block = now + tails[j], order[first : position + 1]
    for position in reversed(range(len(block) - 1)):
        if tails[block[position]] < tails[block[-1]]:
            return block[position], block[position + 1 :]
    return None


def _branches(order: list[int], heads: Times, works: Times, tails: Times) -> list[tuple[Times, Times]]:
    """The two ways in which a better schedule can place the critical job, as (heads, tails).

    Before the whole critical set, so its tail covers the set's work and last tail; or after the whole set, so
    its head covers the set's first head and work. In between it cannot beat the sequence at hand.
    """
    critical = _critical(order, heads, works, tails)
    if critical is None:
        return []
    c, following = critical
    work = sum(works[j] for j in following)
    later, longer = heads.copy(), tails.copy()
    later[c] = max(heads[c], min(heads[j] for j in following) + work)
    longer[c] = max(tails[c], work + tails[following[-1]])
    return [(heads, longer), (later, tails)]
