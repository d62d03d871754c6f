"""Aggregation by scope: prefixes of devices never mix, suffixes are averaged, and each scope gathers for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.fleet.clock import run_virtual
from cutlayer.model.base import Base
from cutlayer.model.low_rank import factor_names
from cutlayer.policies.aggregate import Aggregate, Contribution, mean_per_block, with_momentum
from cutlayer.policies.scope import EVERYONE, Scope, personal, personal_below_the_cut, shared
from cutlayer.policies.stack import begin_anew, stack
from cutlayer.sealed import seal, unseal
from cutlayer.server.adapters import Adapters
from cutlayer.server.aggregation import Aggregation
from cutlayer.server.owners import one_per_device
from cutlayer.server.server import Server
from cutlayer.state import State
from cutlayer.testing.playground import fleet_of
from cutlayer.testing.tiny import random_batch
from cutlayer.types import Adapter, DevicePlan, RoundPlan
from cutlayer.wire.messages import Update
from ends import ADAMW, activations_for, served, server_for

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def plan_of(*cuts: int, round: int = 0) -> RoundPlan:
    return RoundPlan(round, tuple(DevicePlan(f"device-{i}", cut, 4, 2) for i, cut in enumerate(cuts)))


def adapters_of(base: Base, scope: Scope) -> Adapters:
    return Adapters(base, base.initial_adapter(0), ADAMW, scope)


def brought(base: Base, *seeds: int, names: Sequence[str] | None = None) -> list[Contribution]:
    """Contributions of devices, with unequal weights: each its own, of these tensors."""
    return [
        Contribution(
            {name: moved_adapter(base, seed=seed)[name] for name in names or base.shapes},
            dict.fromkeys(names or base.shapes, float(index + 1)),
            f"device-{index}",
        )
        for index, seed in enumerate(seeds)
    ]


def mean_of(parts: Sequence[Contribution], name: str) -> torch.Tensor:
    total = sum(part.weights[name] for part in parts)
    first, *others = (part.adapter[name].double() * (part.weights[name] / total) for part in parts)
    return sum(others, start=first).float()


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


class Noting:
    """The mean, which notes what it is given; a copy for another scope notes in the same list."""

    name, mixed_ranks = "noting", True

    def __init__(self, seen: list[tuple[Adapter, list[Contribution]]]) -> None:
        self.seen = seen

    def __deepcopy__(self, _memo: object) -> Noting:
        return Noting(self.seen)

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution], *more: Any) -> Adapter:
        self.seen.append((broadcast, list(contributions)))
        return mean_per_block()(broadcast, contributions, *more)

    def state(self) -> State:
        return State()

    def load(self, state: State) -> None: ...


# ------------------------------------------------------------------ who is averaged with whom


def test_where_all_share_it_is_the_aggregate_itself(bert: Base) -> None:
    adapters, parts = adapters_of(bert, shared), brought(bert, 1, 2)
    Aggregation(mean_per_block())(adapters, parts, plan_of(1, 3))
    assert_same(adapters.shared, {name: mean_of(parts, name) for name in bert.shapes})
    assert adapters.views() == {}


@pytest.mark.parametrize("cuts", [(2, 2), (1, 2), (0, 3), (3, 1)])
def test_prefixes_never_mix_and_the_suffix_is_the_mean(cuts: tuple[int, int], bert: Base) -> None:
    adapters, plan = adapters_of(bert, personal_below_the_cut), plan_of(*cuts)
    one, other = brought(bert, 1, 2)
    Aggregation(mean_per_block())(adapters, [one, other], plan)
    below = [set(bert.device_names(cut)) for cut in cuts]
    for name in bert.shapes:
        sharing = [part for part, held in zip((one, other), below, strict=True) if name not in held]
        expected = mean_of(sharing, name) if sharing else bert.initial_adapter(0)[name]
        assert torch.equal(adapters.shared[name], expected), name
    for part, held in zip((one, other), below, strict=True):
        view = adapters.views()[part.device]
        assert_same(view, {name: part.adapter[name] if name in held else adapters.shared[name] for name in view})
    views = adapters.views()
    differ = {name for name in bert.shapes if not torch.equal(views["device-0"][name], views["device-1"][name])}
    assert differ == below[0] | below[1], "views differ below the cuts only, and there everywhere"


def test_what_another_device_does_below_its_cut_is_nobody_elses_affair(bert: Base) -> None:
    views = []
    for seed in (2, 3):
        adapters, plan, (one, other) = adapters_of(bert, personal_below_the_cut), plan_of(2, 2), brought(bert, 1, 2)
        changed = moved_adapter(bert, seed=seed)
        adapter = {**other.adapter, **{name: changed[name] for name in bert.device_names(2)}}
        Aggregation(mean_per_block())(adapters, [one, replace(other, adapter=adapter)], plan)
        views.append(adapters.views())
    assert_same(views[0]["device-0"], views[1]["device-0"])
    assert not torch.equal(*(view["device-1"][bert.device_names(2)[0]] for view in views))


def test_rounds_of_moving_cuts(bert: Base) -> None:
    """Block 1 is the device's own, then everybody's, then begins for the device from what they made of it."""
    server = server_for(bert, fleet_of(2), scope=personal_below_the_cut)
    aggregation = Aggregation(mean_per_block())
    block_1 = [name for name in bert.shapes if bert.block_of(name) == 1]

    hold(server, aggregation, plan_of(2, 1))
    first = server.adapters.views()
    assert not any(torch.equal(first["device-0"][name], server.adapter[name]) for name in block_1)
    assert all(torch.equal(first["device-1"][name], server.adapter[name]) for name in block_1)

    plan = plan_of(1, 1, round=1)
    server.begin(plan, one_per_device)
    for name in block_1:
        assert torch.equal(server.adapters.trainable("device-0").values()[name], server.adapter[name]), "given back"
    hold(server, aggregation, plan)
    second = server.adapters.views()
    for name in block_1:
        assert torch.equal(second["device-0"][name], second["device-1"][name])
        assert torch.equal(second["device-0"][name], server.adapter[name])

    server.begin(plan_of(2, 1, round=2), one_per_device)
    told = server.assignment(plan_of(2, 1).devices[0]).adapter
    assert all(torch.equal(told[name], server.adapter[name]) for name in block_1)


def hold(server: Server, aggregation: Aggregation, plan: RoundPlan) -> None:
    """A round in which each device trains a step on the server and moves what it holds by an amount of its own."""
    server.begin(plan, one_per_device)
    for index, device in enumerate(plan.devices):
        batch = random_batch("classification", seed=10 * plan.round + index)
        arrived = activations_for(server.base, batch, device.cut, device=device.device)
        run_virtual(served(server, replace(arrived, round=plan.round)))
        told = server.assignment(device).adapter
        trained = {name: value + 0.1 * (index + 1) for name, value in told.items()}
        server.accept(Update("run", plan.round, device.device, trained, 0, 4, 4, 0.0, 0.0))
    aggregation(server.adapters, server.contributions(), plan)


def test_devices_of_a_site_are_averaged_with_each_other(bert: Base) -> None:
    def site(device: DevicePlan, _block: int | None) -> str:
        return "north" if device.device in ("device-0", "device-2") else "south"

    adapters, parts = adapters_of(bert, site), brought(bert, 1, 2, 3)
    Aggregation(mean_per_block())(adapters, parts, plan_of(1, 2, 3))
    views = adapters.views()
    assert_same(views["device-0"], {name: mean_of([parts[0], parts[2]], name) for name in bert.shapes})
    assert_same(views["device-2"], views["device-0"])
    assert_same(views["device-1"], parts[1].adapter)
    assert_same(adapters.shared, bert.initial_adapter(0))


def test_what_several_devices_trained_on_the_server_is_everybodys(bert: Base) -> None:
    """A contribution of no one device: scopes of devices have no part in it."""
    adapters, names = adapters_of(bert, personal_below_the_cut), bert.server_names(1)
    [one, _] = brought(bert, 1, 2, names=bert.device_names(1))
    of_all = Contribution({name: moved_adapter(bert)[name] for name in names}, dict.fromkeys(names, 3.0))
    Aggregation(mean_per_block())(adapters, [one, of_all], plan_of(1, 1))
    assert_same(adapters.shared, {**bert.initial_adapter(0), **of_all.adapter})
    assert_same(adapters.views()["device-0"], {**adapters.shared, **one.adapter})
    assert_same(adapters.views()["device-1"], adapters.shared)


# ------------------------------------------------------------------ what aggregates are given


def test_each_scope_is_given_what_its_devices_have_begun_with(bert: Base) -> None:
    """Not what another scope has just become of it: where cuts differ, a block is one device's own and also shared."""
    seen: list[tuple[Adapter, list[Contribution]]] = []
    adapters, plan = adapters_of(bert, personal_below_the_cut), plan_of(1, 2)
    start = bert.initial_adapter(0)
    aggregation = Aggregation(Noting(seen))
    aggregation(adapters, brought(bert, 1, 2), plan)
    assert [list(broadcast) for broadcast, _ in seen] == [
        list(bert.shapes),
        bert.device_names(1),
        bert.device_names(2),
    ]
    for broadcast, _ in seen:
        assert_same(broadcast, {name: start[name] for name in broadcast})
    given = [[part.device for part in parts] for _, parts in seen]
    assert given == [["device-0", "device-1"], ["device-0"], ["device-1"]]
    for broadcast, parts in seen[1:]:
        assert all(part.adapter.keys() == part.weights.keys() == broadcast.keys() for part in parts)
    views, everybodys = adapters.views(), adapters.shared
    seen.clear()
    aggregation(adapters, brought(bert, 3, 4), plan)
    assert_same(seen[0][0], everybodys)
    for (broadcast, _), device in zip(seen[1:], plan.devices, strict=True):
        assert_same(broadcast, {name: views[device.device][name] for name in bert.device_names(device.cut)})


