"""Law 8, over whole runs of the real server and real devices: whatever the network, the devices and the server suffer,
a run ends as the one to which nothing happened.
"""

from __future__ import annotations

import pytest

import fault_simulation
import faulty_runs
from cutlayer.fleet.faults import KINDS

SEEDS = 60


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> fault_simulation.Campaign:
    return fault_simulation.Campaign(tmp_path_factory.mktemp("campaign"))


def test_whatever_happens(campaign: fault_simulation.Campaign) -> None:
    counts = campaign.play(range(SEEDS))
    assert not counts.failures, "\n".join(f"seed {seed}: {told}" for seed, told in counts.failures.items())
    assert sum(outcomes.total() for outcomes in counts.runs.values()) == SEEDS
    assert set(counts.faults) == {*KINDS, *faulty_runs.CRASHES}, "otherwise something was not tried"
    assert counts.recoveries["attached"] > 4 * SEEDS, "otherwise nothing was repaired"


def test_a_seed_replays(campaign: fault_simulation.Campaign) -> None:
    once, again = (campaign.play([3, 4]) for _ in range(2))
    assert once == again
