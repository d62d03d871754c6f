"""The mean of each tensor over those who trained it: what it promises, on whatever they bring."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cutlayer.policies.aggregate import Contribution, mean_per_block, with_momentum
from cutlayer.state import State
from cutlayer.types import Adapter
from factors import PLAN

FLOATS = st.floats(-1e6, 1e6, width=32, allow_nan=False)
VALUES = st.lists(FLOATS, min_size=3, max_size=3).map(torch.tensor)
WEIGHTS = st.integers(1, 10_000).map(float)


def contribution(weight: float, **adapter: Tensor) -> Contribution:
    return Contribution(adapter, dict.fromkeys(adapter, weight))


def exact_mean(values: list[Tensor], weights: list[float]) -> list[Fraction]:
    total = sum(map(Fraction, weights))
    return [
        sum((Fraction(float(v[i])) * Fraction(w) for v, w in zip(values, weights, strict=True)), Fraction(0)) / total
        for i in range(len(values[0]))
    ]


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, the sign of zero included."""
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@given(st.lists(st.tuples(VALUES, WEIGHTS), min_size=1, max_size=6))
def test_it_is_the_weighted_mean(parts: list[tuple[Tensor, float]]) -> None:
    values, weights = [list(column) for column in zip(*parts, strict=True)]
    result = mean_per_block()({"a": torch.zeros(3)}, [contribution(w, a=v) for v, w in parts], PLAN)["a"]
    assert result.dtype is torch.float32
    for got, exact in zip(result.tolist(), exact_mean(values, weights), strict=True):
        scale = max(abs(Fraction(float(v.abs().max()))) for v in values)
        assert abs(Fraction(got) - exact) <= scale * Fraction(1, 2**23)


@given(st.lists(st.tuples(VALUES, WEIGHTS), min_size=1, max_size=6))
def test_unweighted_everyone_counts_alike(parts: list[tuple[Tensor, float]]) -> None:
    broadcast = {"a": torch.zeros(3)}
    contributions = [contribution(w, a=v) for v, w in parts]
    alike = [contribution(1.0, a=v) for v, _ in parts]
    assert same(
        mean_per_block(weighted=False)(broadcast, contributions, PLAN)["a"],
        mean_per_block()(broadcast, alike, PLAN)["a"],
    )


@given(VALUES, WEIGHTS)
def test_one_contribution_is_itself(value: Tensor, weight: float) -> None:
    assert same(mean_per_block()({"a": torch.ones(3)}, [contribution(weight, a=value)], PLAN)["a"], value)


def test_one_contribution_is_itself_with_the_sign_of_its_zero() -> None:
    zero = torch.tensor([-0.0, 0.0])
    assert same(mean_per_block()({"a": torch.ones(2)}, [contribution(3.0, a=zero)], PLAN)["a"], zero)


@given(VALUES, st.lists(WEIGHTS, min_size=1, max_size=9))
def test_the_mean_of_equal_values_is_that_value(value: Tensor, weights: list[float]) -> None:
    contributions = [contribution(weight, a=value.clone()) for weight in weights]
    assert torch.equal(mean_per_block()({"a": torch.ones(3)}, contributions, PLAN)["a"], value)


@given(st.lists(st.tuples(VALUES, WEIGHTS), min_size=2, max_size=5), st.randoms())
def test_the_order_matters_to_the_last_bit_of_fp32_at_most(parts: list[tuple[Tensor, float]], random: object) -> None:
    """Sums are in fp64, so who comes first is rounded away, but for a mean that lies between two fp32 numbers."""
    broadcast = {"a": torch.zeros(3)}
    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (
        mean_per_block()(broadcast, [contribution(w, a=v) for v, w in p], PLAN)["a"] for p in (parts, shuffled)
    )
    scale = max(float(value.abs().max()) for value, _ in parts)
    assert float((one - other).abs().max()) <= scale * 2**-23


