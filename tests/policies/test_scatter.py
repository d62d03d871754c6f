"""Averaging over owners: every entry by those who have it; nothing pruned is the plain mean, bit for bit."""

from __future__ import annotations

import torch

from cutlayer.model.structure import IMPORTANCE, KEPT
from cutlayer.policies.aggregate import Contribution, mean_per_block
from cutlayer.policies.scatter import scatter
from cutlayer.state import State
from cutlayer.types import Adapter, Kept
from factors import PLAN

A, B, HEAD = "m.0.q.lora_A.weight", "m.0.q.lora_B.weight", "classifier.weight"


def tensors(seed: int, rank: int = 3, rows: int = 4) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    shapes = {A: (rank, 5), B: (rows, rank), HEAD: (2, 5)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def contribution(adapter: Adapter, weight: float, **more: object) -> Contribution:
    return Contribution(adapter, dict.fromkeys(adapter, weight), **more)  # type: ignore[arg-type]


def test_equal_ranks_and_nothing_pruned_is_the_mean_bit_for_bit() -> None:
    """At weights whose shares are no round numbers."""
    for weights in ((7.0, 11.0, 3.0), (1.0, 1.0, 1.0), (29.0, 31.0, 37.0)):
        parts = [contribution(tensors(seed), weight) for seed, weight in enumerate(weights)]
        for weighted in (True, False):
            ours = scatter(weighted=weighted)(tensors(9), parts, PLAN)
            plain = mean_per_block(weighted=weighted)(tensors(9), parts, PLAN)
            assert all(torch.equal(ours[name], plain[name]) for name in plain)


def test_rows_of_a_rank_are_averaged_over_those_who_have_them() -> None:
    broadcast, low, high = tensors(0), tensors(1, rank=1), tensors(2, rank=2)
    mean = scatter()(broadcast, [contribution(low, 1.0), contribution(high, 3.0)], PLAN)
    torch.testing.assert_close(mean[A][0], (low[A][0] + 3 * high[A][0]) / 4)
    assert torch.equal(mean[A][1], high[A][1])
    assert torch.equal(mean[A][2], broadcast[A][2])
    torch.testing.assert_close(mean[B][:, 0], (low[B][:, 0] + 3 * high[B][:, 0]) / 4)
    assert torch.equal(mean[B][:, 1], high[B][:, 1])
    assert torch.equal(mean[B][:, 2], broadcast[B][:, 2])
    torch.testing.assert_close(mean[HEAD], (low[HEAD] + 3 * high[HEAD]) / 4)


def test_rows_that_were_removed_count_for_nothing() -> None:
    """Rows of B go back to where they came from: 1 and 3 of one device, 0 and 3 of the other."""
    broadcast, one, other = tensors(0), tensors(1, rows=2), tensors(2, rows=2)
    parts = [
        contribution(one, 2.0, where={B: (0, torch.tensor([1, 3]))}),
        contribution(other, 6.0, where={B: (0, torch.tensor([0, 3]))}),
    ]
    mean = scatter()(broadcast, parts, PLAN)
    assert torch.equal(mean[B][0], other[B][0])
    assert torch.equal(mean[B][1], one[B][0])
    assert torch.equal(mean[B][2], broadcast[B][2])
    torch.testing.assert_close(mean[B][3], 0.25 * one[B][1] + 0.75 * other[B][1])
    torch.testing.assert_close(mean[A], 0.25 * one[A] + 0.75 * other[A])


def test_columns_are_scattered_along_their_axis() -> None:
    broadcast = tensors(0)
    narrow = tensors(1) | {A: torch.ones(3, 2)}
    mean = scatter()(broadcast, [contribution(narrow, 1.0, where={A: (1, torch.tensor([0, 4]))})], PLAN)
    assert torch.equal(mean[A][:, [0, 4]], torch.ones(3, 2))
    assert torch.equal(mean[A][:, 1:4], broadcast[A][:, 1:4])


def test_a_weight_of_zero_owns_nothing() -> None:
    broadcast = tensors(0)
    assert torch.equal(scatter()(broadcast, [contribution(tensors(1), 0.0)], PLAN)[A], broadcast[A])


def pruned(heads: tuple[int, ...], scores: list[float], weight: float) -> Contribution:
    importance = {"0.heads": torch.tensor(scores), "0.channels": torch.tensor([1.0, 2.0])}
    kept = {"0.heads": torch.tensor(heads), "0.channels": torch.tensor([0, 1])}
    facts = {f"{IMPORTANCE}{name}": value for name, value in importance.items()}
    facts |= {f"{KEPT}{name}": value.int() for name, value in kept.items()}
    return contribution(tensors(1), weight, facts=facts)


def test_the_structure_is_what_matters_to_most() -> None:
    """As many as they have on average, rounded up; those with the highest weighted mean."""
    aggregate = scatter()
    assert aggregate.structure() is None
    aggregate(tensors(0), [contribution(tensors(1), 1.0)], PLAN)
    assert aggregate.structure() is None
    aggregate(tensors(0), [pruned((0, 1), [0.9, 0.5, 0.0, 0.0], 1.0), pruned((2, 3), [0.0, 0.0, 0.4, 0.2], 3.0)], PLAN)
    assert aggregate.structure() == Kept(((0, 2),), ((0, 1),))  # 0.225, 0.125, 0.3, 0.15
    aggregate(
        tensors(0), [pruned((0, 1, 2), [0.9, 0.5, 0.1, 0.0], 1.0), pruned((2, 3), [0.0, 0.0, 0.4, 0.2], 3.0)], PLAN
    )
    assert aggregate.structure() == Kept(((0, 2, 3),), ((0, 1),))  # 2.25 heads
    again = scatter()
    again.load(aggregate.state())
    assert again.structure() == aggregate.structure()
    assert scatter().state() == State()


def test_unweighted_everyone_counts_alike() -> None:
    aggregate = scatter(weighted=False)
    aggregate(tensors(0), [pruned((0, 1), [0.9, 0.5, 0.0, 0.0], 1.0), pruned((2, 3), [0.0, 0.0, 0.4, 0.2], 3.0)], PLAN)
    assert aggregate.structure() == Kept(((0, 1),), ((0, 1),))
