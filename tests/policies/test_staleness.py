"""Updates of unequal age."""

from __future__ import annotations

import pytest
import torch

from cutlayer.errors import ConfigError
from cutlayer.policies.aggregate import Contribution, mean_per_block
from cutlayer.policies.staleness import staleness_weighted
from cutlayer.types import Adapter, RoundPlan


def parts(*rounds: int) -> list[Contribution]:
    generator = torch.Generator().manual_seed(3)
    return [
        Contribution(
            {name: torch.randn(3, 5, generator=generator) for name in ("a", "b")},
            {"a": 2.0 + number, "b": 7.0 - number},
            device=f"device-{number}",
            round=round,
        )
        for number, round in enumerate(rounds)
    ]


def broadcast() -> Adapter:
    return {"a": torch.full((3, 5), 0.3), "b": torch.full((3, 5), -0.7), "nobody's": torch.ones(2)}


def test_neutral_is_the_mean_bit_for_bit() -> None:
    """The ages change nothing."""
    given = parts(4, 2, 0)
    plain = mean_per_block()(broadcast(), given, RoundPlan(4))
    found = staleness_weighted(mixing=1.0, power=0.0)(broadcast(), given, RoundPlan(4))
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_staleness_0_is_synchronous() -> None:
    """Updates of this round are a mean, however fast age would count."""
    given = parts(4, 4, 4)
    plain = mean_per_block()(broadcast(), given, RoundPlan(4))
    found = staleness_weighted(mixing=1.0, power=3.0)(broadcast(), given, RoundPlan(4))
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_the_formula() -> None:
    given, alpha, a = parts(5, 3, 1), 0.6, 0.5
    shares = [(age + 1) ** -a for age in (0, 2, 4)]
    mixing = alpha * (2 + 1) ** -a  # the mean age is 2
    found = staleness_weighted(mixing=alpha, power=a)(broadcast(), given, RoundPlan(5))
    for name in ("a", "b"):
        weights = [share * part.weights[name] for share, part in zip(shares, given, strict=True)]
        mean = sum(w * part.adapter[name].double() for w, part in zip(weights, given, strict=True)) / sum(weights)
        expected = (1 - mixing) * broadcast()[name].double() + mixing * mean
        torch.testing.assert_close(found[name].double(), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found["nobody's"], torch.ones(2))


@pytest.mark.parametrize(
    ("mixing", "power", "option"), [(0.0, 0.5, "alpha"), (1.1, 0.5, "alpha"), (0.6, -1.0, "power")]
)
def test_what_it_cannot_be(mixing: float, power: float, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{option}: expected "):
        staleness_weighted(mixing=mixing, power=power)
