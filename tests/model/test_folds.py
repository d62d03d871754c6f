"""Folds: their names, and the one adapter that stands for all of them."""

from __future__ import annotations

import pytest
import torch

from cutlayer.model.folds import by_number, numbered, taken_back
from cutlayer.types import Adapter

A, B, HEAD = "x.lora_A.weight", "x.lora_B.weight", "head.weight"


def factors(rank: int, seed: int, *, outputs: int = 6, inputs: int = 9) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    return {A: torch.randn(rank, inputs, generator=generator), B: torch.randn(outputs, rank, generator=generator)}


def all_folds(*ranks: int) -> Adapter:
    folds: Adapter = {}
    for number, rank in enumerate(ranks):
        folds |= numbered(number, factors(rank, number))
    return folds


def test_stacks_come_back_by_number_and_not_by_text() -> None:
    folds = dict(sorted(all_folds(*[1] * 12).items()))
    assert [number for number, _ in by_number(folds)] == list(range(12))
    assert all(torch.equal(stack[A], factors(1, number)[A]) for number, stack in by_number(folds))
    assert list(numbered(7, {"a/b": torch.zeros(1)})) == ["7/a/b"]
    assert by_number({"7/a/b": torch.zeros(1)})[0][1].keys() == {"a/b"}, "a name may hold a slash"


@pytest.mark.parametrize(("ranks", "expected"), [((), 2), ((1,), 3), ((3, 1), 6), ((3, 4, 5), 6)])
def test_it_is_the_sum_of_everything(ranks: tuple[int, ...], expected: int) -> None:
    """The rank of a 6 x 9 module is at most 6."""
    current = {**factors(2, 99), HEAD: torch.randn(4)}
    result = taken_back(current, all_folds(*ranks))
    dense = sum(stack[B] @ stack[A] for _, stack in by_number(all_folds(*ranks))) + current[B] @ current[A]
    assert result[A].shape[0] == result[B].shape[1] == expected
    assert result[A].dtype is result[B].dtype is torch.float32
    torch.testing.assert_close(result[B] @ result[A], dense, rtol=1e-4, atol=1e-4)
    assert result[HEAD] is current[HEAD]


def test_all_modules_have_one_rank() -> None:
    """That of the largest module: an adapter's rank is that of its block. Smaller modules are filled with zeros."""
    small = {name.replace("x.", "y."): value for name, value in factors(5, 3, outputs=2).items()}
    current = {**factors(5, 1), **small}
    result = taken_back(current, numbered(0, current))
    assert result[A].shape == (6, 9)
    assert result["y.lora_A.weight"].shape == (6, 9)
    assert result["y.lora_B.weight"].shape == (2, 6)
    for b, a in ((B, A), ("y.lora_B.weight", "y.lora_A.weight")):
        torch.testing.assert_close(result[b] @ result[a], 2 * current[b] @ current[a], rtol=1e-4, atol=1e-4)


def test_without_folds_it_is_the_adapter() -> None:
    current = factors(2, 1)
    assert taken_back(current, {}) == current
