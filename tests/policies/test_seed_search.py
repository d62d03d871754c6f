"""Which seeds, how far, and what moves."""

from __future__ import annotations

from typing import Any

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Situation, make_plan
from cutlayer.policies.seed_search import SeedSearch, search_of, searching, seed_search
from cutlayer.policies.seeds import candidate_seeds
from cutlayer.policies.select import everyone
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import History


def situation() -> Situation:
    return Situation(fleet_of(2), FlatCosts(3), History(), num_tokens=8, batch_size=2, local_steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "method.seeds: expected 1 to 32768, got 0"),
        ({"count": 2**15 + 1}, "method.seeds"),
        ({"epsilon": 0.0}, "method.epsilon: expected above 0, got 0.0"),
        ({"clip": -1.0}, "method.clip: expected at least 0, got -1.0"),
    ],
)
def test_a_number_out_of_its_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        seed_search(**({"count": 8, "seed": 0, "epsilon": 1e-3, "clip": 0.0, "full": True} | options))


def test_every_device_has_the_same_seeds() -> None:
    search = SeedSearch(8, 5, 1e-3)
    plan = make_plan((everyone(), searching(search)), 0, situation())
    assert {search_of(device).seeds for device in plan.devices} == {candidate_seeds(8, 5)}
    assert len(set(search.seeds)) == 8


@pytest.mark.parametrize(("full", "ranks"), [(True, (0, 0, 0)), (False, ())])
def test_where_all_weights_move_there_is_no_adapter(full: bool, ranks: tuple[int, ...]) -> None:
    plan = make_plan((everyone(), searching(SeedSearch(8, 5, 1e-3, full=full))), 0, situation())
    assert plan.ranks == ranks
    assert {device.ranks for device in plan.devices} == {ranks}
