"""Layer by layer: how long a device runs backward, which blocks it reached, and one adapter of what was reached.

Stragglers-Aware Low-Latency Synchronous Federated Learning via Layer-Wise Model Updates (SALF)
    Natalie Lang, Alejandro Cohen, Nir Shlezinger. 2024. https://arxiv.org/abs/2403.18375

    w_{t+1}^l of the devices R that reached layer l, of U devices in all         rule
    --------------------------------------------------------------------------   ----
    1/U (sum over R of w_u^l + (U - |R|) w_t^l)                                  code
    (1/(1 - p_l)) (1/|R| sum over R of w_u^l - p_l w_t^l)                        salf
    w_t^l + 1/U sum over R of (w_u^l - w_t^l) / q_u^l                            ipw

p_l is the chance that nobody reaches the layer, q_u^l that device u does; a layer that nobody reached stays. The mean
over all devices is `code`'s shrunk by how often they reach the layer; `salf` is unbiased where all reach it equally
often, and `ipw` where they do not.

What is certain: `code`, from the authors' code, which knows no chances. The correction of `salf` is recalled, and was
found unbiased by simulation; the inverse weights of `ipw` are ours, as are bounds on both, without which one lucky
device could move a layer that is next to never reached as far as it likes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from cutlayer.errors import ConfigError
from cutlayer.policies.aggregate import Aggregate, Contribution
from cutlayer.state import Stateless
from cutlayer.types import Adapter, Clause, Costs, DevicePlan, RoundPlan
from cutlayer.wire.messages import Update

REACHED = "reached"
"""The fact of an update: int32, in how many local steps each block that the device holds was reached, the lowest first;
and then its head, where it holds that."""
RULES = ("code", "salf", "ipw")
LEAST = 0.05
"""No chance of reaching a layer is taken to be less."""


@dataclass(frozen=True, slots=True)
class Reach(Clause):
    """The time that a device computes in a round, and its chances to reach each block by then.

    Attributes:
      seconds: how long it computes, from when it has its assignment. Each local step has its part of that.
      odds: the chance that it reaches each block of the model, the lowest first, and the head; 1 above its cut.
    """

    seconds: float
    odds: tuple[float, ...]

    def until(self, step: int, local_steps: int) -> float:
        """Seconds after its assignment when a local step is to be over.

        >>> Reach(6.0, ()).until(1, 3)
        4.0
        """
        return self.seconds * (step + 1) / local_steps


@dataclass(frozen=True, slots=True)
class Pieces:
    """A backward pass in pieces.

    Attributes:
      forward_flops: of the forward pass before it.
      head_flops: of the head, where the device holds it.
      block_flops: of each block; of blocks that cost the same, as those of a transformer do.
      blocks: in the order in which they are followed back, down to the lowest that has an adapter.
    """

    forward_flops: float
    head_flops: float
    block_flops: float
    blocks: tuple[int, ...]

    @property
    def head(self) -> float:
        """The head, in forward passes."""
        return self.head_flops / self.forward_flops

    @property
    def block(self) -> float:
        """A block, in forward passes."""
        return self.block_flops / self.forward_flops


def pieces_of(plan: DevicePlan, costs: Costs, rank: int, num_samples: int, num_tokens: int) -> Pieces:
    """The pieces of a device's backward pass, by what passes down to two different blocks cost.

    Args:
      plan: The device's.
      costs: What its steps cost.
      rank: Of LoRA on blocks for which the plan says none.
      num_samples, num_tokens: Of the batch.
    """
    cost = costs.device(plan, num_samples, num_tokens)
    forward, whole = cost.forward_flops, cost.backward_flops
    adapted = [block for block in range(plan.cut) if plan.blocks is None or block in plan.blocks]
    if not adapted:
        return Pieces(forward, whole, 0.0, ())
    lowest, highest = adapted[0], adapted[-1]
    blocks = tuple(range(plan.cut - 1, lowest - 1, -1))
    if not plan.alone or lowest == highest:
        return Pieces(forward, 0.0, whole / len(blocks), blocks)
    alone = [0] * costs.num_blocks
    alone[highest] = plan.ranks[highest] if plan.ranks else rank
    short = costs.device(replace(plan, ranks=tuple(alone)), num_samples, num_tokens).backward_flops
    block_flops = (whole - short) / (highest - lowest)
    return Pieces(forward, max(0.0, whole - len(blocks) * block_flops), block_flops, blocks)


def mean_per_layer(rule: str) -> Aggregate:
    """The mean of each layer over the devices of a round that reached it, corrected for those that did not.

    Devices count alike. Where all of them reached everything, and were sure to, each rule is federated averaging, bit
    for bit.

    Args:
      rule: One of `RULES`: see above.

    Raises:
      ConfigError: There is no such rule.

    Example:
      >>> import torch
      >>> from cutlayer import Contribution, DevicePlan, RoundPlan, mean_per_layer
      >>> plan = RoundPlan(0, (DevicePlan("pi-1"), DevicePlan("pi-2")))
      >>> part = Contribution({"head.weight": torch.tensor([4.0])}, {"head.weight": 8.0}, device="pi-1")
      >>> before = {"head.weight": torch.zeros(1)}
      >>> [mean_per_layer(rule)(before, [part], plan)["head.weight"] for rule in ("code", "salf")]
      [tensor([2.]), tensor([4.])]
    """
    if rule not in RULES:
        raise ConfigError(
            f"method.aggregation: expected one of {', '.join(RULES)}, got {rule!r}. Change method.aggregation."
        )
    return _LayerMean(rule)


def reached(_plan: DevicePlan, update: Update) -> Mapping[str, Any]:
    """The number of steps in which a device reached each of its blocks, as facts of its record (`Method.observe`).

    Example:
      >>> import torch
      >>> from cutlayer import DevicePlan, reached
      >>> from cutlayer.wire.messages import Update
      >>> facts = {"reached": torch.tensor([0, 1], dtype=torch.int32)}
      >>> reached(DevicePlan("pi-1"), Update("run", 0, "pi-1", {}, 1, 4, 4, 0.5, 0.0, facts))
      {'reached': [0, 1]}
    """
    return {REACHED: update.facts[REACHED].tolist()}


def layer_of(name: str) -> int | None:
    """The block that a tensor belongs to, by its global name: the first number in it; None for the head.

    >>> layer_of("base_model.model.bert.encoder.layer.3.attention.self.query.lora_A.weight")
    3
    """
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


class _LayerMean(Stateless):
    mixed_ranks = False

    def __init__(self, rule: str) -> None:
        self._rule = rule
        self.name = f"the mean per layer ({rule})"

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution], plan: RoundPlan) -> Adapter:
        reach = {device.device: device.clause(Reach) for device in plan.devices}
        everybody = list(reach | dict.fromkeys(part.device for part in contributions))
        result = {}
        for name, value in broadcast.items():
            layer = layer_of(name)
            odds = {device: _odds(reach.get(device), layer) for device in everybody}
            parts = [part for part in contributions if name in part.adapter and part.weights[name] > 0]
            if not parts:
                result[name] = value
                continue
            counts = self._counts([part.device for part in parts], odds)
            result[name] = _sum(value, [part.adapter[name] for part in parts], counts)
        return result

    def _counts(self, reached: Sequence[str], odds: dict[str, float]) -> list[float]:
        """The weight of each device that reached a layer; what is missing to 1 is the layer as it was."""
        if self._rule == "salf":
            missed = math.prod(1 - chance for chance in odds.values())
            return [1 / len(reached) / (1 - min(missed, 1 - LEAST))] * len(reached)
        chances = [max(odds[device], LEAST) if self._rule == "ipw" else 1.0 for device in reached]
        return [1 / len(odds) / chance for chance in chances]


def _odds(reach: Reach | None, layer: int | None) -> float:
    """The chance that a device reaches a layer; of one that is not timed, 1."""
    if reach is None or not reach.odds:
        return 1.0
    return reach.odds[-1 if layer is None else layer]


def _sum(value: Tensor, parts: Sequence[Tensor], counts: Sequence[float]) -> Tensor:
    """The parts by what they count, and the rest of 1 of the value, in fp64."""
    first, *others = (part.double() * count for part, count in zip(parts, counts, strict=True))
    total, rest = sum(others, start=first), 1 - math.fsum(counts)
    if abs(rest) > 1e-12:  # else it is rounding
        total = total + value.double() * rest
    return total.to(value.dtype)
