"""A batch's way through others' blocks, against machines that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from cutlayer.device.chain import Chain, Counted, Errand, Interrupted
from cutlayer.errors import SpanLost
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.policies.routing import Router
from cutlayer.wire.messages import Finish, Message, SpanAnswer, SpanCall

HELD = {"a": (0, 2), "b": (0, 4), "c": (2, 4), "d": (0, 1), "e": (1, 4)}
UNEVEN = {"f": (0, 3), "g": (3, 4)}
START, END = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)


class Machines:
    """Block k adds k + 1 to what goes in, and k + 1 to the gradient; some calls are lost, by number."""

    bytes_sent = bytes_received = 0

    def __init__(self, lost: Callable[[int, str, SpanCall], bool] = lambda *_: False) -> None:
        self._lost = lost
        self.asked: list[tuple[str, int, int, bool]] = []

    async def ask(self, span: str, address: str, call: SpanCall) -> SpanAnswer:
        assert address == f"{span}:1"
        first, end = (HELD | UNEVEN)[span]
        assert first <= call.first < call.end <= end
        self.asked.append((span, call.first, call.end, call.grad_BTD is not None))
        await asyncio.sleep(1.0)
        if self._lost(len(self.asked) - 1, span, call):
            raise SpanLost("gone")
        added = sum(block + 1 for block in range(call.first, call.end))
        if call.grad_BTD is None:
            assert float(call.h_BTD[0, 0, 0]) == sum(block + 1 for block in range(call.first))
            return SpanAnswer("run", 0, 0, "pi", call.h_BTD + added, None, {})
        assert float(call.h_BTD[0, 0, 0]) == sum(block + 1 for block in range(call.first)), "what went in was kept"
        grads = {
            f"block {block}": call.grad_BTD + sum(range(block + 2, call.end + 1))
            for block in range(call.first, call.end)
        }
        return SpanAnswer("run", 0, 0, "pi", None, call.grad_BTD + added if call.below else None, grads)


def chain(
    machines: Machines,
    counted: Counted,
    held: dict[str, tuple[int, int]] = HELD,
    heard: Callable[[], Message | None] = lambda: None,
    *,
    seed: int = 0,
    lowest: int = -1,
    restarts: bool = False,
) -> Chain:
    errand = Errand("run", 0, 0, "pi", torch.ones(1, 1) > 0, {}, lowest)
    router = Router(held, np.random.default_rng(seed))
    return Chain(
        errand, machines, {name: f"{name}:1" for name in HELD | UNEVEN}, router, counted, heard, restarts=restarts
    )


def both_ways(one: Chain) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    async def there_and_back() -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        out = await one.forward(0, 4, START)
        back, gradients = await one.back(END)
        return out, back, gradients

    return run_virtual(there_and_back())


def check(out: Tensor, back: Tensor | None, gradients: dict[str, Tensor]) -> None:
    assert float(out[0, 0, 0]) == 10
    assert back is not None
    assert float(back[0, 0, 0]) == 11
    assert {name: float(value[0, 0, 0]) for name, value in gradients.items()} == {
        "block 0": 10,
        "block 1": 8,
        "block 2": 5,
        "block 3": 1,
    }


@pytest.mark.parametrize("seed", range(8))
def test_there_and_back_over_the_same_machines(seed: int) -> None:
    machines, counted = Machines(), Counted()
    check(*both_ways(chain(machines, counted, seed=seed)))
    there = [(span, first, end) for span, first, end, back in machines.asked if not back]
    back = [(span, first, end) for span, first, end, back in machines.asked if back]
    assert back == there[::-1]
    assert counted == Counted(calls=len(machines.asked))


@pytest.mark.parametrize("restarts", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_any_calls_may_be_lost(seed: int, restarts: bool) -> None:
    losses = np.random.default_rng(seed)
    machines, counted = Machines(lambda *_: losses.random() < 0.4), Counted()
    check(*both_ways(chain(machines, counted, seed=seed, restarts=restarts)))
    assert counted.calls + counted.lost == len(machines.asked)


def test_forward_goes_on_from_the_block_that_was_next() -> None:
    machines, counted = Machines(lambda number, _span, _call: number == 1), Counted()
    held = {"a": (0, 2), "c": (2, 4), "e": (1, 4)}
    check(*both_ways(chain(machines, counted, held)))
    there = [(first, end) for _, first, end, back in machines.asked if not back]
    assert there == [(0, 2), (2, 4), (2, 4)]
    assert counted.repeated == 0


def test_restart_begins_anew() -> None:
    machines, counted = Machines(lambda number, _span, _call: number == 1), Counted()
    held = {"a": (0, 2), "c": (2, 4), "e": (1, 4)}
    check(*both_ways(chain(machines, counted, held, restarts=True)))
    there = [(first, end) for _, first, end, back in machines.asked if not back]
    assert there == [(0, 2), (2, 4), (0, 2), (2, 4)]
    assert counted.repeated == 2


@pytest.mark.parametrize(("low", "middle", "high"), [("d", 1, "e"), ("f", 3, "g")])
def test_a_run_of_blocks_that_fails_on_the_way_back_is_replayed_alone(low: str, middle: int, high: str) -> None:
    """`b` runs everything forward and fails on the way back: `low` runs its blocks again, `high` only runs back."""
    machines, counted = Machines(lambda _number, span, call: span == "b" and call.grad_BTD is not None), Counted()
    held = {"b": (0, 4)}
    one = chain(machines, counted, held)

    async def there_and_back() -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        out = await one.forward(0, 4, START)
        one._router = Router({**held, low: (0, middle), high: (middle, 4)}, np.random.default_rng(1))
        one._router.answered("b")
        back, gradients = await one.back(END)
        return out, back, gradients

    check(*run_virtual(there_and_back()))
    assert machines.asked == [
        ("b", 0, 4, False),
        ("b", 0, 4, True),
        (low, 0, middle, False),
        (high, middle, 4, True),
        (low, 0, middle, True),
    ]
    assert (counted.lost, counted.repeated) == (1, middle)


def test_it_waits_longer_each_time_and_never_gives_up() -> None:
    """The only one that holds anything fails five times: bans of 15, 30, 60, 120 and 240 s pass."""
    machines, counted = Machines(lambda number, _span, _call: number < 5), Counted()
    one = chain(machines, counted, {"b": (0, 4)})

    async def seconds() -> float:
        await one.forward(0, 4, START)
        return now()

    took = run_virtual(seconds())
    assert took == pytest.approx(6 + 15 + 30 + 60 + 120 + 240)
    assert counted == Counted(calls=1, lost=5)


def test_gradients_end_at_the_lowest_block_that_trains() -> None:
    machines, counted = Machines(), Counted()
    out, back, gradients = both_ways(chain(machines, counted, {"a": (0, 2), "c": (2, 4)}, lowest=2))
    assert (float(out[0, 0, 0]), back, set(gradients)) == (10, None, {"block 2", "block 3"})
    assert [asked for asked in machines.asked if asked[3]] == [("c", 2, 4, True)], "nobody below is asked to run back"


def test_what_the_server_says_ends_it() -> None:
    finish, machines = Finish("run", 1, "over"), Machines(lambda *_: True)
    one = chain(machines, Counted(), heard=lambda: finish if len(machines.asked) == 2 else None)
    with pytest.raises(Interrupted) as caught:
        run_virtual(one.forward(0, 4, START))
    assert caught.value.message is finish
    assert len(machines.asked) == 2
