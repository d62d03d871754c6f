"""Machines: one piece of work at a time, in order, for as long as it takes."""

import asyncio
import itertools
import threading
from collections.abc import Callable
from functools import partial

import pytest

from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.machine import ModelledMachine, RealMachine, Work
from cutlayer.types import Event, Recorder


def test_work_takes_its_flops_over_the_speed() -> None:
    events: list[Event] = []

    async def program() -> tuple[str, float, float]:
        machine = ModelledMachine("phone", 2e9, events.append)
        await asyncio.sleep(1)
        result = await machine.run(
            lambda: "result", like=str, what="forward", flops=3e9, round=4, step=5, peer="server"
        )
        return result, now(), machine.busy_seconds

    assert run_virtual(program()) == ("result", 2.5, 1.5)
    assert events == [Event("phone", "forward", 1.0, 2.5, 4, 5, "server", flops=3e9)]


def test_one_piece_of_work_at_a_time_first_come_first_served() -> None:
    events: list[Event] = []
    done: list[tuple[str, float]] = []

    async def program() -> float:
        machine = ModelledMachine("phone", 1.0, events.append)

        async def use(name: str, flops: float) -> None:
            def work() -> None:
                done.append((name, now()))

            await machine.run(work, like=lambda: None, what=name, flops=flops, round=0, step=None)

        await asyncio.gather(use("a", 4), use("b", 2), use("c", 1))
        return machine.busy_seconds

    assert run_virtual(program()) == 7
    assert done == [("a", 0), ("b", 4), ("c", 6)]
    assert [(e.what, e.start_seconds, e.end_seconds) for e in events] == [("a", 0, 4), ("b", 4, 6), ("c", 6, 7)]


def test_two_machines_work_at_once() -> None:
    async def program() -> float:
        machines = [ModelledMachine(name, 1.0, lambda event: None) for name in "ab"]
        await asyncio.gather(*(m.run(int, like=int, what="step", flops=5, round=0, step=0) for m in machines))
        return now()

    assert run_virtual(program()) == 5


def modelled(record: Recorder) -> ModelledMachine:
    return ModelledMachine("phone", 1.0, record)


def real(record: Recorder) -> RealMachine:
    return RealMachine("phone", record)


@pytest.mark.parametrize("build", [modelled, real])
def test_an_error_comes_out_at_once_and_the_machine_stays_usable(
    build: Callable[[Recorder], ModelledMachine | RealMachine],
) -> None:
    events: list[Event] = []

    async def program() -> float:
        machine = build(events.append)
        start = now()
        with pytest.raises(ZeroDivisionError):
            await machine.run(lambda: 1 / 0, like=float, what="step", flops=9, round=0, step=0)
        failed = now() - start
        assert await machine.run(lambda: 7, like=int, what="step", flops=0, round=0, step=1) == 7
        if isinstance(machine, RealMachine):
            machine.close()
        return failed

    assert run_virtual(program()) == 0
    assert [event.step for event in events] == [1]


def test_work_that_is_cancelled_frees_the_machine() -> None:
    async def program() -> tuple[float, float]:
        machine = ModelledMachine("phone", 1.0, lambda event: None)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(machine.run(int, like=int, what="step", flops=9, round=0, step=0), timeout=2)
        await machine.run(int, like=int, what="step", flops=1, round=0, step=1)
        return now(), machine.busy_seconds

    assert run_virtual(program()) == (3, 1)


def test_the_real_machine_keeps_one_thread_and_leaves_the_loop_free() -> None:
    events: list[Event] = []
    threads: set[int] = set()
    order: list[int] = []

    async def program() -> float:
        machine = RealMachine("phone", events.append)
        release = threading.Event()

        def work(name: int) -> None:
            threads.add(threading.get_ident())
            assert release.wait(timeout=30)
            order.append(name)

        async def let_go() -> None:
            release.set()  # runs only if the loop is not held up by the work

        runs = [
            machine.run(partial(work, name), like=lambda: None, what="step", flops=0, round=0, step=name)
            for name in range(3)
        ]
        await asyncio.gather(*runs, let_go())
        machine.close()
        return machine.busy_seconds

    busy = asyncio.run(program())
    assert order == [0, 1, 2]
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    assert [event.step for event in events] == [0, 1, 2]
    assert busy == pytest.approx(sum(event.end_seconds - event.start_seconds for event in events))
    assert all(a.end_seconds <= b.start_seconds for a, b in itertools.pairwise(events))


def test_works_in_turn_let_nobody_between_them() -> None:
    """The result of one machine's first piece is used up before another machine of the process begins."""
    done: list[str] = []
    events: list[Event] = []

    async def program() -> tuple[float, float]:
        machines = {name: ModelledMachine(name, 1.0, events.append) for name in "ab"}

        def works(name: str) -> list[Work]:
            pieces = (("forward", 2.0), ("backward", 3.0))
            return [Work(partial(done.append, f"{name} {what}"), lambda: None, what, flops) for what, flops in pieces]

        await asyncio.gather(*(m.run_in_turn(works(name), round=1, step=2) for name, m in machines.items()))
        return now(), machines["a"].busy_seconds

    assert run_virtual(program()) == (5, 5)
    assert done == ["a forward", "a backward", "b forward", "b backward"]
    assert [(e.who, e.what, e.start_seconds, e.end_seconds, e.flops) for e in events] == [
        ("a", "forward", 0, 2, 2),
        ("b", "forward", 0, 2, 2),
        ("a", "backward", 2, 5, 3),
        ("b", "backward", 2, 5, 3),
    ]
    assert {(e.round, e.step) for e in events} == {(1, 2)}


@pytest.mark.parametrize("build", [modelled, real])
def test_works_in_turn_give_their_results_in_turn(build: Callable[[Recorder], ModelledMachine | RealMachine]) -> None:
    events: list[Event] = []

    async def program() -> list[int]:
        machine = build(events.append)
        works = [Work(lambda number=number: number, int, "step", 1.0) for number in range(3)]  # type: ignore[misc]
        results = await machine.run_in_turn(works, round=0, step=0)
        if isinstance(machine, RealMachine):
            machine.close()
        return results

    assert asyncio.run(program()) == [0, 1, 2] if build is real else run_virtual(program()) == [0, 1, 2]
    assert [event.flops for event in events] == [1.0] * 3


@pytest.mark.parametrize("build", [modelled, real])
def test_a_machine_that_works_never_asks_what_the_work_would_return(
    build: Callable[[Recorder], ModelledMachine | RealMachine],
) -> None:
    """Only a rehearsal does: `like` costs nothing where there is a result."""

    def never() -> int:
        raise AssertionError("asked")

    async def program() -> list[int]:
        machine = build(lambda event: None)
        alone = await machine.run(lambda: 7, like=never, what="step", flops=1, round=0, step=0)
        in_turn = await machine.run_in_turn([Work(lambda: 8, never, "step", 1.0)], round=0, step=0)
        if isinstance(machine, RealMachine):
            machine.close()
        return [alone, *in_turn]

    assert (asyncio.run(program()) if build is real else run_virtual(program())) == [7, 8]
