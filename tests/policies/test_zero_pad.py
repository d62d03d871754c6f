"""Adapters of different ranks, filled up with zeros and averaged."""

from __future__ import annotations

import pytest
import torch

from cutlayer.policies.aggregate import Contribution, mean_per_block
from cutlayer.policies.zero_pad import MOST, zero_pad
from cutlayer.state import State
from factors import FULL, HEAD, PLAN, A, B, adapter_of, contribution, mean_product, product


def padded(part: Contribution) -> Contribution:
    """The same, filled up with zeros by hand."""
    missing = FULL - part.adapter[A].shape[0]
    filled = {
        A: torch.cat([part.adapter[A], torch.zeros(missing, 9)]),
        B: torch.cat([part.adapter[B], torch.zeros(7, missing)], dim=1),
        HEAD: part.adapter[HEAD],
    }
    return Contribution(filled, part.weights)


GIVEN = [contribution(1, 2.0), contribution(4, 3.0), contribution(2, 5.0)]


def test_it_is_the_mean_of_what_was_padded_by_hand() -> None:
    broadcast = adapter_of(FULL, 0)
    result = zero_pad(by_norm=False)(broadcast, GIVEN, PLAN)
    expected = mean_per_block()(broadcast, [padded(part) for part in GIVEN], PLAN)
    assert list(result) == list(broadcast)
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value)


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("owners_only", [True, False])
def test_one_device_of_full_rank_is_itself(by_norm: bool, owners_only: bool) -> None:
    alone = contribution(FULL, 3.0)
    result = zero_pad(by_norm=by_norm, owners_only=owners_only)(adapter_of(FULL, 0), [alone], PLAN)
    assert all(torch.equal(result[name], value) for name, value in alone.adapter.items())


def test_the_norm_of_the_product_weighs() -> None:
    norms = [float(product(part.adapter).norm()) for part in GIVEN]
    by_hand = [
        Contribution(padded(part).adapter, dict.fromkeys((A, B), norm)) for part, norm in zip(GIVEN, norms, strict=True)
    ]
    result = zero_pad(by_norm=True)(adapter_of(FULL, 0), GIVEN, PLAN)
    for name in (A, B):
        expected = mean_per_block()({name: adapter_of(FULL, 0)[name]}, by_hand, PLAN)[name]
        torch.testing.assert_close(result[name], expected)
    assert torch.equal(result[HEAD], mean_per_block()({HEAD: torch.zeros(3)}, GIVEN, PLAN)[HEAD]), "the head by samples"


def test_a_device_that_learnt_nothing_does_not_weigh_and_all_such_weigh_alike() -> None:
    still = contribution(2, 5.0)
    still.adapter[B].zero_()
    moved = contribution(FULL, 1.0)
    result = zero_pad(by_norm=True)(adapter_of(FULL, 0), [still, moved], PLAN)
    assert torch.equal(result[A], moved.adapter[A])
    other = contribution(2, 1.0, seed=9)
    other.adapter[B].zero_()
    result = zero_pad(by_norm=True)(adapter_of(FULL, 0), [still, other], PLAN)
    torch.testing.assert_close(result[A][:2], (still.adapter[A] + other.adapter[A]) / 2)


def test_nobody_weighs_more_than_four_times_the_median() -> None:
    """One whose factors are a thousand times as large as they are decides no more than one whose norm is the bound."""
    one, two, other = contribution(FULL, 1.0, seed=1), contribution(FULL, 1.0, seed=2), contribution(FULL, 1.0, seed=3)
    loud = Contribution({**other.adapter, B: 1e6 * other.adapter[B]}, other.weights)
    norms = sorted(float(product(part.adapter).norm()) for part in (one, two))
    assert norms[1] < MOST * norms[0], "nobody else is held back"
    result = zero_pad(by_norm=True)(adapter_of(FULL, 0), [one, two, loud], PLAN)
    weights = [*(float(product(part.adapter).norm()) for part in (one, two)), MOST * norms[1]]
    by_hand = sum(
        weight / sum(weights) * part.adapter[A].double() for weight, part in zip(weights, (one, two, loud), strict=True)
    )
    torch.testing.assert_close(result[A], torch.as_tensor(by_hand).float())
    assert weights[2] / sum(weights) < 0.8


def test_what_counts_with_less_than_the_bound_counts_with_its_norm() -> None:
    """The bound changes nothing of a round in which nobody reaches it, to the last bit."""
    one, two = contribution(FULL, 1.0, seed=1), contribution(FULL, 1.0, seed=2)
    norms = [float(product(part.adapter).norm()) for part in (one, two)]
    assert max(norms) < MOST * min(norms)
    broadcast = {A: adapter_of(FULL, 0)[A], B: adapter_of(FULL, 0)[B]}
    parts = [
        Contribution(part.adapter, dict.fromkeys((A, B), norm)) for part, norm in zip((one, two), norms, strict=True)
    ]
    expected = mean_per_block()(broadcast, parts, PLAN)
    result = zero_pad(by_norm=True)(adapter_of(FULL, 0), [one, two], PLAN)
    torch.testing.assert_close(result[A], expected[A])


def test_only_those_who_have_a_row_count_there() -> None:
    broadcast = adapter_of(FULL, 0)
    one, two = contribution(1, 2.0), contribution(3, 6.0)
    result = zero_pad(by_norm=False, owners_only=True)(broadcast, [one, two], PLAN)
    torch.testing.assert_close(result[A][:1], 0.25 * one.adapter[A] + 0.75 * two.adapter[A][:1])
    torch.testing.assert_close(result[B][:, :1], 0.25 * one.adapter[B] + 0.75 * two.adapter[B][:, :1])
    assert torch.equal(result[A][1:3], two.adapter[A][1:]), "not diluted"
    assert torch.equal(result[B][:, 1:3], two.adapter[B][:, 1:])
    assert torch.equal(result[A][3:], broadcast[A][3:]), "nobody has this row"
    assert torch.equal(result[B][:, 3:], broadcast[B][:, 3:])
    diluted = zero_pad(by_norm=False)(broadcast, [one, two], PLAN)
    torch.testing.assert_close(diluted[A][1:3], 0.75 * two.adapter[A][1:])
    assert torch.equal(diluted[A][3:], torch.zeros(1, 9))


def test_it_is_the_mean_of_the_products_for_one_device_or_equal_a_only() -> None:
    """Invariant 5 of the founding papers: A and B averaged separately are biased."""
    broadcast, pad = adapter_of(FULL, 0), zero_pad(by_norm=False)
    alone = [contribution(FULL, 2.0)]
    torch.testing.assert_close(product(pad(broadcast, alone, PLAN)), mean_product(alone))
    different = [contribution(FULL, 1.0, seed=1), contribution(FULL, 2.0, seed=2)]
    assert float((product(pad(broadcast, different, PLAN)) - mean_product(different)).norm()) > 1.0
    different[1].adapter[A].copy_(different[0].adapter[A])
    torch.testing.assert_close(product(pad(broadcast, different, PLAN)), mean_product(different), rtol=1e-5, atol=1e-6)


def test_what_nobody_trained_stays() -> None:
    broadcast = adapter_of(FULL, 0)
    result = zero_pad()(broadcast, [], PLAN)
    assert all(result[name] is value for name, value in broadcast.items())
    assert zero_pad().mixed_ranks
    assert zero_pad().state() == State()
    zero_pad().load(State())
