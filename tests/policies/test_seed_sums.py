"""Sums after a round: shares of what devices add."""

from __future__ import annotations

import pytest
import torch

from cutlayer.policies.seed_sums import by_share, gathered

SUMS = torch.tensor([1.0, 0.1, 0.0, -3e-7])
OWN = torch.tensor([1e-8, 0.3, -2e-5, 3e-7])
OTHER = torch.tensor([0.5, 0.0, 1e-5, 7e-3])


def test_shares_are_parts_of_one() -> None:
    assert by_share([3.0, 1.0]) == [0.75, 0.25]
    assert by_share([17.0]) == [1.0]


def test_one_device_alone_adds_its_own_sums_to_the_bit() -> None:
    """fp32 numbers of any size: adding in fp64 and rounding once is adding in fp32."""
    generator = torch.Generator().manual_seed(0)
    sizes = 10.0 ** torch.randint(-12, 6, (2, 100_000), generator=generator)
    sums, own = torch.randn(2, 100_000, generator=generator) * sizes
    assert torch.equal(gathered(sums, [(1.0, own)]), sums + own)


def test_devices_add_by_their_weights() -> None:
    expected = SUMS.double() + 0.75 * OWN.double() + 0.25 * OTHER.double()
    assert torch.equal(gathered(SUMS, [(0.75, OWN), (0.25, OTHER)]), expected.float())


def test_devices_that_agree_are_as_one() -> None:
    assert torch.equal(gathered(SUMS, [(0.5, OWN), (0.25, OWN), (0.25, OWN)]), gathered(SUMS, [(1.0, OWN)]))


def test_nobody_adds_nothing() -> None:
    assert torch.equal(gathered(SUMS, []), SUMS)


@pytest.mark.parametrize("weights", [[2.0, 2.0, 4.0], [1.0, 0.0]])
def test_shares_add_up(weights: list[float]) -> None:
    assert sum(by_share(weights)) == 1.0
