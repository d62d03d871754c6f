"""Stack-merge: the stack is the mean of the products; what trains next is fresh."""

from __future__ import annotations

import math

import torch

from cutlayer.policies.aggregate import Contribution, mean_per_block
from cutlayer.policies.stack import begin_anew, stack
from cutlayer.policies.svd import svd
from factors import FULL, HEAD, PLAN, A, B, adapter_of, contribution, mean_product, product

GIVEN = [contribution(1, 2.0), contribution(4, 3.0), contribution(2, 5.0)]


def test_the_product_of_the_stack_is_the_mean_of_the_products() -> None:
    result = stack(GIVEN)
    assert result.keys() == {A, B}, "the head is not stacked"
    assert result[A].shape == (7, 9)
    assert result[B].shape == (7, 7)
    torch.testing.assert_close(product(result), mean_product(GIVEN), rtol=1e-6, atol=1e-6)


def test_the_weight_is_in_a_alone() -> None:
    result = stack(GIVEN)
    assert torch.equal(result[B], torch.cat([part.adapter[B] for part in GIVEN], dim=1))
    torch.testing.assert_close(result[A][:1], 0.2 * GIVEN[0].adapter[A])


def test_it_is_flexlora_at_full_rank() -> None:
    """Invariant 5 of the founding papers."""
    torch.testing.assert_close(
        product(svd()(adapter_of(7, 0), GIVEN, PLAN)), product(stack(GIVEN)), rtol=1e-5, atol=1e-5
    )


def test_over_those_who_trained_a_module() -> None:
    other = {name.replace("x.", "y."): value for name, value in adapter_of(2, 5).items() if name != HEAD}
    partly = Contribution({**adapter_of(3, 8), **other}, {A: 0.0, B: 0.0, HEAD: 1.0, **dict.fromkeys(other, 4.0)})
    result = stack([*GIVEN, partly])
    assert torch.equal(result[A], stack(GIVEN)[A]), "a weight of 0 is nobody"
    torch.testing.assert_close(result["y.q.lora_A.weight"], other["y.q.lora_A.weight"])
    assert stack([]) == {}


def test_a_stack_does_not_change_with_what_it_was_made_of() -> None:
    """The server's contributions are its own tensors, which train on."""
    alone = contribution(2, 1.0)
    result = stack([alone])
    before = {name: value.clone() for name, value in result.items()}
    for value in alone.adapter.values():
        value.add_(1)
    assert all(torch.equal(result[name], value) for name, value in before.items())


def test_fresh_factors() -> None:
    aggregate, broadcast = begin_anew(3), adapter_of(FULL, 0)
    one, two = aggregate(broadcast, GIVEN, PLAN), aggregate(broadcast, GIVEN, PLAN)
    for result in (one, two):
        assert list(result) == list(broadcast)
        assert torch.equal(result[B], torch.zeros(7, FULL))
        assert 0 < float(result[A].abs().max()) <= 1 / math.sqrt(9)
        assert torch.equal(result[HEAD], mean_per_block()({HEAD: broadcast[HEAD]}, GIVEN, PLAN)[HEAD])
    assert not torch.equal(one[A], two[A]), "another draw each round"
    assert torch.equal(begin_anew(3)(broadcast, [], PLAN)[A], one[A])
    assert not torch.equal(begin_anew(4)(broadcast, [], PLAN)[A], one[A])
    assert aggregate.mixed_ranks


def test_it_goes_on_from_its_state() -> None:
    aggregate, resumed, broadcast = begin_anew(3), begin_anew(3), adapter_of(FULL, 0)
    aggregate(broadcast, GIVEN, PLAN)
    resumed.load(aggregate.state())
    assert torch.equal(resumed(broadcast, GIVEN, PLAN)[A], aggregate(broadcast, GIVEN, PLAN)[A])
