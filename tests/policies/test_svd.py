"""The mean of the products, factored anew."""

from __future__ import annotations

import pytest
import torch

from cutlayer.model.adapter import at_rank
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.svd import svd
from cutlayer.state import State
from factors import FULL, HEAD, PLAN, A, B, adapter_of, contribution, mean_product, product


def test_at_full_rank_it_is_the_dense_weighted_sum() -> None:
    """Ranks 1 + 3 = 4 fit; and so does anything at the rank of the smaller side."""
    given = [contribution(1, 2.0), contribution(3, 6.0)]
    torch.testing.assert_close(
        product(svd()(adapter_of(FULL, 0), given, PLAN)), mean_product(given), rtol=1e-6, atol=1e-6
    )
    many = [contribution(4, weight, seed=int(weight)) for weight in (1.0, 2.0, 5.0)]
    torch.testing.assert_close(product(svd()(adapter_of(7, 0), many, PLAN)), mean_product(many), rtol=1e-6, atol=1e-6)


def test_it_is_computed_in_fp64() -> None:
    given = [contribution(1, 1.0), contribution(3, 6.0)]  # 1 / 7 is no number of fp32
    broadcast = {name: value.double() for name, value in adapter_of(FULL, 0).items()}
    torch.testing.assert_close(product(svd()(broadcast, given, PLAN)), mean_product(given), rtol=1e-12, atol=1e-12)


def test_what_a_device_is_sent_is_the_svd_of_its_rank() -> None:
    given = [contribution(4, 1.0, seed=1), contribution(2, 3.0), contribution(4, 5.0, seed=2)]
    result = svd()(adapter_of(FULL, 0), given, PLAN)
    u, s, v = torch.linalg.svd(mean_product(given), full_matrices=False)
    for rank in range(1, FULL + 1):
        sent = {name: at_rank(name, value, rank) for name, value in result.items()}
        torch.testing.assert_close(product(sent), u[:, :rank] * s[:rank] @ v[:rank], rtol=1e-5, atol=1e-5)


def test_one_device_keeps_its_product() -> None:
    [alone] = given = [contribution(FULL, 3.0)]
    torch.testing.assert_close(product(svd()(adapter_of(FULL, 0), given, PLAN)), product(alone.adapter))


def test_rows_beyond_the_rank_of_the_sum_can_still_learn() -> None:
    broadcast = adapter_of(FULL, 0)
    result = svd()(broadcast, [contribution(2, 1.0)], PLAN)
    assert torch.equal(result[B][:, 2:], torch.zeros(7, 2))
    assert torch.equal(result[A][2:], broadcast[A][2:])
    torch.testing.assert_close(product(result), product(contribution(2, 1.0).adapter), rtol=1e-6, atol=1e-6)


def test_the_head_is_averaged_and_what_nobody_trained_stays() -> None:
    broadcast = {**adapter_of(FULL, 0), "y.q.lora_A.weight": torch.ones(2, 3), "y.q.lora_B.weight": torch.ones(3, 2)}
    given = [contribution(1, 2.0), contribution(3, 6.0)]
    result = svd()(broadcast, given, PLAN)
    assert list(result) == list(broadcast)
    assert torch.equal(result[HEAD], mean_per_block()({HEAD: broadcast[HEAD]}, given, PLAN)[HEAD])
    assert result["y.q.lora_A.weight"] is broadcast["y.q.lora_A.weight"]
    assert result["y.q.lora_B.weight"] is broadcast["y.q.lora_B.weight"]
    assert result[A].dtype is result[B].dtype is torch.float32


def test_it_changes_nothing_that_it_is_given() -> None:
    broadcast, given = adapter_of(FULL, 0), [contribution(2, 1.0)]
    svd()(broadcast, given, PLAN)
    assert all(torch.equal(value, adapter_of(FULL, 0)[name]) for name, value in broadcast.items())
    assert all(torch.equal(value, adapter_of(2, 2)[name]) for name, value in given[0].adapter.items())


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_the_devices_hardly_matters(seed: int) -> None:
    given = [contribution(4, 1.0, seed=seed), contribution(2, 3.0), contribution(1, 2.0)]
    one, other = svd()(adapter_of(FULL, 0), given, PLAN), svd()(adapter_of(FULL, 0), given[::-1], PLAN)
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-5)


def test_it_carries_nothing() -> None:
    assert svd().mixed_ranks
    assert svd().state() == State()
    svd().load(State())
