"""Which rounds workers may hold, and which device goes where."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.methods.table import TABLE, build_method
from cutlayer.policies.stragglers import stragglers_by_name
from cutlayer.run.workers.divided import check_divisible, divided
from cutlayer.types import DevicePlan, RoundPlan

DIVISIBLE = {
    *("memsfl", "reindsplit", "sfl_v1", "fedlora", "hetlora", "flexlora", "flora", "legend", "fedspine", "local_only"),
    *("prge", "petals"),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_method_is_divided_where_no_device_depends_on_another(name: str) -> None:
    round, everyone = build_method(name, {}, 0).round, stragglers_by_name("wait_all", "drop")
    if name in DIVISIBLE:
        check_divisible(name, round, everyone)
        return
    with pytest.raises(ConfigError, match=f"got {name}: ") as caught:
        check_divisible(name, round, everyone)
    assert str(caught.value).endswith("choose one of " + ", ".join(n for n in TABLE if n in DIVISIBLE) + ".")


def test_a_quorum_counts_over_all_workers_and_none_of_them_can() -> None:
    round = build_method("memsfl", {}, 0).round
    with pytest.raises(ConfigError, match=r"got a quorum of 0\.5"):
        check_divisible("memsfl", round, stragglers_by_name("quorum:0.5", "drop"))
    check_divisible("memsfl", round, stragglers_by_name("deadline:3", "use"))


def test_a_plan_is_divided_in_its_order() -> None:
    plan = RoundPlan(3, tuple(DevicePlan(name) for name in "dacb"), ranks=(2, 2))
    parts = divided(plan, {"a": 1, "b": 0, "c": 1, "d": 3}.__getitem__)
    assert {number: [device.device for device in part.devices] for number, part in parts.items()} == {
        0: ["b"],
        1: ["a", "c"],
        3: ["d"],
    }
    assert all((part.round, part.ranks) == (3, (2, 2)) for part in parts.values())
