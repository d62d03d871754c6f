"""A budget of bytes: never exceeded, in the order of asking, nothing lost when somebody gives up."""

from __future__ import annotations

import asyncio

from cutlayer.fleet.clock import now, run_virtual
from cutlayer.transport.budget import Budget


def test_nobody_exceeds_it_and_who_asked_first_goes_first() -> None:
    async def work() -> list[tuple[str, float]]:
        budget, order = Budget(10), list[tuple[str, float]]()

        async def use(name: str, num_bytes: int) -> None:
            await budget.take(num_bytes)
            assert budget.held_bytes <= 10
            order.append((name, now()))
            await asyncio.sleep(1)
            budget.give_back(num_bytes)

        await asyncio.gather(use("a", 6), use("b", 6), use("c", 3))
        assert budget.held_bytes == 0
        return order

    assert run_virtual(work()) == [("a", 0.0), ("b", 1.0), ("c", 1.0)], "c would have fitted, but b was first"


def test_what_is_larger_than_all_of_it_goes_alone() -> None:
    async def work() -> None:
        budget = Budget(10)
        await budget.take(25)
        waiting = asyncio.ensure_future(budget.take(1))
        await asyncio.sleep(1)
        assert not waiting.done()
        budget.give_back(25)
        await waiting

    run_virtual(work())


def test_who_gives_up_waiting_holds_nothing() -> None:
    async def work() -> None:
        budget = Budget(10)
        await budget.take(8)
        first, second = asyncio.ensure_future(budget.take(9)), asyncio.ensure_future(budget.take(2))
        await asyncio.sleep(1)
        first.cancel()
        await asyncio.sleep(1)
        assert second.done(), "nobody stands in its way any more"
        assert budget.held_bytes == 10
        budget.give_back(8)
        budget.give_back(2)
        third = asyncio.ensure_future(budget.take(5))
        await asyncio.sleep(0)
        third.cancel()  # it has had its turn, or has it
        await asyncio.gather(first, third, return_exceptions=True)
        assert budget.held_bytes in (0, 5)

    run_virtual(work())