def test_a_tensor_is_averaged_over_those_who_trained_it() -> None:
    broadcast = {name: torch.full((2,), 9.0) for name in ("low", "high", "head", "nobody")}
    contributions = [
        contribution(1.0, low=torch.tensor([0.0, 4.0]), high=torch.tensor([1.0, 1.0])),
        contribution(3.0, low=torch.tensor([4.0, 0.0])),
        Contribution({"high": torch.tensor([5.0, 5.0]), "head": torch.tensor([2.0, 3.0])}, {"high": 0.0, "head": 2.0}),
    ]
    result = mean_per_block()(broadcast, contributions, PLAN)
    assert result["low"].tolist() == [3.0, 1.0]
    assert result["high"].tolist() == [1.0, 1.0], "a weight of 0 is nobody"
    assert result["head"].tolist() == [2.0, 3.0]
    assert result["nobody"] is broadcast["nobody"]
    unweighted = mean_per_block(weighted=False)(broadcast, contributions, PLAN)
    assert unweighted["low"].tolist() == [2.0, 2.0]
    assert unweighted["high"].tolist() == [1.0, 1.0], "nor does nobody count unweighted"


def test_names_are_those_of_the_broadcast_and_nothing_is_changed() -> None:
    broadcast: Adapter = {"b": torch.ones(1), "a": torch.ones(1)}
    given = contribution(1.0, a=torch.zeros(1), b=torch.zeros(1), stranger=torch.zeros(1))
    result = mean_per_block()(broadcast, [given], PLAN)
    assert list(result) == ["b", "a"]
    result["a"].add_(5)
    assert given.adapter["a"].tolist() == [0.0]
    assert broadcast["a"].tolist() == [1.0]


def test_nobody_came() -> None:
    broadcast = {"a": torch.ones(2)}
    assert mean_per_block()(broadcast, [], PLAN) == broadcast


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_dtype_is_the_broadcasts(dtype: torch.dtype) -> None:
    result = mean_per_block()({"a": torch.zeros(2, dtype=dtype)}, [contribution(1.0, a=torch.ones(2))], PLAN)
    assert result["a"].dtype is dtype


def test_sums_are_in_fp64() -> None:
    """In fp32 the small ones would be lost against the large one."""
    values = [torch.tensor([2.0**24]), *[torch.tensor([1.0])] * 8, torch.tensor([-(2.0**24)])]
    result = mean_per_block()({"a": torch.zeros(1)}, [contribution(1.0, a=value) for value in values], PLAN)
    assert float(result["a"]) == pytest.approx(0.8, rel=1e-6)


# ------------------------------------------------------------------ momentum


def test_momentum_by_hand() -> None:
    """Nesterov: the velocity gathers the rounds' changes; the step is the change and momentum times the velocity."""
    aggregate, adapter = with_momentum(mean_per_block(), 0.5), {"a": torch.tensor([0.0])}
    adapter = aggregate(adapter, [contribution(1.0, a=torch.tensor([4.0]))], PLAN)
    assert adapter["a"].tolist() == [6.0]  # change 4, velocity 4
    adapter = aggregate(adapter, [contribution(1.0, a=torch.tensor([8.0]))], PLAN)
    assert adapter["a"].tolist() == [10.0]  # change 2, velocity 4
    adapter = aggregate(adapter, [], PLAN)
    assert adapter["a"].tolist() == [11.0]  # change 0, velocity 2


def test_no_momentum_is_the_aggregate_itself() -> None:
    mean = mean_per_block()
    assert with_momentum(mean, 0.0) is mean
    assert mean.state() == State()
    mean.load(State())


def test_momentum_goes_on_from_its_state() -> None:
    def round_of(value: float) -> list[Contribution]:
        return [contribution(1.0, a=torch.tensor([value, -value]))]

    broadcast = {"a": torch.tensor([1.0, 2.0])}
    one, other = (with_momentum(mean_per_block(), 0.7) for _ in range(2))
    assert one.state() == State()
    halfway = one(broadcast, round_of(3.0), PLAN)
    state = one.state().copied()
    other.load(state)
    assert torch.equal(one(halfway, round_of(5.0), PLAN)["a"], other(halfway, round_of(5.0), PLAN)["a"])
    assert torch.equal(one.state().tensors["a"], other.state().tensors["a"])
    assert not torch.equal(one.state().tensors["a"], state.tensors["a"]), "a state that was taken does not change"
    assert torch.equal(broadcast["a"], torch.tensor([1.0, 2.0]))
