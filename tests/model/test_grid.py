"""On its grid, a tensor can be moved and moved back without a trace."""

from __future__ import annotations

import pytest
import torch

from cutlayer.model.grid import Grid


def weights(scale: float, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(10_000, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize(
    ("largest", "reach"),
    [(0.0, 1.0), (1e-30, 1.0), (0.3, 1.0), (0.5, 2.0), (0.75, 2.0), (1.0, 4.0), (5.0, 16.0), (300.0, 1024.0)],
)
def test_a_grid_reaches_beyond_twice_the_largest_and_to_one(largest: float, reach: float) -> None:
    grid = Grid.of(torch.tensor([-largest, largest / 3]))
    assert grid.reach == reach
    assert grid.unit == reach / 2**24


def test_a_tensor_of_nothing_has_a_grid() -> None:
    assert Grid.of(torch.zeros(0)).reach == 1.0


@pytest.mark.parametrize("scale", [0.02, 1.0, 40.0])
def test_snapping_rounds_once_by_half_a_unit_at_most(scale: float) -> None:
    before = weights(scale)
    grid, after = Grid.of(before), before.clone()
    grid.snap(after)
    assert (after.double() - before.double()).abs().max() <= grid.unit / 2
    assert (after.double() / grid.unit == (after.double() / grid.unit).round()).all()
    again = after.clone()
    grid.snap(again)
    assert torch.equal(again, after)


def test_adding_multiples_rounds_nothing_in_any_order() -> None:
    start = weights(0.1)
    grid = Grid.of(start)
    grid.snap(start)
    moves = [grid.steps(weights(0.01 * k, seed=k)) for k in range(1, 5)]
    one, other = start.clone(), start.clone()
    for move in moves:
        one += move * grid.unit
    for move in reversed(moves):
        other += move * grid.unit
    assert grid.holds(one)
    assert torch.equal(one, other)
    assert not torch.equal(one, start)
    for move in moves:
        one -= move * grid.unit
    assert torch.equal(one, start)


def test_a_grid_holds_what_leaves_room_and_is_finite() -> None:
    grid = Grid.of(torch.tensor([0.4]))
    assert grid.holds(torch.tensor([0.75, -0.2]))
    assert not grid.holds(torch.tensor([0.1, -0.7500001]))
    assert not grid.holds(torch.tensor([0.1, float("nan")]))
