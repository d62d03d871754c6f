"""Sums of products as stacks, and the nearest product of lower rank, against dense matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cutlayer.model.low_rank import Term, factor_names, stacked, truncated

SHAPES = [(12, 20), (20, 12), (6, 6)]


def terms(rows: int, columns: int, *ranks: int) -> list[Term]:
    generator = torch.Generator().manual_seed(7)
    return [
        (
            0.25 * (index + 1),
            torch.randn(rows, rank, generator=generator).double(),
            torch.randn(rank, columns, generator=generator).double(),
        )
        for index, rank in enumerate(ranks)
    ]


def dense(parts: list[Term]) -> Tensor:
    return sum((weight * b @ a for weight, b, a in parts), torch.zeros(()))


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_stack_is_the_weighted_sum(rows: int, columns: int) -> None:
    parts = terms(rows, columns, 1, 4, 2)
    b_MR, a_RN = stacked(parts)
    assert b_MR.shape == (rows, 7)
    assert a_RN.shape == (7, columns)
    torch.testing.assert_close(b_MR @ a_RN, dense(parts))


def test_the_weight_is_put_in_once() -> None:
    [(weight, b, a)] = terms(3, 5, 2)
    b_MR, a_RN = stacked([(weight, b, a)])
    assert torch.equal(b_MR, b)
    assert torch.equal(a_RN, weight * a)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("ranks", [(2, 3), (8, 8, 8)])
def test_it_is_the_truncated_svd_of_the_dense_matrix(rows: int, columns: int, ranks: tuple[int, ...]) -> None:
    """Also where the stack is wider than the matrix."""
    parts = terms(rows, columns, *ranks)
    u, s, v = torch.linalg.svd(dense(parts), full_matrices=False)
    for rank in range(1, min(rows, columns, sum(ranks)) + 1):
        b, a = truncated(*stacked(parts), rank)
        assert b.shape == (rows, rank)
        assert a.shape == (rank, columns)
        torch.testing.assert_close(b @ a, u[:, :rank] * s[:rank] @ v[:rank])
        torch.testing.assert_close(b.norm(dim=0), s[:rank])
        torch.testing.assert_close(a @ a.T, torch.eye(rank).double(), atol=1e-12, rtol=0)


def test_the_first_of_many_are_those_of_few() -> None:
    """The factors that a device of a lower rank is sent are the SVD of that rank."""
    b, a = truncated(*stacked(terms(12, 20, 3, 4)), 6)
    for rank in range(1, 6):
        few_b, few_a = truncated(*stacked(terms(12, 20, 3, 4)), rank)
        assert torch.equal(b[:, :rank], few_b)
        assert torch.equal(a[:rank], few_a)


def test_equal_products_give_equal_factors() -> None:
    """Signs are fixed: negating both factors, or mixing them, changes nothing."""
    b, a = stacked(terms(12, 20, 4))
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(4, 4, generator=generator).double()
    expected = truncated(b, a, 4)
    for other in ((-b, -a), (b @ mix, torch.linalg.inv(mix) @ a), (b.flip(1), a.flip(0))):
        for got, want in zip(truncated(*other, 4), expected, strict=True):
            torch.testing.assert_close(got, want)
    largest = expected[1].gather(1, expected[1].abs().argmax(dim=1, keepdim=True))
    assert bool((largest > 0).all())


def test_no_more_than_the_product_can_have() -> None:
    b, a = truncated(*stacked(terms(12, 20, 2)), 8)
    assert b.shape == (12, 2)
    assert a.shape == (2, 20)


def test_a_product_of_zero_stays_zero() -> None:
    b, a = truncated(torch.zeros(6, 3), torch.zeros(3, 5), 2)
    assert torch.equal(b @ a, torch.zeros(6, 5).double())
    assert bool(a.isfinite().all())


def test_names_of_the_factors() -> None:
    names = ["x.lora_A.weight", "x.lora_B.weight", "classifier.weight", "y.lora_B.weight", "y.lora_A.weight"]
    assert factor_names(names) == [("x.lora_B.weight", "x.lora_A.weight"), ("y.lora_B.weight", "y.lora_A.weight")]
