"""The label mix of a merged batch, by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.label_mix import label_distributions, label_kl
from cutlayer.policies.plan import Situation
from cutlayer.testing.playground import FlatCosts, fleet_of
from cutlayer.types import History


def situation_of(**label_counts: tuple[int, ...]) -> Situation:
    costs: Any = FlatCosts(3)
    counts = {name.replace("_", "-"): value for name, value in label_counts.items()}
    return Situation(fleet_of(len(counts)), costs, History(), 10, 4, 2, label_counts=counts)


def test_shares_are_of_each_device() -> None:
    situation = situation_of(device_0=(3, 1), device_1=(0, 8))
    assert label_distributions(situation, ["device-1", "device-0"]).tolist() == [[0.0, 1.0], [0.75, 0.25]]


def test_a_device_whose_labels_nobody_knows() -> None:
    with pytest.raises(ConfigError, match=r"got none of device-7: only classification has classes. Set method.select"):
        label_distributions(situation_of(device_0=(3, 1)), ["device-0", "device-7"])


def test_kl_by_hand() -> None:
    shares_NC, fleet_C = np.array([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]]), np.array([0.25, 0.375, 0.375])
    sizes_PN = np.array([[1.0, 1.0], [2.0, 0.0], [1.0, 3.0]])
    together = [(0.5 / 4, 0.25), ((0.5 + 0.75) / 4, 0.375), (2.25 / 4, 0.375)]
    by_hand = [
        0.0,
        0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.375),
        sum(phi * math.log(phi / phi_0) for phi, phi_0 in [(together[0][0], 0.25), together[1], together[2]]),
    ]
    assert label_kl(sizes_PN, shares_NC, fleet_C).tolist() == pytest.approx(by_hand, abs=1e-12)


def test_a_class_that_nobody_has() -> None:
    shares_NC = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert label_kl(np.ones((1, 2)), shares_NC, np.array([1.0, 0.0])).tolist() == [0.0]
