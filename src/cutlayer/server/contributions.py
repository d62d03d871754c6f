"""A row for each device and round that says how far it has moved the adapter, whatever is made of it.

norm      of what the device changed, over all tensors that it trained
times     that, in medians of the round's devices
cosine    between its change and the sum of the others'; 0 where there is nobody else
share     of what the round has trained, by the weight that counts
outlier   whether it is far from the others, of whom there must be two at least
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.robust import change, norm, places_of
from cutlayer.types import Adapter, RoundPlan

FAR = 3.0
"""Medians, from which on a norm is an outlier's."""
AGAINST = -0.5
"""The cosine below which a change goes against the others'."""
HEAVIEST = 2.0
"""Times what the others' samples weigh, the most that a device's do where the server cannot count."""
FEWEST = 3
"""Devices of which one can be an outlier."""

_log = logging.getLogger("cutlayer.contributions")
Began = Callable[[Contribution], Adapter]
"""A contribution -> the whole tensors from which its device began, by name."""


def table_of(contributions: Sequence[Contribution], began: Began, round: int) -> list[dict[str, Any]]:
    """The rows of a round, in the order of its contributions; of what several devices trained together there is none.

    Args:
      contributions: As devices sent them.
      began: From what each began.
      round: The round.
    """
    own = [part for part in contributions if part.device and part.adapter]
    before = [began(part) for part in own]
    changes = [change(values, part) for values, part in zip(before, own, strict=True)]
    norms = [norm(one) for one in changes]
    total: Adapter = {}
    for part, values, one in zip(own, before, changes, strict=True):
        for name, value in one.items():
            if name not in total:
                total[name] = torch.zeros_like(values[name], dtype=torch.float32)
            total[name][places_of(part, name)] += value
    weights = [max(part.weights.values(), default=0.0) for part in own]
    middle, weight = median_low(norms or [0.0]), math.fsum(weights)
    rows = []
    for part, one, length, heavy in zip(own, changes, norms, weights, strict=True):
        cosine = _cosine(part, one, total, length) if len(own) > 1 else 0.0
        times = length / middle if middle else 1.0
        rows.append(
            {
                "round": round,
                "device": part.device,
                "norm": length,
                "times": times,
                "cosine": cosine,
                "share": heavy / weight if weight else 0.0,
                "outlier": len(own) >= FEWEST and (times > FAR or cosine < AGAINST),
            }
        )
    return rows


def but_for(contributions: Sequence[Contribution], devices: Collection[str]) -> list[Contribution]:
    """The contributions without those of some devices.

    Example:
      >>> from cutlayer import Contribution
      >>> [part.device for part in but_for([Contribution({}, {}, name) for name in "abc"], {"b"})]
      ['a', 'c']
    """
    return [part for part in contributions if part.device not in devices]


def fair(weights: Mapping[str, float], samples: Mapping[str, int]) -> dict[str, float]:
    """The weights of devices whose target tokens the server does not see: for a sample at most twice what the others'
    weigh.

    A device that trains alone may say that each of its samples has as many tokens as a text may have.

    Args:
      weights: By device, as it says.
      samples: By device, of which there cannot be more than its plan has.

    Example:
      >>> fair({"a": 10.0, "b": 12.0, "c": 500.0}, {"a": 2, "b": 2, "c": 4})
      {'a': 10.0, 'b': 12.0, 'c': 48.0}
    """
    each = {device: weight / samples[device] for device, weight in weights.items() if samples.get(device)}
    if len(each) < 2:
        return dict(weights)
    most = HEAVIEST * median_low(each.values())
    return {device: min(weight, most * samples.get(device, 0)) for device, weight in weights.items()}


def fairly_weighed(
    contributions: Sequence[Contribution], plan: RoundPlan, samples: Mapping[str, int]
) -> list[Contribution]:
    """Contributions of devices that have the labels with `fair` weights; others' were counted by the server.

    Args:
      contributions: Of a round that learns tokens.
      plan: Of the round.
      samples: By device, that it has trained on.
    """
    unseen = {device.device for device in plan.devices if device.head}
    said = {part.device: max(part.weights.values(), default=0.0) for part in contributions if part.device in unseen}
    weights = fair(said, samples)

    def weighed(part: Contribution) -> Contribution:
        own = said.get(part.device, 0.0)
        if own <= weights.get(part.device, own):
            return part
        share = weights[part.device] / own
        return replace(part, weights={name: weight * share for name, weight in part.weights.items()})

    return [weighed(part) for part in contributions]


def log_outliers(rows: Sequence[Mapping[str, Any]]) -> None:
    """A line for each outlier."""
    for row in rows:
        if row["outlier"]:
            _log.warning(
                "round %d: device %s changed the adapter by %.3g times the median, at a cosine of %.2f with the "
                "others. Look at it, or set train.robust.",
                row["round"],
                row["device"],
                row["times"],
                row["cosine"],
            )


def _cosine(part: Contribution, own: Adapter, total: Mapping[str, Tensor], length: float) -> float:
    """The cosine between a change and the sum of the others', where both have a tensor."""
    dot, square = 0.0, 0.0
    for name, value in own.items():
        others = total[name][places_of(part, name)].double() - value.double()
        dot += float((value.double() * others).sum())
        square += float(others.square().sum())
    return dot / (length * math.sqrt(square)) if length and square else 0.0
