"""Law 8, over whole runs of the real server and real devices: whatever the network, the devices and the server suffer,
a run ends as the one to which nothing happened.
"""

from __future__ import annotations

import pytest

import fault_simulation
import faulty_runs
from cutlayer.testing.faults import KINDS

SEEDS = 100
"""Of the 2,000 of `make faults`, which CI plays whole."""


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> fault_simulation.Campaign:
    return fault_simulation.Campaign(tmp_path_factory.mktemp("campaign"))


@pytest.mark.parametrize("method", fault_simulation.METHODS)
def test_whatever_happens(method: str, campaign: fault_simulation.Campaign) -> None:
    methods = fault_simulation.METHODS
    seeds = range(methods.index(method), SEEDS, len(methods))
    counts = campaign.play(seeds)
    assert not counts.failures, "\n".join(f"seed {seed}: {told}" for seed, told in counts.failures.items())
    assert sum(outcomes.total() for outcomes in counts.runs.values()) == len(seeds)
    assert set(counts.faults) == {method}
    assert set(counts.faults[method]) == {*KINDS, *faulty_runs.CRASHES}, "otherwise something was not tried"
    assert counts.recoveries["attached"] > 4 * len(seeds), "otherwise nothing was repaired"


def test_a_seed_replays(campaign: fault_simulation.Campaign) -> None:
    once, again = (campaign.play([3, 4]) for _ in range(2))
    assert once == again
