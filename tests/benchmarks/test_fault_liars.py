"""One liar: whatever a member of the fleet says in one field, the run ends with an adapter, the liar is refused by
name, and no honest device is."""

from __future__ import annotations

from pathlib import Path

import pytest

import fault_liars
from cutlayer.testing.faults import LIES
from faulty_runs import FLEET, Plan, World, play, write_inputs

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


@pytest.mark.parametrize(
    ("setting", "lie"),
    [
        ("16 bits", "poison within bounds"),
        ("16 bits, split", "poison within bounds"),
        ("16 bits, held out", "poison within bounds"),
        ("16 bits", "poison on some rows"),
        ("all linear", "poison within bounds"),
        ("16 bits, folded", "poison on some rows"),
        ("16 bits, relayed", "poison on some rows"),
        ("16 bits, at sites", "poison on some rows"),
        ("16 bits, no barrier", "poison on some rows"),
    ],
)
def test_poison_that_shows_when_the_model_runs(setting: str, lie: str, campaign: fault_liars.Campaign) -> None:
    """Each number of it could be; the run goes on with the adapter of the fleet without who sent it."""
    counts = campaign.play(setting, [lie])
    assert not counts.failures, counts.failures
    assert counts.runs[setting] == {"diverged": 1}, "the liar was refused"


@pytest.mark.slow
@pytest.mark.parametrize("setting", fault_liars.SETTINGS)
def test_every_lie(setting: str, campaign: fault_liars.Campaign) -> None:
    counts = campaign.play(setting, LIES)
    assert not counts.failures, "\n".join(f"{lie}: {told}" for lie, told in counts.failures.items())


def test_a_rate_that_breaks_the_model_is_nobodys_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no barrier a round may be one device's, of which nobody can say whether it lies. Where the next one breaks
    the model as well, the run ends with its line, and does not go through the devices one after the other."""
    speeds = {"a": 1.0e-6, "b": 0.9e-6, "c": 0.8e-6}
    three = [{"name": name, "tflops": tflops, "max_blocks": 1} for name, tflops in speeds.items()]
    monkeypatch.setitem(FLEET, "devices", three)
    hopeless = {"train.lr": 3000.0, "train.local_steps": 1, "train.rounds": 8}
    values = {**fault_liars.SETTINGS["16 bits, no barrier"], **hopeless}
    result = play(World(values, write_inputs(tmp_path / "inputs"), tmp_path), Plan(seed=0))
    assert result.outcome == "DivergedError"
    assert "with room to spare" in result.problems[-1]
