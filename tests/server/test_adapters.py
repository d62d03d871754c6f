"""Adapters by scope and by owner: what a device is given, what a round opens with, who may share a server adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from bases import moved_adapter, open_base
from cutlayer.errors import ConfigError
from cutlayer.fleet.clock import run_virtual
from cutlayer.model.base import Base
from cutlayer.policies.scope import EVERYONE, Scope, personal, personal_below_the_cut, shared
from cutlayer.server.adapters import Adapters
from cutlayer.server.owners import SHARED, Owner, one_for_all, one_per_device
from cutlayer.testing.playground import fleet_of
from cutlayer.testing.tiny import BLOCKS, random_batch
from cutlayer.types import Adapter, DevicePlan, RoundPlan
from cutlayer.wire.messages import Update
from ends import ADAMW, activations_for, served, server_for

ModelMaker = Callable[[str, str], Path]
BATCH = random_batch("classification")


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def plan_of(*cuts: int, round: int = 0) -> RoundPlan:
    return RoundPlan(round, tuple(DevicePlan(f"device-{i}", cut, 4, 2) for i, cut in enumerate(cuts)))


def adapters_of(base: Base, scope: Scope) -> Adapters:
    return Adapters(base, base.initial_adapter(0), ADAMW, scope)


def assert_same(one: Adapter, other: Adapter) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def only(adapter: Adapter, names: Sequence[str]) -> Adapter:
    return {name: adapter[name] for name in names}


# ------------------------------------------------------------------ scopes


@pytest.mark.parametrize("scope", [shared, personal, personal_below_the_cut])
def test_all_devices_begin_with_the_same(scope: Scope, bert: Base) -> None:
    adapters = adapters_of(bert, scope)
    for device in plan_of(1, 3).devices:
        assert_same(adapters.of(device, list(bert.shapes)), bert.initial_adapter(0))
    assert adapters.views() == {}


def test_a_device_is_given_each_tensor_from_its_scope_at_its_ranks(bert: Base) -> None:
    adapters, plan = adapters_of(bert, personal_below_the_cut), plan_of(2, 1)
    own = {f"device-{i}": moved_adapter(bert, seed=i) for i in range(2)}
    everybodys = moved_adapter(bert, seed=9)
    below = {device.device: bert.device_names(device.cut) for device in plan.devices}
    adapters.put({EVERYONE: everybodys, **{name: only(own[name], below[name]) for name in own}}, plan)
    for device in plan.devices:
        expected = {**everybodys, **only(own[device.device], below[device.device])}
        assert_same(adapters.of(device, list(bert.shapes)), expected)
        assert_same(adapters.views()[device.device], expected)
    assert_same(adapters.shared, everybodys)
    low = DevicePlan("device-0", 2, ranks=(2, 4, 8))
    given = adapters.of(low, bert.device_names(2))
    assert_same(given, bert.at_ranks(only(own["device-0"], below["device-0"]), (2, 4, 8)))
    assert {value.shape[0] for name, value in given.items() if "lora_A" in name} == {2, 4}


def test_what_a_scope_has_not_trained_stays_with_the_scope_of_all(bert: Base) -> None:
    """An aggregate hands on what it was given where nobody trained: that is no value of the scope's own."""
    adapters, plan = adapters_of(bert, personal), plan_of(3)
    names, trained = list(bert.shapes), bert.device_names(1)
    after = {**adapters.broadcast("device-0", names), **only(moved_adapter(bert), trained)}
    adapters.put({EVERYONE: adapters.broadcast(EVERYONE, names), "device-0": after}, plan)
    assert adapters.state().branch("own").branch("device-0").tensors.keys() == set(trained)
    later = moved_adapter(bert, seed=7)
    adapters.put({EVERYONE: later, "device-0": adapters.broadcast("device-0", names)}, plan)
    assert_same(adapters.views()["device-0"], {**later, **only(moved_adapter(bert), trained)})


