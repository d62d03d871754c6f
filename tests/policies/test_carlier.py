"""The exact schedule against brute force, its bounds against each other."""

import random
import time
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutlayer.policies.carlier import Job, carlier, makespan, preemptive_bound, schrage, starts


def instance(generator: random.Random, num_jobs: int, spread: float = 30) -> list[Job]:
    """Heads and tails up to `spread` times a job's mean work; half of them on a grid, full of ties."""
    grid = generator.random() < 0.5

    def draw(longest: float) -> float:
        return float(generator.randint(0, round(longest))) if grid else generator.uniform(0, longest)

    return [Job(f"d{j}", draw(spread), draw(10), draw(spread), 0) for j in range(num_jobs)]


ORDERINGS = {n: np.array(list(permutations(range(n)))) for n in range(1, 8)}


def brute_force(jobs: list[Job]) -> float:
    """The least makespan over all permutations, all of them at once."""
    orderings = ORDERINGS[len(jobs)]
    heads, works, tails = (
        np.array([getattr(job, f"{part}_seconds") for job in jobs])[orderings] for part in ("release", "work", "tail")
    )
    free, longest = np.full(len(orderings), -np.inf), np.full(len(orderings), -np.inf)
    for position in range(len(jobs)):
        free = np.maximum(free, heads[:, position]) + works[:, position]
        longest = np.maximum(longest, free + tails[:, position])
    return float(longest.min())


def check_against_brute_force(jobs: list[Job]) -> None:
    schedule, best = carlier(jobs), brute_force(jobs)
    assert schedule.optimal
    assert schedule.makespan_seconds == pytest.approx(best, rel=1e-11)
    assert makespan(schedule.sequence) == schedule.makespan_seconds
    assert sorted(job.device for job in schedule.sequence) == sorted(job.device for job in jobs)
    assert preemptive_bound(jobs) <= best * (1 + 1e-11)
    assert makespan(schrage(jobs)) <= 2 * best * (1 + 1e-11)


def test_equals_brute_force_on_seeded_instances() -> None:
    generator = random.Random(1)
    branched = 0
    for _ in range(2000):
        jobs = instance(generator, generator.randint(1, 7), generator.choice([5, 15, 30, 60]))
        check_against_brute_force(jobs)
        branched += carlier(jobs).num_nodes > 1
    assert branched > 100  # or the branching has not been tried


JOBS = st.lists(
    st.tuples(*[st.one_of(st.integers(0, 12).map(float), st.floats(0, 1e3, allow_subnormal=False))] * 3),
    min_size=1,
    max_size=7,
).map(lambda rows: [Job(f"d{j}", head, work, tail, 0) for j, (head, work, tail) in enumerate(rows)])


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(JOBS)
def test_equals_brute_force_on_awkward_instances(jobs: list[Job]) -> None:
    check_against_brute_force(jobs)


def test_bounds_are_ordered_and_schrage_is_not_always_best() -> None:
    generator = random.Random(2)
    worse = 0
    for _ in range(300):
        jobs = instance(generator, 20, 120)
        bound, best, first = preemptive_bound(jobs), carlier(jobs), makespan(schrage(jobs))
        assert best.optimal
        assert bound <= best.makespan_seconds * (1 + 1e-11)
        assert best.makespan_seconds <= first <= 2 * best.makespan_seconds
        worse += first > best.makespan_seconds * (1 + 1e-9)
    assert worse > 10


def test_preemptive_bound_by_hand() -> None:
    # long runs 0-1, is interrupted by urgent 1-3, resumes 3-12: urgent ends at 3 + 10, long at 12 + 2
    assert preemptive_bound([Job("long", 0, 10, 2, 0), Job("urgent", 1, 2, 10, 0)]) == 14


def test_an_idle_server_can_pay() -> None:
    slow, quick = Job("slow", 1, 1, 9, 0), Job("quick", 0, 3, 0, 0)
    assert schrage([slow, quick]) == [quick, slow]
    assert makespan([quick, slow]) == 13
    schedule = carlier([slow, quick])
    assert list(schedule.sequence) == [slow, quick]
    assert list(schedule.start_seconds) == [1, 2]
    assert (schedule.makespan_seconds, schedule.optimal) == (11, True)


def test_starts_wait_for_the_release_and_for_the_server() -> None:
    assert starts([Job("a", 2, 3, 0, 0), Job("b", 0, 1, 0, 0), Job("c", 9, 1, 0, 0)]) == [2, 5, 9]


def test_no_jobs_take_no_time() -> None:
    schedule = carlier([])
    assert (schedule.sequence, schedule.makespan_seconds, schedule.optimal) == ((), 0, True)
    assert (preemptive_bound([]), makespan([]), schrage([])) == (0, 0, [])


def test_the_order_of_the_list_does_not_matter() -> None:
    generator = random.Random(3)
    for _ in range(200):
        jobs = instance(generator, 8)
        shuffled = generator.sample(jobs, len(jobs))
        assert carlier(shuffled) == carlier(jobs)
        assert schrage(shuffled) == schrage(jobs)
        assert preemptive_bound(shuffled) == preemptive_bound(jobs)


def test_ties_go_to_the_first_name() -> None:
    jobs = [Job(name, 0, 1, 1, 0) for name in "cab"]
    assert [job.device for job in schrage(jobs)] == ["a", "b", "c"]
    assert [job.device for job in carlier(jobs).sequence] == ["a", "b", "c"]


def test_a_truncated_search_says_so_and_is_no_worse_than_schrage() -> None:
    generator = random.Random(4)
    truncated = 0
    for _ in range(300):
        jobs = instance(generator, 7)
        schedule = carlier(jobs, max_nodes=1)
        assert schedule.num_nodes == 1
        assert schedule.makespan_seconds <= makespan(schrage(jobs)) * (1 + 1e-12)
        if schedule.optimal:
            assert schedule.makespan_seconds == pytest.approx(brute_force(jobs))
        truncated += not schedule.optimal
    assert truncated > 10


def test_fifty_jobs_are_quick() -> None:
    generator = random.Random(5)
    began = time.process_time()
    for _ in range(20):
        assert carlier(instance(generator, 50, 300)).optimal
    assert time.process_time() - began < 4  # measured: well under one second