def test_places_in_the_full_tensors_go_with_their_tensors(bert: Base) -> None:
    seen: list[tuple[Adapter, list[Contribution]]] = []
    adapters, [one] = adapters_of(bert, personal_below_the_cut), brought(bert, 1)
    name, other = bert.device_names(2)[0], bert.server_names(2)[0]
    where = {name: (0, torch.arange(3)), other: (1, torch.arange(2))}
    Aggregation(Noting(seen))(adapters, [replace(one, where=where)], plan_of(2))
    assert [[list(part.where) for part in parts] for _, parts in seen] == [[[other]], [[name]]]


def test_a_round_to_which_nobody_contributed_is_a_round_to_everybodys_aggregate(bert: Base) -> None:
    """Momentum goes on, and a seeded draw is another one in the next round: as where nobody may have a scope."""
    aggregates = [with_momentum(mean_per_block(), 0.5) for _ in range(2)]
    adapters, plan = adapters_of(bert, personal_below_the_cut), plan_of(1, 1)
    aggregation = Aggregation(aggregates[0])
    names = bert.server_names(1)
    aggregation(adapters, brought(bert, 1, 2, names=names), plan)
    straight = called(aggregates[1], bert.initial_adapter(0), brought(bert, 1, 2, names=names), plan)
    assert_same(adapters.shared, straight)
    aggregation(adapters, [], plan)
    assert_same(adapters.shared, called(aggregates[1], straight, [], plan))
    assert not torch.equal(adapters.shared[names[0]], straight[names[0]])