def test_a_block_that_a_cut_leaves_goes_back_to_everybody(bert: Base) -> None:
    """And begins, when the cut comes back, from what they made of it."""
    adapters = adapters_of(bert, personal_below_the_cut)
    own, everybodys = moved_adapter(bert, seed=1), moved_adapter(bert, seed=2)
    for cut in (3, 2, 0, 2):
        plan = plan_of(cut)
        [device], below = plan.devices, bert.device_names(cut)
        adapters.put({EVERYONE: everybodys, **({"device-0": only(own, below)} if below else {})}, plan)
        expected = {**everybodys, **only(own, below)}
        assert_same(adapters.of(device, list(bert.shapes)), expected)
        assert_same(adapters.views().get("device-0", adapters.shared), expected)
    assert_same(adapters.of(DevicePlan("device-0", 3), bert.device_names(3)), only(expected, bert.device_names(3)))
    assert torch.equal(*(a[bert.device_names(3)[-1]] for a in (expected, everybodys))), "block 2 was given back"


def test_who_is_not_in_a_round_keeps_its_view(bert: Base) -> None:
    adapters = adapters_of(bert, personal)
    own = {f"device-{i}": moved_adapter(bert, seed=i) for i in range(2)}
    adapters.put({EVERYONE: adapters.shared, **own}, plan_of(1, 1))
    newer = moved_adapter(bert, seed=5)
    adapters.put({EVERYONE: adapters.shared, "device-1": newer}, RoundPlan(1, plan_of(1, 1).devices[1:]))
    assert_same(adapters.views()["device-0"], own["device-0"])
    assert_same(adapters.views()["device-1"], newer)


def test_several_devices_may_have_a_scope_of_their_own_together(bert: Base) -> None:
    def site(device: DevicePlan, block: int | None) -> str:
        return EVERYONE if block is None else f"site-{int(device.device[-1]) % 2}"

    adapters, plan = adapters_of(bert, site), plan_of(1, 2, 3)
    names = adapters.names_by_scope(plan)
    blocks = [name for name in bert.shapes if bert.block_of(name) is not None]
    assert names == {EVERYONE: list(bert.shapes), "site-0": blocks, "site-1": blocks}
    of_sites = {f"site-{i}": only(moved_adapter(bert, seed=i), blocks) for i in range(2)}
    adapters.put({EVERYONE: adapters.shared, **of_sites}, plan)
    views = adapters.views()
    assert_same(views["device-0"], views["device-2"])
    assert_same(views["device-1"], {**adapters.shared, **of_sites["site-1"]})


# ------------------------------------------------------------------ one server adapter for several devices


def ranked(*rows: tuple[int, tuple[int, ...]]) -> RoundPlan:
    return RoundPlan(0, tuple(DevicePlan(f"device-{i}", cut, 4, 1, ranks=ranks) for i, (cut, ranks) in enumerate(rows)))


@pytest.mark.parametrize(
    "plan",
    [
        ranked((1, (8, 8, 8)), (1, (8, 4, 8))),
        ranked((3, (8, 8, 8)), (1, (8, 8, 8)), (1, (8, 4, 8))),  # the first one has no say in block 1
        ranked((1, (8, 0, 8)), (0, (8, 8, 8))),  # an adapter on a block, and none
        ranked((1, (8, 8, 8)), (1, ())),  # the run's rank, and one that happens to be it
    ],
    ids=str,
)
def test_one_server_adapter_has_one_rank_on_each_block(plan: RoundPlan, bert: Base) -> None:
    """It would take the shapes of whoever comes last."""
    with pytest.raises(
        ConfigError, match=r"method\.rank: expected the same LoRA ranks .* got \[8, .* for device-. and"
    ):
        adapters_of(bert, shared).open(plan, one_for_all)
    adapters_of(bert, shared).open(plan, one_per_device)  # each has its own


def test_ranks_below_the_cuts_are_the_devices_affair(bert: Base) -> None:
    adapters = adapters_of(bert, shared)
    adapters.open(ranked((2, (8, 4, 8)), (1, (2, 8, 8)), (3, (1, 1, 1))), one_for_all)
    held = adapters.trainable(SHARED).values()
    assert held.keys() == set(bert.server_names(1))
    assert {value.shape[0] for name, value in held.items() if "lora_A" in name} == {8}


