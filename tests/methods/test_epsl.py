"""EPSL: its ends are simpler methods, bottoms are personal, what is planned and served is what is simulated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import real
from bases import open_base
from cutlayer.config import read_config
from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import Fleet
from cutlayer.methods.method import Method
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.scope import personal_below_the_cut
from cutlayer.policies.select import everyone
from cutlayer.rounds.split import split
from cutlayer.run.inputs import method_of, prepare
from cutlayer.run.loop import Logbook
from cutlayer.run.rehearsed import rehearse
from cutlayer.run.run import situation_of
from cutlayer.server.steps.merged import merged
from cutlayer.testing.playground import ListedBatches, Played, fleet_of, play, streams_for
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter
from cutlayer.wire.messages import Assignment, Update
from turns import by_turns

ModelMaker = Callable[[str, str], Path]
ROUNDS, STEPS = 2, 2
MODELS = {"bert": "classification", "llama": "causal-lm"}
EACH = [(variant, phi) for variant in ("mean", "sample", "wire") for phi in (0.25, 0.5, 1.0)]


@pytest.fixture(params=MODELS)
def base(request: pytest.FixtureRequest, tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model(request.param, MODELS[request.param]), MODELS[request.param])


@pytest.fixture
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def played(base: Base, method: Method, fleet: Fleet | None = None, streams: Any = None) -> Played:
    fleet = fleet or fleet_of(3)
    streams = streams or streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
    return play(base, method, fleet, streams, rounds=ROUNDS, local_steps=STEPS)


def epsl(**options: Any) -> Method:
    return build_method("epsl", options, seed=3)


def trained(run: Played) -> list[Adapter]:
    """All that every round has trained, on devices and on the server."""
    return [part.adapter for parts in run.contributions for part in parts]


def assert_same(one: Played, other: Played, **close: float) -> None:
    assert len(trained(one)) == len(trained(other)) > 0
    for mine, theirs in zip(trained(one), trained(other), strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            torch.testing.assert_close(value, theirs[name], **(close or {"rtol": 0.0, "atol": 0.0}))


def parallel_split_learning() -> Method:
    """Pieces that were here before: a merged batch, each device its rows, and bottoms that nobody averages."""
    return Method(
        plan=(everyone(), cut_at(1)),
        round=split(server_step=merged()),
        aggregate=mean_per_block(),
        scope=personal_below_the_cut,
    )


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("variant", ["mean", "sample", "wire"])
def test_phi_0_is_parallel_split_learning(variant: str, dropout: float, base: Base) -> None:
    if dropout:
        lora = replace(base.settings.lora, dropout=dropout)
        base = Base(replace(base.settings, lora=lora, base_dropout=True))
    one = played(base, epsl(phi=0.0, variant=variant))
    other = played(base, parallel_split_learning())
    assert_same(one, other)
    assert [(e.who, e.what, e.start_seconds, e.flops) for e in one.events] == [
        (e.who, e.what, e.start_seconds, e.flops) for e in other.events
    ]
    assert [row["loss"] for row in one.rows] == [row["loss"] for row in other.rows]


def test_phi_0_averaged_is_mergesfl(base: Base) -> None:
    one = played(base, epsl(phi=0.0, average=True))
    assert_same(one, played(base, build_method("mergesfl", {"batch": "fixed"}, seed=0)))


def alike(task: Any) -> tuple[Fleet, dict[str, ListedBatches]]:
    """Four devices that hold the same samples."""
    fleet = fleet_of(4)
    batches = [random_batch(task, seed=step, samples=4, tokens=10) for step in range(ROUNDS * STEPS)]
    return fleet, {device.name: ListedBatches(batches) for device in fleet.devices}


@pytest.mark.parametrize(("variant", "phi"), list(by_turns(EACH, one_of=2)))
def test_of_equal_batches_any_phi_is_phi_0(variant: str, phi: float, base: Base) -> None:
    """On the wire to the last bit; elsewhere as near as AdamW's first steps leave gradients rounded otherwise."""
    one = played(base, epsl(phi=phi, variant=variant, pairing=False), *alike(base.settings.task))
    other = played(base, epsl(phi=0.0), *alike(base.settings.task))
    assert_same(one, other, **({} if variant == "wire" else {"rtol": 1e-3, "atol": 2e-4}))


@pytest.mark.parametrize("variant", ["mean", "sample", "wire"])
def test_of_unequal_batches_phi_matters(variant: str, base: Base) -> None:
    one, other = (played(base, epsl(phi=phi, variant=variant)) for phi in (1.0, 0.0))
    for mine, theirs in zip(updates(one), updates(other), strict=True):
        assert any(not torch.equal(mine[name], theirs[name]) for name in mine), "what goes down is averaged"