def called(aggregate: Aggregate, broadcast: Adapter, parts: Sequence[Contribution], plan: RoundPlan) -> Adapter:
    return aggregate(broadcast, parts, plan)


def test_a_contribution_without_a_tensor_is_handed_on(bert: Base) -> None:
    """A device that holds nothing that trains has taken part all the same."""
    seen: list[tuple[Adapter, list[Contribution]]] = []
    for scope in (shared, personal):
        Aggregation(Noting(seen))(adapters_of(bert, scope), [Contribution({}, {}, "device-0")], plan_of(0))
    assert [[part.device for part in parts] for _, parts in seen] == [["device-0"], ["device-0"]]


# ------------------------------------------------------------------ what it carries


def momentum(base: Base) -> tuple[Adapters, Aggregation]:
    return adapters_of(base, personal_below_the_cut), Aggregation(with_momentum(mean_per_block(), 0.5))


def test_scopes_gather_momentum_each_for_itself(bert: Base) -> None:
    (adapters, aggregation), plan = momentum(bert), plan_of(2, 1)
    alone = with_momentum(mean_per_block(), 0.5)
    own, below = bert.initial_adapter(0), bert.device_names(2)
    own = {name: own[name] for name in below}
    for round in range(3):
        parts = brought(bert, 2 * round, 2 * round + 1)
        aggregation(adapters, parts, plan)
        part = replace(parts[0], adapter={name: parts[0].adapter[name] for name in below})
        own = called(alone, own, [part], plan)
        assert_same({name: adapters.views()["device-0"][name] for name in below}, own)
    carried = aggregation.state().branches()
    assert carried.keys() == {EVERYONE, "device-0", "device-1"}
    assert carried["device-0"].tensors.keys() == set(below)


