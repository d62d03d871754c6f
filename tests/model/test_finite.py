from __future__ import annotations

import math

import pytest
import torch

from cutlayer.model.finite import finite, within


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_one_number_among_many_is_seen(dtype: torch.dtype) -> None:
    plain = torch.linspace(-3, 3, 1001, dtype=torch.float64).to(dtype)
    assert finite(plain)
    assert within(plain, 3.0)
    assert not within(plain, 2.5)
    for wrong in (math.nan, math.inf, -math.inf):
        for place in (0, 500, 1000):
            changed = plain.clone()
            changed[place] = wrong
            assert not finite(changed)
            assert not within(changed, 1e6)


def test_the_ends_count_and_nothing_is_no_number() -> None:
    assert within(torch.tensor([-2.0, 2.0]), 2.0)
    assert not within(torch.tensor([-2.1, 2.0]), 2.0)
    assert within(torch.empty(0), 0.0)
    assert finite(torch.empty(0, 3))
