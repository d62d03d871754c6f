"""Slopes of a loss along random directions, from forward passes alone: scalars, one for each seed.

    two_sided    a device that holds the whole model: (l(w + eps z) - l(w - eps z)) / (2 eps)
    projected    a device below a cut, which was sent the loss's gradient at its activations h:
                 <grad, h(w + mu u) - h(w)>

MobiZO: Enabling Efficient LLM Fine-Tuning at the Edge via Inference Engines (P-RGE; the authors' code was read)
    Lei Gao, Amir Ziashahabi, Yue Niu, Salman Avestimehr, Murali Annavaram. EMNLP 2025.
    https://arxiv.org/abs/2409.15520
HO-SFL: Hybrid-Order Split Federated Learning with Backprop-Free Clients and Dimension-Free Aggregation (by a detailed
    reading of the paper by others) Qiyuan Chen, Xian Wu, Yi Wang, Xianhao Chen. ICML 2026.
    https://arxiv.org/abs/2603.14773

    the papers                                                         here
    --------------------------------------------------------------     ------------------------------------------
    P-RGE: A frozen, B trained (LoRA-FA)                               lora_fa(names)
    B_i = B + eps z_i, B_{q+i} = B - eps z_i, one forward ("dual")     two_sided(..., at_once=2 q)
    two forwards of q, + then - ("single")                             two_sided(..., at_once=q)
    MeZO: q = 1, one forward after the other                           two_sided(..., at_once=1)
    B <- B - lr (1/q) sum_i g_i z_i                                    Trainable.step(lr, zeroth(mean_terms(seeds, g)))
    HO-SFL: v_p = <lambda, f_c(x; theta + mu u_p) - f_c(x; theta)>     projected(...)
    g = 1/(P mu) sum_p v_p u_p                                         zeroth(mean_terms(seeds, v / mu))

All directions of a call are held at once, P or q times the trainable tensors: sets of an adapter's size. For all
weights of a model see `model/standing.py`. Nothing is written to the trainable tensors, so nothing is to be restored.

Shapes: Q queries, P directions, R replicas in one pass, B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from cutlayer.model.noise import Term, pieces
from cutlayer.model.part import DevicePart, WholePart, repeated
from cutlayer.model.replicas import replicated
from cutlayer.types import Adapter, Batch


def lora_fa(names: Iterable[str]) -> list[str]:
    """The trainable tensors that LoRA-FA trains: each B, and a head's tensors; every A stays as it was drawn."""
    return [name for name in names if ".lora_A." not in name]


def directions(adapter: Mapping[str, Tensor], names: Collection[str], seeds: Sequence[int]) -> Adapter:
    """The noise of each seed for these tensors of the adapter: by name, fp32 of shape (len(seeds), ...)."""
    noise = {}
    for name in names:
        shape, device = adapter[name].shape, adapter[name].device
        z_S = torch.empty(len(seeds), *shape, device=device)
        for piece in pieces({name: adapter[name].contiguous()}):
            z_S.view(len(seeds), -1)[:, piece.start : piece.end] = piece.normal(seeds)
        noise[name] = z_S
    return noise


def perturbed(
    adapter: Mapping[str, Tensor], noise: Mapping[str, Tensor], places: Sequence[tuple[int, float]]
) -> Adapter:
    """The tensors at several places: by name, of shape (R, ...), value + distance x noise.

    They are made in fp32, or in the tensor's own dtype if that is wider, and then cast.

    Args:
      adapter: The values.
      noise: What `directions` gave.
      places: Of each replica, which direction and how far.
    """
    chosen = [index for index, _ in places]
    moved = {}
    for name, z_S in noise.items():
        wide = torch.promote_types(adapter[name].dtype, torch.float32)
        far_R = torch.tensor([distance for _, distance in places], dtype=wide, device=z_S.device)
        step_R = z_S[chosen].to(wide) * far_R.view(-1, *[1] * (z_S.dim() - 1))
        moved[name] = (adapter[name].detach() + step_R).to(adapter[name].dtype)
    return moved


def two_sided(
    part: WholePart,
    batch: Batch,
    adapter: Mapping[str, Tensor],
    names: Collection[str],
    seeds: Sequence[int],
    epsilon: float,
    *,
    at_once: int,
) -> tuple[list[float], float]:
    """The slope of the loss along each seed's noise.

    Args:
      part: The whole model.
      batch: Of each query, the same.
      adapter: All trainable tensors of the part.
      names: Those that are moved.
      seeds: One for each query.
      epsilon: How far to go to either side.
      at_once: How many of the 2Q losses one forward pass computes, at 1 by the very kernels of `WholePart.loss`; all +
        sides come before the - sides.

    Returns:
      g of each query, and the mean of the 2Q losses.
    """
    noise = directions(adapter, names, seeds)
    places = [(query, side * epsilon) for side in (1, -1) for query in range(len(seeds))]
    losses: list[float] = []
    for first in range(0, len(places), at_once):
        some = places[first : first + at_once]
        with replicated(part, adapter, perturbed(adapter, noise, some)):
            losses += part.losses(batch, len(some)).tolist()
    plus, minus = losses[: len(seeds)], losses[len(seeds) :]
    return [(p - m) / (2 * epsilon) for p, m in zip(plus, minus, strict=True)], sum(losses) / len(losses)


def projected(
    part: DevicePart,
    inputs: Mapping[str, Tensor],
    adapter: Mapping[str, Tensor],
    names: Collection[str],
    seeds: Sequence[int],
    mu: float,
    h_BTD: Tensor,
    grad_BTD: Tensor,
    *,
    at_once: int = 1,
) -> list[float]:
    """The growth of the loss, linear in the activations, along each seed's noise: v_p.

    Divided by mu it approaches the derivative <grad, J u_p> as mu does zero, until what fp32 loses in the
    difference is seen. The difference is taken before the product, both in fp32, and added up in fp64. Activations that
    are coarser than fp32 lose more: in bf16 a change below 2^-9 of a value is not seen.

    Args:
      part: The blocks below the cut.
      inputs: What `model_inputs` makes of the batch.
      adapter: All trainable tensors of the part.
      names: Those that are moved.
      seeds: One for each direction.
      mu: How far to go.
      h_BTD: The activations without a perturbation, as this part gave them.
      grad_BTD: The gradient of the loss at them, by the server.
      at_once: Directions in one forward pass; at 1 by the kernels that gave `h_BTD`.
    """
    noise, scalars = directions(adapter, names, seeds), []
    wide = torch.promote_types(h_BTD.dtype, torch.float32)
    for first in range(0, len(seeds), at_once):
        some = [(index, mu) for index in range(first, min(len(seeds), first + at_once))]
        with replicated(part, adapter, perturbed(adapter, noise, some)):
            moved = part.forward(repeated(inputs, len(some)))
        for moved_BTD in moved.chunk(len(some)):
            product_BTD = (moved_BTD.to(wide) - h_BTD.detach().to(wide)) * grad_BTD.to(wide)
            scalars.append(float(product_BTD.sum(dtype=torch.float64)))
    return scalars


def mean_terms(seeds: Sequence[int], slopes: Sequence[float]) -> list[Term]:
    """The gradient that slopes along noise stand for: the mean of slope x noise, for `optimizers.zeroth`."""
    return [(seed, slope / len(seeds)) for seed, slope in zip(seeds, slopes, strict=True)]