def test_it_goes_on_from_its_state(bert: Base, tmp_path: Path) -> None:
    """Through a file: whatever carries nothing comes back as nothing."""
    (adapters, aggregation), (others, resumed), plan = momentum(bert), momentum(bert), plan_of(2, 0)
    for round in range(2):
        aggregation(adapters, brought(bert, 2 * round, 2 * round + 1), plan)
    for name, keeper in (("adapters", adapters), ("aggregation", aggregation)):
        seal(tmp_path / name, {}, keeper.state())  # type: ignore[attr-defined]
    others.load(unseal(tmp_path / "adapters", {}, foreign={}, torn=""))
    resumed.load(unseal(tmp_path / "aggregation", {}, foreign={}, torn=""))
    for one, other in ((adapters, aggregation), (others, resumed)):
        other(one, brought(bert, 8, 9), plan)
    assert_same(adapters.state().tensors, others.state().tensors)
    assert adapters.state().facts == others.state().facts
    assert_same(aggregation.state().tensors, resumed.state().tensors)


def test_a_fresh_scope_carries_nothing_of_everybodys(bert: Base) -> None:
    """Even where everybody's aggregate has gathered for rounds."""
    adapters, aggregation = momentum(bert)
    aggregation(adapters, brought(bert, 1, 2), plan_of(0, 0))
    aggregation(adapters, brought(bert, 3, 4), plan_of(0, 3, round=1))
    begun = adapters.views()["device-1"]
    fresh = with_momentum(mean_per_block(), 0.5)
    names = bert.device_names(3)
    assert aggregation.state().branch("device-1").tensors.keys() == set(names)
    [_, part] = brought(bert, 3, 4, names=names)
    first, again = momentum(bert)
    again(first, brought(bert, 1, 2), plan_of(0, 0))
    expected = called(fresh, {name: first.shared[name] for name in names}, [part], plan_of(0, 3))
    assert_same({name: begun[name] for name in names}, expected)


def test_what_nobody_trained_is_written_once(bert: Base, tmp_path: Path) -> None:
    """Devices with adapters on some blocks only have no copy of the rest: a file holds no tensor twice."""
    adapters, names = adapters_of(bert, personal), bert.device_names(1)
    Aggregation(mean_per_block())(adapters, brought(bert, 1, 2, names=names), plan_of(3, 3))
    seal(tmp_path / "adapters", {}, adapters.state())
    assert adapters.state().branch("own").branch("device-1").tensors.keys() == set(names)


def test_what_is_tried_may_go_further(bert: Base) -> None:
    adapters, aggregation = adapters_of(bert, personal_below_the_cut), Aggregation(mean_per_block())
    plan, parts = plan_of(1, 3), brought(bert, 1, 2)
    once, thrice = (aggregation.tried(adapters, parts, plan, times=times) for times in (1.0, 3.0))
    assert once.keys() == thrice.keys() == {EVERYONE, "device-0", "device-1"}
    for scope, adapter in once.items():
        for name, value in adapters.broadcast(scope, list(adapter)).items():
            torch.testing.assert_close(thrice[scope][name] - value, 3 * (adapter[name] - value))


def test_what_is_folded_is_tried_in_the_place_of_factors_that_begin_anew(bert: Base) -> None:
    """The product of the stack as it is, and so many times that."""
    adapters, aggregation = adapters_of(bert, shared), Aggregation(begin_anew(seed=0))
    parts = brought(bert, 1, 2)
    folded = stack(parts)
    for times in (1.0, 4.0):
        [tried] = aggregation.tried(adapters, parts, plan_of(1, 3), stack, times=times).values()
        assert tried.keys() == adapters.shared.keys()
        for b, a in factor_names(tried):
            torch.testing.assert_close(tried[b] @ tried[a], times * (folded[b] @ folded[a]))


@pytest.mark.parametrize("scope", [shared, personal_below_the_cut])
def test_what_is_tried_is_what_comes_of_it_and_changes_nothing(scope: Scope, bert: Base) -> None:
    """With momentum, of which each scope has its own: a trial must leave no trace in it."""
    plan, after = plan_of(1, 3), list[dict[str, Any]]()
    for trials in (0, 2):
        adapters, aggregation = adapters_of(bert, scope), Aggregation(with_momentum(mean_per_block(), 0.5))
        for seed in (1, 3):
            parts = brought(bert, seed, seed + 1)
            for _ in range(trials):
                tried = aggregation.tried(adapters, parts, plan)
                aggregation.tried(adapters, parts[:1], plan)
            aggregation(adapters, parts, plan)
            if trials:
                assert_same(tried[EVERYONE], adapters.shared)
        after.append({EVERYONE: adapters.shared, **adapters.views()})
    assert after[0].keys() == after[1].keys()
    for name, adapter in after[0].items():
        assert_same(adapter, after[1][name])
