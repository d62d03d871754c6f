from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cutlayer.errors import ConfigError
from cutlayer.policies.aggregate import Contribution, mean_per_block, with_momentum
from cutlayer.policies.robust import Robust, change, norm, robust_by_name
from cutlayer.types import Adapter, RoundPlan

NAMES = ("q.lora_A.weight", "q.lora_B.weight")
VALUES = st.floats(-100, 100, width=32)
EVERY = [Robust(factor=2.0), Robust(median=True), Robust(trimmed=0.2), Robust(trimmed=0.0), Robust()]


def sent(*values: float, weight: float = 1.0) -> Contribution:
    adapter = {name: torch.tensor(values) for name in NAMES}
    return Contribution(adapter, dict.fromkeys(adapter, weight), device=f"device-{values}")


def broadcast(count: int = 1) -> Adapter:
    return {name: torch.zeros(count) for name in NAMES}


def mean(parts: list[Contribution]) -> Adapter:
    return mean_per_block()(broadcast(len(parts[0].adapter[NAMES[0]])), parts, RoundPlan(0))


def equal(one: Adapter, other: Adapter) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------ laws


@settings(max_examples=25, deadline=None)
@given(value=VALUES, count=st.integers(1, 5))
def test_of_equal_updates_every_policy_is_the_mean(value: float, count: int) -> None:
    parts = [sent(value, -value, weight=1.0 + place) for place in range(count)]
    for robust in EVERY:
        assert equal(mean(robust(broadcast(2), parts)), mean(parts))


@settings(max_examples=25, deadline=None)
@given(values=st.lists(VALUES, min_size=1, max_size=6), weight=st.floats(0.5, 9))
def test_the_neutral_settings_are_the_mean_bit_for_bit(values: list[float], weight: float) -> None:
    parts = [sent(value, weight=weight + place) for place, value in enumerate(values)]
    for name in ("none", "clip:inf", "trimmed:0"):
        assert equal(mean(robust_by_name(name)(broadcast(), parts)), mean(parts))


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(-1, 1, width=32), min_size=4, max_size=7), lie=st.sampled_from([1e4, -1e4, 1e30]))
def test_one_of_five_moves_the_mean_no_further_than_the_others_are_apart(values: list[float], lie: float) -> None:
    parts = [*map(sent, values), sent(lie)]
    for robust in (Robust(median=True), Robust(trimmed=0.25)):
        [value] = {float(part.adapter[NAMES[0]]) for part in robust(broadcast(), parts)}
        assert min(values) <= value <= max(values)
    clipped = Robust(factor=2.0)(broadcast(), parts)
    norms = [norm(change(broadcast(), part)) for part in clipped]
    assert norms[-1] <= 2.001 * sorted(norm(change(broadcast(), part)) for part in parts)[len(values) // 2]


def test_an_order_of_devices_does_not_matter() -> None:
    parts = [sent(1.0), sent(2.0, weight=3.0), sent(7.0), sent(-9.0)]
    for robust in EVERY:
        there, back = (mean(robust(broadcast(), some)) for some in (parts, parts[::-1]))
        assert all(torch.allclose(there[name], back[name]) for name in there)


# ------------------------------------------------------------------ what they do


def test_a_change_is_scaled_to_so_many_times_the_median_norm() -> None:
    began = {name: torch.full((2,), 5.0) for name in NAMES}

    def moved(step: float) -> Contribution:
        return sent(5.0 + step, 5.0 - step)

    parts = [moved(1.0), moved(1.0), moved(-50.0)]
    kept, also, clipped = Robust(factor=3.0)(began, parts)
    assert kept is parts[0]
    assert also is parts[1]
    assert clipped.adapter[NAMES[0]].tolist() == pytest.approx([2.0, 8.0])
    assert norm(change(began, clipped)) == pytest.approx(3 * norm(change(began, kept)))


def test_a_median_looks_at_no_weight_and_a_trimmed_mean_does() -> None:
    parts = [sent(0.0, weight=100.0), sent(1.0), sent(2.0), sent(3.0, weight=3.0), sent(90.0)]
    assert Robust(median=True)(broadcast(), parts)[0].adapter[NAMES[0]].item() == 2.0
    assert Robust(trimmed=0.2)(broadcast(), parts)[0].adapter[NAMES[0]].item() == pytest.approx((1 + 2 + 9) / 5)
    assert Robust(median=True)(broadcast(), parts[1:])[0].adapter[NAMES[0]].item() == 2.5, "between the middle two"


def test_who_has_not_trained_a_tensor_is_not_asked_about_it() -> None:
    nothing = Contribution({name: torch.zeros(1) for name in NAMES}, dict.fromkeys(NAMES, 0.0))
    only = Contribution({"other": torch.ones(1)}, {"other": 1.0})
    parts = [sent(4.0), sent(4.0), nothing, only]
    centred = Robust(median=True)(broadcast(), parts)
    assert [part.adapter for part in centred[2:]] == [nothing.adapter, only.adapter]
    assert centred[0].adapter[NAMES[0]].item() == 4.0


def test_lower_ranks_and_places_of_their_own_are_clipped_too() -> None:
    began = {"q.lora_A.weight": torch.zeros(4, 3)}

    def rows(tensor: Tensor) -> Contribution:
        return Contribution({"q.lora_A.weight": tensor}, {"q.lora_A.weight": 1.0})

    columns = replace(rows(torch.full((4, 2), 90.0)), where={"q.lora_A.weight": (1, torch.tensor([0, 2]))})
    parts = [rows(torch.ones(2, 3)), rows(torch.ones(4, 3)), columns]
    clipped = Robust(factor=1.0)(began, parts)
    assert [norm(change(began, part)) for part in clipped] == pytest.approx([math.sqrt(6), *[math.sqrt(12)] * 2])


def test_momentum_goes_on_from_the_robust_mean() -> None:
    parts = [sent(1.0), sent(1.0), sent(90.0)]
    gathering = with_momentum(mean_per_block(), 0.5)
    assert gathering(broadcast(), Robust(median=True)(broadcast(), parts), RoundPlan(0))[NAMES[0]].item() == 1.5


def test_a_policy_by_name() -> None:
    assert robust_by_name("none") == robust_by_name("trimmed:0") == Robust()
    assert robust_by_name("clip:2.5") == Robust(factor=2.5)
    assert robust_by_name("median") == Robust(median=True)
    assert [robust_by_name(name).on for name in ("none", "clip:inf", "trimmed:0", "median")] == [False] * 3 + [True]


@pytest.mark.parametrize("name", ["", "clip", "clip:0", "clip:-1", "clip:nan", "median:2", "trimmed:0.5", "mean"])
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(ConfigError, match=r"train.robust: expected a policy, got .* Write none, clip:FACTOR above 0"):
        robust_by_name(name)
