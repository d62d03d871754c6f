"""Every order on fixed instances: what it promises, and that nothing but the jobs and the seed decides."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.order import (
    ORDERS,
    Job,
    Order,
    carlier,
    fifo,
    longest_tail,
    makespan,
    optimal,
    order_by_name,
    random_order,
    ratio,
    schrage,
    simulate,
    strict_ratio,
)
from cutlayer.state import State, Stateless

WORK_CONSERVING = ("fifo", "random", "longest_tail", "ratio")


def instances(seed: int, number: int, num_jobs: int = 6) -> list[list[Job]]:
    generator = random.Random(seed)

    def job(name: str) -> Job:
        draws = [generator.choice([float(generator.randint(0, 9)), generator.uniform(0, 9)]) for _ in range(4)]
        return Job(name, draws[0] * 2, draws[1], draws[2] * 2, draws[3])

    return [[job(f"d{j}") for j in range(num_jobs)] for _ in range(number)]


def names(jobs: Sequence[Job]) -> list[str]:
    return [job.device for job in jobs]


@pytest.mark.parametrize("name", ORDERS)
def test_serves_everyone_once_and_only_when_here(name: str) -> None:
    for jobs in instances(1, 100):
        schedule = simulate(order_by_name(name, 7), jobs)
        assert sorted(names(schedule.sequence)) == names(jobs)
        free = 0.0
        for job, start in zip(schedule.sequence, schedule.start_seconds, strict=True):
            assert start >= max(free, job.release_seconds)
            free = start + job.work_seconds
        ends = zip(schedule.sequence, schedule.start_seconds, strict=True)
        assert schedule.makespan_seconds == max(t + j.work_seconds + j.tail_seconds for j, t in ends)
        assert not schedule.optimal


@pytest.mark.parametrize("name", WORK_CONSERVING)
def test_never_idles_while_a_device_waits(name: str) -> None:
    for jobs in instances(2, 200):
        schedule = simulate(order_by_name(name, 7), jobs)
        waiting, free = set(jobs), 0.0
        for job, start in zip(schedule.sequence, schedule.start_seconds, strict=True):
            assert start == max(free, min(other.release_seconds for other in waiting))
            waiting.remove(job)
            free = start + job.work_seconds


@pytest.mark.parametrize("name", ORDERS)
def test_the_order_of_the_lists_does_not_matter(name: str) -> None:
    generator = random.Random(3)
    for jobs in instances(3, 100):
        shuffled = generator.sample(jobs, len(jobs))
        assert simulate(order_by_name(name, 7), shuffled) == simulate(order_by_name(name, 7), jobs)


@pytest.mark.parametrize("name", [name for name in ORDERS if name != "random"])
def test_ties_go_to_the_first_name(name: str) -> None:
    jobs = [Job(device, 0, 1, 1, 1) for device in "cab"]
    assert names(simulate(order_by_name(name, 7), jobs).sequence) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ORDERS)
def test_nothing_here_is_nobody_to_serve(name: str) -> None:
    order = order_by_name(name, 7)
    assert order.name == name
    assert order.pick(0, [], [Job("a", 1, 1, 1, 1)]) is None
    assert order.pick(0, [], []) is None


@pytest.mark.parametrize("name", ORDERS)
def test_a_resumed_order_decides_as_the_one_that_was_never_stopped(name: str) -> None:
    steps = instances(4, 20)
    straight = order_by_name(name, 7)
    expected = [simulate(straight, jobs) for jobs in steps]
    first = order_by_name(name, 7)
    begun = [simulate(first, jobs) for jobs in steps[:9]]
    second = order_by_name(name, 8)
    second.load(State(json.loads(json.dumps(first.state().facts))))
    assert begun + [simulate(second, jobs) for jobs in steps[9:]] == expected
    assert second.state() == straight.state()


def test_each_picks_by_its_own_key() -> None:
    early, long, weak = Job("early", 1, 1, 1, 1), Job("long", 2, 1, 9, 2), Job("weak", 3, 1, 2, 9)
    here = [long, weak, early]
    assert fifo().pick(4, here, []) == early
    assert longest_tail().pick(4, here, []) == long
    assert ratio().pick(4, here, []) == weak
    assert strict_ratio().pick(4, here, []) == weak


def test_random_depends_on_the_seed_and_is_fair() -> None:
    here = [Job(device, 0, 1, 1, 1) for device in "abc"]
    order, again, other = random_order(1), random_order(1), random_order(2)
    picks = [order.pick(0, here, []) for _ in range(300)]
    assert picks == [again.pick(0, here[::-1], []) for _ in range(300)]
    assert picks != [other.pick(0, here, []) for _ in range(300)]
    assert all(75 < picks.count(job) < 125 for job in here)


def test_strict_ratio_waits_and_ratio_does_not() -> None:
    here, coming = Job("here", 0, 1, 1, 1), Job("coming", 5, 1, 1, 2)
    assert strict_ratio().pick(0, [here], [coming]) is None
    assert strict_ratio().pick(9, [here], [coming]) is None  # even for one that is late
    assert ratio().pick(0, [here], [coming]) == here
    assert names(simulate(strict_ratio(), [here, coming]).sequence) == ["coming", "here"]
    assert strict_ratio().pick(0, [here], [replace(coming, ratio=0.5)]) == here


def test_strict_ratio_mirrors_fifo_where_tails_equal_heads() -> None:
    """Played backwards, a symmetric instance is itself with heads and tails swapped."""
    for jobs in instances(5, 200):
        mirror = [replace(job, tail_seconds=job.release_seconds, ratio=job.release_seconds) for job in jobs]
        strict, first_come = simulate(strict_ratio(), mirror), simulate(fifo(), mirror)
        assert strict.makespan_seconds == pytest.approx(first_come.makespan_seconds, rel=1e-12)


def test_longest_tail_is_optimal_where_all_arrive_together() -> None:
    for jobs in instances(6, 200):
        together = [replace(job, release_seconds=3.0) for job in jobs]
        played = simulate(longest_tail(), together)
        assert played.makespan_seconds == pytest.approx(carlier(together).makespan_seconds, rel=1e-12)


def test_longest_tail_is_schrage() -> None:
    for jobs in instances(7, 200):
        assert list(simulate(longest_tail(), jobs).sequence) == schrage(jobs)


def test_optimal_reaches_the_optimum_one_decision_at_a_time() -> None:
    gained = 0
    for jobs in instances(8, 300):
        best = carlier(jobs).makespan_seconds
        assert simulate(optimal(), jobs).makespan_seconds == pytest.approx(best, rel=1e-12)
        gained += makespan(schrage(jobs)) > best * (1 + 1e-9)
    assert gained > 30


def test_optimal_waits_for_a_device_that_is_due_but_for_none_that_is_late() -> None:
    quick, slow = Job("quick", 100, 3, 0, 0), Job("slow", 101, 1, 9, 0)
    assert optimal().pick(100, [quick], [slow]) is None
    assert optimal().pick(101, [quick, slow], []) == slow
    assert optimal().pick(101, [quick], [slow]) == quick
    assert optimal().pick(100, [quick], [replace(slow, release_seconds=103.0)]) == quick


def test_optimal_counts_the_decisions_that_it_could_not_prove() -> None:
    jobs = next(jobs for jobs in instances(9, 100) if not carlier(jobs, max_nodes=1).optimal)
    order = optimal(max_nodes=1)
    assert simulate(order, jobs).makespan_seconds >= carlier(jobs).makespan_seconds
    assert order.num_truncated > 0
    resumed = optimal()
    resumed.load(order.state())
    assert resumed.num_truncated == order.num_truncated
    exact = optimal()
    simulate(exact, jobs)
    assert exact.num_truncated == 0


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"fifo, random, longest_tail, ratio, strict_ratio, optimal.*'lifo'"):
        order_by_name("lifo", 0)


@dataclass
class Fixed(Stateless):
    """An order that always answers the same."""

    answer: Job | None
    name: str = "fixed"

    def pick(self, now: float, arrived: Sequence[Job], expected: Sequence[Job]) -> Job | None:  # noqa: ARG002
        return self.answer


@pytest.mark.parametrize("answer", [None, Job("elsewhere", 0, 1, 1, 1)])
def test_simulate_refuses_an_order_that_serves_nobody_here(answer: Job | None) -> None:
    order: Order = Fixed(answer)
    with pytest.raises(ConfigError, match=r"order fixed: expected a job that is here"):
        simulate(order, [Job("a", 0, 1, 1, 1), Job("b", 2, 1, 1, 1)])
