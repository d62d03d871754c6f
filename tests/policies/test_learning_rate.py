"""The learning rate by the place of a step in the run: values by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutlayer.policies.learning_rate import Shape, schedule


def rates(shape: Shape, *, warmup: float = 0.0, rounds: int = 2, steps: int = 5, peak: float = 1.0) -> list[float]:
    rate = schedule(shape, peak=peak, warmup=warmup, rounds=rounds, local_steps=steps)
    return [rate(round, step) for round in range(rounds) for step in range(steps)]


def test_constant_is_constant() -> None:
    assert rates("constant", peak=0.3) == [0.3] * 10


def test_linear_falls_by_the_same_amount_to_zero() -> None:
    assert rates("linear") == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    rate = schedule("linear", peak=1.0, warmup=0.0, rounds=2, local_steps=5)
    assert rate(2, 0) == 0.0, "zero is where the next step would be"


def test_cosine_by_hand() -> None:
    assert rates("cosine", rounds=1, steps=4, peak=2.0) == pytest.approx(
        [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]
    )
    rate = schedule("cosine", peak=2.0, warmup=0.0, rounds=1, local_steps=4)
    assert rate(1, 0) == pytest.approx(0.0)


def test_the_warm_up_rises_linearly_then_the_peak() -> None:
    assert rates("constant", warmup=0.4) == pytest.approx([0.25, 0.5, 0.75] + [1.0] * 7)
    assert rates("linear", warmup=0.2, steps=5, rounds=2) == pytest.approx(
        [0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )


def test_a_part_of_a_step_warms_up_a_whole_one() -> None:
    assert rates("constant", warmup=0.11) == pytest.approx([0.5] + [1.0] * 9)


@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
def test_a_run_of_warm_up_alone(shape: Shape) -> None:
    assert rates(shape, warmup=1.0, rounds=1, steps=4) == pytest.approx([0.25, 0.5, 0.75, 1.0])


@given(
    shape=st.sampled_from(["constant", "linear", "cosine"]),
    warmup=st.floats(0, 1),
    rounds=st.integers(1, 6),
    steps=st.integers(1, 6),
)
def test_rates_are_above_zero_rise_then_fall(shape: Shape, warmup: float, rounds: int, steps: int) -> None:
    values = rates(shape, warmup=warmup, rounds=rounds, steps=steps, peak=0.7)
    assert all(0 < value <= 0.7 for value in values)
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


def test_rounds_are_one_run() -> None:
    """The schedule does not begin anew in a round."""
    assert rates("cosine", rounds=4, steps=3) == rates("cosine", rounds=1, steps=12)
