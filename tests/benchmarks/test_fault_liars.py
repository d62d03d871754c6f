"""One liar: whatever a member of the fleet says in one field, the run ends with an adapter, the liar is refused by
name, and no honest device is."""

from __future__ import annotations

import pytest

import fault_liars
from cutlayer.testing.faults import LIES

HERE = {
    "memsfl optimal": (
        "called server",
        "a byte of memory",
        "no block lent",
        "speed 5e-324",
        "latency 1.7e308",
        "other classes",
        "a cut of 2**40",
        "activations 1e30",
        "no times",
        "bytes 2**50",
        "an adapter of 3e38",
        "weighs 2**40",
    ),
    "fedlora": ("a loss of none", "a loss of 1e308", "an adapter of none"),
    "labels at home": ("a step's loss none", "gradients 1e30"),
    "held out": ("judged none", "held out 1e30"),
}
"""`benchmarks/faults.py liars` plays every lie in every setting."""


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> fault_liars.Campaign:
    return fault_liars.Campaign(tmp_path_factory.mktemp("liars"))


@pytest.mark.parametrize("setting", HERE)
def test_one_liar(setting: str, campaign: fault_liars.Campaign) -> None:
    counts = campaign.play(setting, HERE[setting])
    assert not counts.failures, "\n".join(f"{lie}: {told}" for lie, told in counts.failures.items())
    assert counts.runs[setting].total() == len(HERE[setting])


@pytest.mark.parametrize("setting", ["16 bits", "16 bits, split", "16 bits, held out"])
def test_poison_that_shows_when_the_model_runs(setting: str, campaign: fault_liars.Campaign) -> None:
    """Each number of it could be; the run goes on with the adapter of the fleet without who sent it."""
    counts = campaign.play(setting, ["poison within bounds"])
    assert not counts.failures, counts.failures
    assert counts.runs[setting] == {"diverged": 1}, "the liar was refused"


@pytest.mark.slow
@pytest.mark.parametrize("setting", fault_liars.SETTINGS)
def test_every_lie(setting: str, campaign: fault_liars.Campaign) -> None:
    counts = campaign.play(setting, LIES)
    assert not counts.failures, "\n".join(f"{lie}: {told}" for lie, told in counts.failures.items())
