"""Work beside an event loop: a notebook's cell has one, a script has none."""

from __future__ import annotations

import asyncio
import threading

import pytest

from cutlayer.api.apart import apart, run_apart


def nothing() -> None:
    raise AssertionError("nobody asked it to stop")


def test_without_a_loop_it_is_done_here() -> None:
    assert apart(threading.current_thread, nothing) is threading.current_thread()


def test_beside_a_loop_it_has_a_thread_of_its_own() -> None:
    async def cell() -> threading.Thread:
        return apart(threading.current_thread, nothing)

    assert asyncio.run(cell()) is not threading.current_thread()


@pytest.mark.parametrize("in_a_cell", [False, True])
def test_a_coroutine_is_run_to_its_end(in_a_cell: bool) -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    async def cell() -> int:
        return run_apart(work())

    assert (asyncio.run(cell()) if in_a_cell else run_apart(work())) == 7


@pytest.mark.parametrize("in_a_cell", [False, True])
def test_an_error_is_the_callers(in_a_cell: bool) -> None:
    def work() -> None:
        raise ValueError("of the work")

    async def cell() -> None:
        apart(work, nothing)

    with pytest.raises(ValueError, match="of the work"):
        asyncio.run(cell()) if in_a_cell else apart(work, nothing)
