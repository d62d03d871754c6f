"""Law 8, over whole runs of the real server and real devices: whatever the network, the devices and the server suffer,
a run ends as the one to which nothing happened.
"""

from __future__ import annotations

import pytest

import fault_simulation
import faulty_runs
from cutlayer.testing.faults import KINDS

SEEDS = 100
"""Seeds that are played here of the 2,000 of `make faults`, which CI plays whole."""


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> fault_simulation.Campaign:
    return fault_simulation.Campaign(tmp_path_factory.mktemp("campaign"))


@pytest.mark.slow
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


ONCE_FAILED = {
    353: "a device that began its round again stopped judging, for the round was there, and its numbers were others",
    1630: "the same, in parts",
    159: "a server went back to before a fold that a device had judged",
}


@pytest.mark.parametrize("seed", ONCE_FAILED)
def test_what_once_failed(seed: int, campaign: fault_simulation.Campaign) -> None:
    assert not campaign.play([seed]).failures, ONCE_FAILED[seed]


def test_a_seed_replays(campaign: fault_simulation.Campaign) -> None:
    once, again = (campaign.play([3, 4]) for _ in range(2))
    assert once == again
