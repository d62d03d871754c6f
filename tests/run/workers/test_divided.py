"""Which rounds workers may hold, and which device goes where."""

from __future__ import annotations

from cutlayer.methods.table import TABLE
from cutlayer.run.workers.divided import divided, divisible_methods
from cutlayer.types import DevicePlan, RoundPlan

DIVISIBLE = {
    *("memsfl", "reindsplit", "sfl_v1", "fedlora", "hetlora", "flexlora", "flora", "legend", "fedspine", "local_only"),
    *("adel", "fedsl", "gan_hfsl", "petals", "prge", "salf", "teasq_fed"),
}


def test_a_method_is_divided_where_no_device_depends_on_another() -> None:
    assert divisible_methods() == [name for name in TABLE if name in DIVISIBLE]


def test_a_plan_is_divided_in_its_order() -> None:
    plan = RoundPlan(3, tuple(DevicePlan(name) for name in "dacb"), ranks=(2, 2))
    parts = divided(plan, {"a": 1, "b": 0, "c": 1, "d": 3}.__getitem__)
    assert {number: [device.device for device in part.devices] for number, part in parts.items()} == {
        0: ["b"],
        1: ["a", "c"],
        3: ["d"],
    }
    assert all((part.round, part.ranks) == (3, (2, 2)) for part in parts.values())
