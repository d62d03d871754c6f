"""The knapsack of blocks and ranks, against every cut tried by hand."""

from __future__ import annotations

from typing import Any

import pytest

from cutlayer.errors import BudgetError, ConfigError
from cutlayer.policies.importance_ranks import importance_for, ladder, ranks_within
from cutlayer.policies.knapsack import cut_by_knapsack
from cutlayer.policies.plan import Situation
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import fleet_of, planned
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import DevicePlan, History, StepRecord
from importances import MODULES, RankCosts, record

RUNGS = (1, 2, 4, 8)


def situation(memory_kib: int, history: tuple[StepRecord, ...] = ()) -> dict[str, Any]:
    fleet = fleet_of(1, max_blocks=(BLOCKS,))
    device = fleet.devices[0].model_copy(update={"memory_bytes": 1024 * memory_kib})
    return {
        "fleet": fleet.model_copy(update={"devices": (device,)}),
        "costs": RankCosts(BLOCKS),
        "history": History(list(history)),
        "num_modules": MODULES,
        "rounds": 10**9,
    }


def cut_of(memory_kib: int, history: tuple[StepRecord, ...] = (), **options: Any) -> int:
    given = situation(memory_kib, history)
    return planned(everyone(), cut_by_knapsack(**options), num_devices=1, **given).devices[0].cut


def by_hand(memory_kib: int, history: tuple[StepRecord, ...], share: float) -> int:
    """The cut of the largest sum, the shallowest of equal ones, found by trying all."""
    known = Situation(num_tokens=10, batch_size=4, local_steps=2, **situation(memory_kib, history))
    importance, best = importance_for(known, 0.1), []
    assert ladder(1, 8) == RUNGS
    for cut in range(1, BLOCKS + 1):
        plan = DevicePlan("device-0", cut, 4, ranks=(1,) * BLOCKS)
        if known.device_bytes(plan) > 1024 * memory_kib:
            continue
        own = ranks_within(plan, known, importance, RUNGS)
        below = sum(i * (RUNGS.index(r) + 1) / 4 for i, r in zip(importance, own, strict=False))
        best.append((round(below + share * sum(importance[2 * cut :]), 9), -cut))
    return -max(best)[1]


HISTORIES: list[tuple[StepRecord, ...]] = [
    (),
    (record(0, exact=[1.0, 1, 9, 9, 1, 1], proxy=[1.0] * 6),),
    (record(0, exact=[9.0, 9, 1, 1, 1, 1], proxy=[1.0] * 6),),
]


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_it_is_the_best_of_all_cuts(history: tuple[StepRecord, ...], share: float) -> None:
    for memory_kib in range(2060, 4200, 150):
        assert cut_of(memory_kib, history, server_share=share) == by_hand(memory_kib, history, share), memory_kib


def test_one_more_block_is_taken_where_it_is_worth_what_the_ranks_below_lose() -> None:
    """3 MiB and 24 KiB hold two blocks at ranks 2 to 4, or one at rank 8."""
    even, above, below = (cut_of(3 * 1024 + 16, history, server_share=0.5) for history in HISTORIES)
    assert (even, above, below) == (1, 2, 1)


def test_a_share_of_one_leaves_the_most_to_the_server_and_none_takes_what_fits() -> None:
    assert cut_of(10**5, server_share=1.0) == 1
    assert cut_of(10**5, server_share=0.0) == BLOCKS
    assert cut_of(10**5, server_share=1.0, least=2) == 2


def test_owners_lend_no_more_than_they_say() -> None:
    plan = planned(everyone(), cut_by_knapsack())
    assert [device.cut for device in plan.devices] == [1, 2, 3]


def test_what_cannot_be_held_is_an_error() -> None:
    with pytest.raises(BudgetError, match="device device-0: expected room for the embeddings and blocks"):
        cut_of(1500)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"server_share": 1.5}, "method.server_share: expected from 0 to 1"),
        ({"threshold": -0.1}, "method.threshold: expected at least 0"),
        ({"lowest": 9}, "method.lowest: expected 1 to 8"),
        ({"least": 7}, "method.least: expected 0 to 3"),
    ],
)
def test_numbers_out_of_range(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        cut_of(10**5, **options)