def test_devices_that_train_alone_have_nothing_to_agree_on(bert: Base) -> None:
    whole = [DevicePlan(f"device-{i}", BLOCKS, top=BLOCKS, ranks=(2 + i,) * BLOCKS) for i in range(2)]
    adapters = adapters_of(bert, personal)
    adapters.open(RoundPlan(0, tuple(whole)), one_for_all)
    assert adapters.owners == ()


def test_one_server_adapter_belongs_to_one_scope(bert: Base) -> None:
    def own_head(device: DevicePlan, block: int | None) -> str:
        return device.device if block is None else EVERYONE

    with pytest.raises(ConfigError, match=r"method\.scope: .* for device-0 and device-1 .* on block 1\. Let them"):
        adapters_of(bert, personal).open(plan_of(1, 1), one_for_all)
    with pytest.raises(ConfigError, match=r"device-1 for device-1 on the head\. Let them share .* \(memsfl\)\."):
        adapters_of(bert, own_head).open(plan_of(1, 2), one_for_all)
    adapters_of(bert, own_head).open(plan_of(1, 1), one_per_device)
    adapters_of(bert, personal_below_the_cut).open(plan_of(1, 2), one_for_all)  # only one trains block 1 there


# ------------------------------------------------------------------ who left


def trained_by(server_owner: Owner, base: Base, *, gone: str) -> tuple[Adapter, Adapter, list[str]]:
    """The moments of this device's owner before and after a round that it left after its step, and who contributed."""
    server, plan = server_for(base, fleet_of(2)), plan_of(1, 1)
    for number in range(2):
        server.begin(plan, server_owner)
        trainable = server.adapters.trainable(server_owner(gone))
        before = {name: value.clone() for name, value in trainable.moments().items()}
        for device in plan.devices:
            run_virtual(served(server, activations_for(base, BATCH, 1, device=device.device)))
            if number and device.device == gone:
                server.leave(gone)
                continue
            adapter = server.assignment(device).adapter
            server.accept(Update("run", 0, device.device, adapter, 0, 4, 4, 0.0, 0.0))
        contributions = server.contributions()
    return before, trainable.moments(), [part.device for part in contributions]


def test_a_server_adapter_that_only_the_gone_have_trained_is_forgotten(bert: Base) -> None:
    before, after, contributed = trained_by(one_per_device, bert, gone="device-0")
    assert contributed == ["device-1"]
    assert_same(before, after)
    assert {float(value) for name, value in before.items() if name.endswith("#step")} == {1.0}


def test_one_that_others_train_too_keeps_what_it_learnt(bert: Base) -> None:
    before, after, contributed = trained_by(one_for_all, bert, gone="device-0")
    assert contributed == ["device-1", ""]
    assert {float(value) for name, value in before.items() if name.endswith("#step")} == {2.0}
    assert {float(value) for name, value in after.items() if name.endswith("#step")} == {4.0}


# ------------------------------------------------------------------ state


def test_it_goes_on_from_its_state_whole_or_device_by_device(bert: Base) -> None:
    """The states that workers have of a server are, together, the server."""
    server, plan = server_for(bert, fleet_of(3), scope=personal_below_the_cut), plan_of(1, 2, 3)
    server.begin(plan, one_per_device)
    for device in plan.devices:
        run_virtual(served(server, activations_for(bert, BATCH, device.cut, device=device.device)))
        server.accept(Update("run", 0, device.device, {}, 0, 4, 4, 0.0, 0.0))
    own = {device.device: only(moved_adapter(bert), bert.device_names(device.cut)) for device in plan.devices}
    server.adapters.put({EVERYONE: moved_adapter(bert, seed=2), **own}, plan)

    whole, parts = (server_for(bert, fleet_of(3), scope=personal_below_the_cut) for _ in range(2))
    whole.load(server.state().copied())
    for names in ({"device-0", "device-2"}, {"device-1"}):
        part = server.state(names)
        assert part.branch("adapters").branch("own").branches().keys() == names
        assert part.branch("adapters").branch("moments").branches().keys() == names
        parts.load(part.copied())
    for other in (whole, parts):
        found = other.state()
        assert found.facts["ledger"] == server.state().facts["ledger"]
        assert_same(found.tensors, server.state().tensors)
        views = other.adapters.views()
        assert views.keys() == own.keys()
        for name, view in server.adapters.views().items():
            assert_same(views[name], view)