def updates(run: Played) -> list[Adapter]:
    """The bottoms that devices have trained in the first round."""
    return [message.adapter for message in run.sent_up if isinstance(message, Update) and message.round == 0]


def test_the_seed_reaches_the_step(bert: Base) -> None:
    one, same, other = (
        played(bert, build_method("epsl", {"variant": "sample", "pairing": False}, seed=seed)) for seed in (1, 1, 2)
    )
    assert_same(one, same)
    assert any(not torch.equal(one.adapter[name], other.adapter[name]) for name in one.adapter)


@pytest.mark.parametrize("average", [False, True])
def test_bottoms_are_personal_unless_they_are_averaged(average: bool, bert: Base) -> None:
    run = played(bert, epsl(average=average))
    starts = [message.adapter for message in run.sent_down if isinstance(message, Assignment) and message.round]
    assert len(starts) == len(updates(run)) == 3
    for name in bert.device_names(1):
        assert all(torch.equal(starts[0][name], start[name]) for start in starts[1:]) == average
        assert not torch.equal(updates(run)[0][name], updates(run)[1][name])
    server = {
        name: value
        for parts in run.contributions
        for part in parts
        if not part.device
        for name, value in part.adapter.items()
    }
    assert set(server) == set(bert.server_names(1))
    assert all(torch.equal(run.adapter[name], value) for name, value in server.items())


def test_a_rehearsal_shows_the_smaller_backward_pass(inputs: Path, tmp_path: Path) -> None:
    """The server's time of a step is phi/C + 1 - phi of the backward pass, and one m-th of a forward pass more."""

    def seconds(phi: float, variant: str) -> float:
        fleet = {**real.FLEET, "server": {"tflops": 1e-5, "efficiency": 0.3, "memory_gib": 4}}
        options = {"method.name": "epsl", "method.phi": phi, "method.variant": variant, "fleet": fleet}
        values = {**real.values_for(inputs), **options, "out": str(tmp_path / "run")}
        made = prepare(read_config(None, values=values))
        plan = method_of(made.config).make_plan(0, situation_of(made, Logbook()))
        rehearsed = rehearse(made, method_of(made.config), plan, num_tokens=8)
        assert made.base.weights.bytes_read == 0
        step = made.costs.server(plan.devices[0], 8, 8)
        at = {"flops": fleet["server"]["tflops"] * 1e12 * 0.3}
        exact = phi == 0 or variant == "wire"
        backward = step.backward_flops * (1 if exact else phi / 2 + 1 - phi)
        forward = step.forward_flops * (1 if exact else 1 + phi / 2)
        took[phi, variant] = 3 * (backward + forward) / at["flops"]
        return rehearsed.seconds

    took: dict[tuple[float, str], float] = {}
    whole = seconds(0.0, "mean")
    for phi, variant in ((1.0, "mean"), (0.5, "sample"), (1.0, "wire")):
        assert seconds(phi, variant) - whole == pytest.approx(took[phi, variant] - took[0.0, "mean"], abs=1e-6)


@pytest.mark.parametrize("variant", ["mean", "sample", "wire"])
def test_served_is_simulated(variant: str, inputs: Path, tmp_path: Path) -> None:
    values = {**real.values_for(inputs), "method.name": "epsl", "method.variant": variant}
    for run, out in ((real.simulated, "simulated"), (real.served, "served")):
        run(values, tmp_path / out)
    files = [sorted((tmp_path / out).glob("adapter*/**/*.safetensors")) for out in ("simulated", "served")]
    assert len(files[0]) == len(files[1]) >= 3, "one for each device, and the best"
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"phi": -0.1}, "method.phi: expected a share from 0 to 1, got -0.1"),
        ({"phi": 1.5}, "method.phi: expected a share from 0 to 1, got 1.5"),
        ({"phi": float("nan")}, "method.phi: expected a share from 0 to 1, got nan"),
        ({"phi": "half"}, "method.phi: expected float for epsl, got 'half'"),
        ({"variant": "A"}, "method.variant: expected one of auto, mean, sample, wire, got 'A'"),
        ({"pairing": 1}, "method.pairing: expected bool for epsl, got 1"),
        ({"average": None}, "method.average: expected bool for epsl, got None"),
        ({"fraction": 0.5}, "method.fraction: expected an option of epsl (cut, phi, variant, pairing, average)"),
    ],
    ids=str,
)
def test_options_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_method("epsl", options, seed=0)
    assert str(error.value).startswith(said)


def test_everybody_is_waited_for_at_one_cut_with_whole_batches() -> None:
    """Refusals of `Method` go by these (tests/methods/test_mergesfl.py)."""
    round = epsl().round
    assert (round.equal_cuts, round.together, round.cuts_batches, round.divisible) == (True, True, False, False)
