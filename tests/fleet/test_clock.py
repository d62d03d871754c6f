"""The clock that jumps: timers in order, no waiting, deadlocks found, threads waited for."""

import asyncio
import hashlib
import random
import threading
from typing import Never

import pytest

from cutlayer.fleet.clock import Deadlock, now, run_virtual

Log = list[tuple[str, float]]


async def sleep_and_tell(seconds: float, log: Log, name: str) -> None:
    await asyncio.sleep(seconds)
    log.append((name, now()))


def test_time_jumps_from_timer_to_timer() -> None:
    async def program() -> Log:
        log: Log = []
        async with asyncio.TaskGroup() as group:
            for name, seconds in (("c", 3e7), ("a", 0.25), ("b", 86_400.0)):
                group.create_task(sleep_and_tell(seconds, log, name))
        return log

    assert run_virtual(program()) == [("a", 0.25), ("b", 86_400.0), ("c", 3e7)]


def test_timers_that_lie_close_fire_each_at_its_own_time() -> None:
    async def program() -> Log:
        log: Log = []
        times = [1.0, 1.0 + 1e-12, 1.001]
        await asyncio.gather(*(sleep_and_tell(seconds, log, str(seconds)) for seconds in times))
        return log

    assert run_virtual(program()) == [(str(time), time) for time in (1.0, 1.0 + 1e-12, 1.001)]


def test_computing_takes_no_time_and_the_clock_starts_where_it_is_told() -> None:
    async def program() -> tuple[float, float]:
        before = now()
        await asyncio.sleep(0)
        hashlib.sha256(bytes(1 << 20))
        return before, now()

    assert run_virtual(program(), start_seconds=12.5) == (12.5, 12.5)


def test_a_timeout_is_exact() -> None:
    async def program() -> float:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), timeout=60)
        return now()

    assert run_virtual(program()) == 60


def test_the_same_program_takes_the_same_path() -> None:
    async def device(name: str, seed: int, lock: asyncio.Lock, log: Log) -> None:
        dice = random.Random(seed)
        for _ in range(20):
            await asyncio.sleep(dice.choice([0, 0.1, 0.1, 0.5]))  # many at the same instant
            async with lock:
                log.append((name, now()))
                await asyncio.sleep(0.01)

    async def program() -> Log:
        log: Log = []
        lock = asyncio.Lock()
        await asyncio.gather(*(device(f"device-{i}", i, lock, log) for i in range(10)))
        return log

    first = run_virtual(program())
    assert len(first) == 200
    assert run_virtual(program()) == first


def test_a_deadlock_names_those_who_wait_and_where() -> None:
    async def wait_for_ever(event: asyncio.Event) -> None:
        await event.wait()

    async def program() -> None:
        asyncio.create_task(wait_for_ever(asyncio.Event()), name="jetson-1")  # noqa: RUF006
        await asyncio.sleep(5)
        await asyncio.Queue().get()

    with pytest.raises(Deadlock, match=r"jetson-1 in .*wait_for_ever > Event.wait") as caught:
        run_virtual(program())
    assert "program > Queue.get" in str(caught.value)


def test_after_a_deadlock_all_is_cleaned_up() -> None:
    cleaned: list[float] = []

    async def program() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(now())

    with pytest.raises(Deadlock):
        run_virtual(program())
    assert cleaned == [0]
    assert run_virtual(asyncio.sleep(1, result="again")) == "again"


def test_tasks_left_over_are_cancelled() -> None:
    ended: list[float] = []

    async def straggler() -> None:
        try:
            await asyncio.sleep(1e9)
        finally:
            ended.append(now())

    async def program() -> asyncio.Task[None]:
        task = asyncio.create_task(straggler())
        await asyncio.sleep(1)
        return task

    assert run_virtual(program()).cancelled()
    assert ended == [1]


def test_an_error_comes_out() -> None:
    async def program() -> Never:
        await asyncio.sleep(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_virtual(program())


def test_it_leaves_the_ordinary_loop_alone() -> None:
    run_virtual(asyncio.sleep(1e6))

    async def is_ordinary() -> bool:
        return isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop) and now() > 0

    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    assert asyncio.run(is_ordinary())


def test_a_thread_takes_no_time_and_is_no_deadlock() -> None:
    async def program() -> Log:
        log: Log = []
        sleeper = asyncio.create_task(sleep_and_tell(10, log, "sleeper"))
        here, there = threading.get_ident(), None
        for _ in range(3):
            there = await asyncio.to_thread(lambda: hashlib.sha256(bytes(1 << 22)) and threading.get_ident())
            assert now() == 0
        assert here != there
        await sleeper
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 / 0)
        assert await asyncio.to_thread(lambda: "alone") == "alone"  # no timer is left to jump to
        return log

    assert run_virtual(program()) == [("sleeper", 10)]


def test_a_deadlock_after_a_thread_is_still_found() -> None:
    async def program() -> None:
        await asyncio.to_thread(int)
        await asyncio.Event().wait()

    with pytest.raises(Deadlock):
        run_virtual(program())


def test_timers_of_one_instant_fire_in_the_order_in_which_they_were_set() -> None:
    async def work() -> list[int]:
        fired: list[int] = []
        loop = asyncio.get_running_loop()
        for number in range(100):
            loop.call_at(5.0 if number % 3 else 4.0, fired.append, number)
        await asyncio.sleep(6)
        return fired

    first, second = ([n for n in range(100) if bool(n % 3) is later] for later in (False, True))
    assert run_virtual(work()) == first + second
