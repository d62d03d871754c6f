"""Each rule refuses the two choices that contradict each other, and neither of them alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest

from cutlayer.config import read_config
from cutlayer.errors import ConfigError
from cutlayer.methods.contradictions import RULES, RULES_OF_PLANS, check_workers
from cutlayer.methods.method import Method
from cutlayer.methods.table import TABLE, build_method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at, whole_model
from cutlayer.policies.plan import Planner, Situation
from cutlayer.policies.ranks import ranks_above_deepest_cut
from cutlayer.policies.robust import Robust
from cutlayer.policies.select import everyone
from cutlayer.policies.stack import begin_anew, stack
from cutlayer.policies.stragglers import buffered, deadline, quorum, stragglers_by_name
from cutlayer.policies.trains import Trains
from cutlayer.policies.zero_pad import zero_pad
from cutlayer.rounds.local import local
from cutlayer.rounds.pruned import pruned
from cutlayer.rounds.split import split
from cutlayer.rounds.stream import stream
from cutlayer.run.inputs import completed
from cutlayer.run.workers.divided import divisible_methods
from cutlayer.server.steps.merged import merged
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import History, RoundPlan

SITUATION = Situation(
    fleet_of(3),
    FlatCosts(BLOCKS),
    History(),
    num_tokens=10,
    batch_size=4,
    local_steps=2,
    rounds=4,
    label_counts={f"device-{index}": (2, 2) for index in range(3)},
)
STEP = split(server_step=merged())


def of(name: str, options: Mapping[str, Any] | None = None, **changes: Any) -> Method:
    """A method of the table, changed."""
    return replace(build_method(name, options or {}, seed=0), **changes)


def with_planner(method: Method, planner: Planner) -> Method:
    return replace(method, plan=(*method.plan, planner))


def unequal(field: str) -> Planner:
    """Every other device has another value."""
    values: Any = {"cut": (1, 2), "ranks": ((4, 4, 4), (4, 4, 2))}[field]

    def planner(plan: RoundPlan, _situation: Situation) -> RoundPlan:
        devices = [replace(device, **{field: values[i % 2]}) for i, device in enumerate(plan.devices)]
        return replace(plan, devices=tuple(devices))

    return planner


def closing(plan: RoundPlan, _situation: Situation) -> RoundPlan:
    return replace(plan, deadline_seconds=5.0)


def about_what_devices_train(cut: int) -> Method:
    """A round in which every device must train something."""
    round = split(server_step=merged())
    round.shape = replace(round.shape, devices="training")
    return Method((everyone(), cut_at(cut)), round, mean_per_block())


MOVED = build_method("fedkseed", {}, seed=0).moved
MERGED = Method((everyone(), cut_at(1)), STEP, mean_per_block())
KEPT = buffered(0.5)
FROZEN = (everyone(), cut_at(1, trains=False))


@dataclass(frozen=True)
class Case:
    """Two choices.

    Attributes:
      both: a method with both.
      says: a part of the sentence.
      one, other: methods with one of them each.
      asked: of the situation, what a run file asks for where both are; `one` is planned with it too, `other` is not.
    """

    both: Method
    says: str
    one: Method
    other: Method
    asked: Mapping[str, Any]


CASES = {
    "whole_batches_in_parts": Case(
        of("fedlora"),
        "train.micro_batches: expected 1 where no answer",
        of("memsfl"),
        of("fedlora"),
        {"micro_batches": 2},
    ),
    "a_quorum_of_devices_that_wait": Case(
        of("mergesfl"),
        "expected a deadline where devices wait for each other in a round, got a quorum of 0.5",
        of("fedlora"),
        of("mergesfl"),
        {"stragglers": quorum(0.5)},
    ),
    "a_fold_under_kept_activations": Case(
        of("splitfrozen", fold=stack, aggregate=begin_anew(0)),
        "method.fold: expected a round that keeps no activations",
        of("splitfrozen", {"cache": False}, fold=stack, aggregate=begin_anew(0)),
        of("splitfrozen"),
        {},
    ),
    "moved_weights_under_kept_activations": Case(
        of("splitfrozen", moved=MOVED),
        "method.moved: expected a round that keeps no activations",
        of("splitfrozen", {"cache": False}, moved=MOVED),
        of("splitfrozen"),
        {},
    ),
    "dropout_of_kept_activations": Case(
        of("splitfrozen"),
        "Set model.base_dropout=false, or method.cache=false.",
        of("splitfrozen", {"cache": False}),
        of("splitfrozen"),
        {"base_dropout": True},
    ),
    "a_fold_beside_copies": Case(
        of("flora", round=pruned()), "got the shape pruned: a fold does not reach", of("flora"), of("fedspine"), {}
    ),
    "a_fold_of_moved_weights": Case(
        of("flora", moved=MOVED), "got moved ones (method.moved)", of("flora"), of("fedlora", moved=MOVED), {}
    ),
    "changes_of_quantised_weights": Case(
        of("flora"),
        "model.dtype: expected fp32, bf16 or fp16 for a method that changes the base's own weights, got int8",
        of("fedlora"),
        of("flora"),
        {"quantised": "int8"},
    ),
    "late_work_on_a_base_that_moves": Case(
        of("flora"),
        "train.late: expected drop or use where the base's own weights move from round to round, got keep",
        of("fedlora"),
        of("flora"),
        {"stragglers": KEPT},
    ),
    "late_work_at_sites": Case(
        of("hfl_prune"),
        "train.late: expected drop or use where sites average their devices, got keep",
        of("fedlora"),
        of("hfl_prune"),
        {"stragglers": KEPT},
    ),
    "a_robust_mean_of_one": Case(
        of("sl"),
        "train.robust: expected none where devices go on from each other, report to sites, or train nothing",
        of("fedlora"),
        of("sl"),
        {"robust": Robust(factor=3.0)},
    ),
    "a_median_over_ranks": Case(
        of("hetlora"),
        "train.robust: expected none or clip:FACTOR where adapters of different ranks are joined by zero-padding",
        of("fedlora"),
        of("hetlora"),
        {"robust": Robust(median=True)},
    ),
    "a_deadline_where_all_are_awaited": Case(
        with_planner(of("memsfl"), closing),
        "got wait_all, and a deadline of 5 s. Leave train.stragglers out.",
        with_planner(of("memsfl", patience=deadline(5.0)), closing),
        of("memsfl"),
        {},
    ),
    "late_work_beside_the_servers": Case(
        of("memsfl"),
        "train.late: expected drop or use where the server trains a part of the model, got keep, and device device-0",
        of("fedlora"),
        of("memsfl"),
        {"stragglers": KEPT},
    ),
    "a_part_where_devices_are_alone": Case(
        Method((everyone(), cut_at(1)), local(), mean_per_block()),
        "the shape local, in which devices are alone, got 1 of 3 blocks on device device-0",
        Method((everyone(), whole_model()), local(), mean_per_block()),
        MERGED,
        {},
    ),
    "an_adapter_where_devices_are_frozen": Case(
        Method(FROZEN, stream(cache=False), mean_per_block()),
        "got one below the cut 1 of device device-0, which nothing would train",
        Method((*FROZEN, ranks_above_deepest_cut()), stream(cache=False), mean_per_block()),
        MERGED,
        {},
    ),
    "a_frozen_device_that_must_train": Case(
        about_what_devices_train(cut=0),
        "expected devices that train something in the shape split",
        about_what_devices_train(cut=1),
        Method((everyone(), cut_at(0)), STEP, mean_per_block()),
        {},
    ),
    "a_rule_for_gradients_that_no_device_has": Case(
        of("fedkseed", trains=Trains(0.9)),
        "method.trains: expected none where devices move by forward passes alone, got one with seeds",
        of("fedlora", trains=Trains(0.9)),
        of("fedkseed"),
        {},
    ),
    "unequal_cuts_merged": Case(
        with_planner(MERGED, unequal("cut")),
        "method.cut: expected one cut where features of several devices are merged, got [1, 2]",
        with_planner(of("sfl_v1"), unequal("cut")),
        MERGED,
        {},
    ),
    "unequal_ranks_merged": Case(
        with_planner(replace(MERGED, aggregate=zero_pad()), unequal("ranks")),
        "method.rank: expected the same LoRA ranks on every device where features",
        with_planner(of("hetlora"), unequal("ranks")),
        MERGED,
        {},
    ),
    "unequal_ranks_averaged": Case(
        with_planner(of("fedlora"), unequal("ranks")),
        "method.aggregate: expected equal LoRA ranks on each block for the mean per block",
        with_planner(of("hetlora"), unequal("ranks")),
        of("fedlora"),
        {},
    ),
}
"""By the rule that refuses it."""


def test_each_rule_has_its_case() -> None:
    assert [rule.__name__ for rule in (*RULES, *RULES_OF_PLANS)] == list(CASES)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_are_refused_and_each_alone_is_not(case: Case) -> None:
    asked = replace(SITUATION, **case.asked)
    with pytest.raises(ConfigError) as error:
        case.both.make_plan(0, asked)
    assert case.says in str(error.value)
    assert "\n" not in str(error.value)
    assert case.one.make_plan(0, asked)
    assert case.other.make_plan(0, SITUATION)


@pytest.mark.parametrize("name", TABLE)
def test_no_method_of_the_table_contradicts_itself(name: str) -> None:
    plan = build_method(name, {}, seed=0).make_plan(0, SITUATION)
    assert {device.device for device in plan.devices} <= {device.name for device in SITUATION.fleet.devices}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"method.name": "fedlora", "train.micro_batches": 2}, "train.micro_batches"),
        ({"method.name": "sl", "train.stragglers": "quorum:0.5"}, "a quorum of 0.5"),
        ({"method.name": "splitfrozen", "model.base_dropout": True}, "model.base_dropout=false"),
    ],
)
def test_a_run_file_is_refused_when_it_is_read(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        completed(read_config(None, values=values))


def test_a_run_file_that_waits_for_all_overrides_a_method_and_is_held_to_it() -> None:
    method = with_planner(of("memsfl", patience=deadline(5.0)), closing)
    with pytest.raises(ConfigError, match="got wait_all"):
        method.make_plan(0, replace(SITUATION, stragglers=stragglers_by_name("wait_all")))


# ------------------------------------------------------------------ several workers


@pytest.mark.parametrize("name", TABLE)
def test_workers_divide_what_is_divisible(name: str) -> None:
    round, everybody = build_method(name, {}, 0).round, stragglers_by_name("wait_all")
    if name in divisible_methods():
        check_workers(name, round, everybody, divisible_methods)
        return
    with pytest.raises(ConfigError, match=f"got {name}: ") as caught:
        check_workers(name, round, everybody, divisible_methods)
    assert str(caught.value).endswith("choose one of " + ", ".join(divisible_methods()) + ".")


def test_a_quorum_counts_over_all_workers_and_none_of_them_can() -> None:
    round = build_method("memsfl", {}, 0).round
    nobody: Callable[[], list[str]] = list
    with pytest.raises(ConfigError, match=r"got a quorum of 0\.5"):
        check_workers("memsfl", round, quorum(0.5), nobody)
    check_workers("memsfl", round, deadline(3, "use"), nobody)
