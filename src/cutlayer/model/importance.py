"""The importance of a head or a channel, from the gradients of LoRA alone: no gradient of a frozen weight is needed.

LoRAPrune: Structured Pruning Meets Low-Rank Parameter-Efficient Fine-Tuning
    Mingyang Zhang, Hao Chen, Chunhua Shen, Zhen Yang, Linlin Ou, Xinyi Yu, Bohan Zhuang. 2023.
    https://arxiv.org/abs/2305.18403

    the authors' code (aim-uofa/LoRAPrune)                             here
    -------------------------------------------------------------     ------------------
    surrogate gradient G = dB A + B dA - dB dA                         _score
    element score |G * (W + s B A)|                                    _score
    a unit's rows (columns) summed, divided by the layer's norm        unit_scores
    summed over the matrices of a unit                                 unit_scores
    S <- 0.9 S + 0.1 s every step                                      smooth

G is what one step of size 1 on A and B would take from the product B A, so it stands for the gradient of W + s B A.

Shapes: M outputs, N inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cutlayer.model.adapter import PREFIX
from cutlayer.model.base import Base
from cutlayer.model.part import WholePart
from cutlayer.model.quantised import dense_weight
from cutlayer.model.structure import Member, units_by_name
from cutlayer.types import Adapter, Kept

KEEP = 0.9
"""The share of the importance so far that is kept at every step."""
TINY = 1e-8


def unit_scores(base: Base, part: WholePart, parameters: Mapping[str, nn.Parameter], kept: Kept) -> Adapter:
    """The scores of one step: by `<block>.heads` and `<block>.channels`, of every unit, 0 for those removed.

    Args:
      base: What the part is of.
      part: The pruned part that the gradients are of; its frozen weights are read.
      parameters: The adapter, with gradients; what has no LoRA scores nothing.
      kept: What is left in the part.
    """
    structure, lora = base.structure, base.settings.lora
    scores = {}
    for name, units in units_by_name(kept):
        total = torch.zeros(len(units), device=base.device)
        for path, member in structure.matrices(name):
            if f"{PREFIX}{path}.lora_A.weight" not in parameters:
                continue  # a block without an adapter
            A_RN, B_MR = (parameters[f"{PREFIX}{path}.lora_{factor}.weight"] for factor in "AB")
            weight = dense_weight(part.model.get_submodule(f"{path}.base_layer"))
            score_MN = _score(weight.T if member.transposed else weight, A_RN, B_MR, lora.alpha / lora.rank)
            total += _by_unit(score_MN, member, len(units), structure.count(name))
        everything = torch.zeros(structure.count(name), device=base.device)
        scores[name] = everything.index_copy_(0, torch.tensor(units, device=base.device), total)
    return scores


@torch.no_grad()
def _score(W_MN: Tensor, A_RN: nn.Parameter, B_MR: nn.Parameter, scale: float) -> Tensor:
    """|G * (W + s B A)|, (M, N)."""
    dA_RN, dB_MR = A_RN.grad, B_MR.grad
    assert dA_RN is not None, "scores are read between the backward pass and the step"
    assert dB_MR is not None
    surrogate_MN = dB_MR @ (A_RN - dA_RN) + B_MR @ dA_RN
    return (surrogate_MN * (W_MN.float() + scale * (B_MR @ A_RN))).abs()


def _by_unit(values_MN: Tensor, member: Member, num_left: int, count: int) -> Tensor:
    """The sums of a unit's rows or columns, all units together of norm 1."""
    sums = member.unit_sums(values_MN.sum(1 if member.makes else 0), num_left, count)
    normed: Tensor = sums / (torch.linalg.vector_norm(sums) + TINY)
    return normed


def smooth(importance: Adapter, scores: Adapter) -> Adapter:
    """The importance after one more step. It starts from nothing: an empty one is 0 everywhere."""
    return {
        name: (1 - KEEP) * score + (KEEP * importance[name] if importance else 0.0) for name, score in scores.items()
    }


def magnitudes(base: Base, adapter: Mapping[str, Tensor] | None = None, num_blocks: int | None = None) -> Adapter:
    """Scores of units where no gradient is: their weights' squares, each matrix of norm 1.

    Args:
      base: The model.
      adapter: What is on the weights: W + s B A is what counts; None for the frozen weights alone.
      num_blocks: Of how many blocks, the lowest; None for all of them. Weights above are not read.

    Returns:
      By `<block>.heads` and `<block>.channels`, of every unit; of a model without weights (`meta`) all are alike.
    """
    structure, scores, lora = base.structure, {}, base.settings.lora
    some = structure.lowest(num_blocks if num_blocks is not None else structure.num_blocks)
    if base.device.type == "meta":
        return {name: torch.zeros(len(units)) for name, units in units_by_name(some)}
    for name, units in units_by_name(some):
        scores[name] = torch.zeros(len(units), device=base.device)
        for path, member in structure.matrices(name):
            weight = base.weights.get(f"{path}.weight")
            weight_MN = (weight.T if member.transposed else weight).float()
            if adapter is not None and f"{PREFIX}{path}.lora_A.weight" in adapter:
                A_RN, B_MR = (adapter[f"{PREFIX}{path}.lora_{factor}.weight"] for factor in "AB")
                weight_MN = weight_MN + (lora.alpha / lora.rank) * (B_MR @ A_RN)
            scores[name] += _by_unit(weight_MN**2, member, len(units), len(units))
    return scores
