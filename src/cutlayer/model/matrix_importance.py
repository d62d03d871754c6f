"""The importance of a whole weight matrix: the product of its values and its gradient, for what its adapter costs.

    exactly      sum |W * dL/dW| / C    dL/dW of a frozen W is made for one step: the gradient by what the matrix gives,
                                        times what it takes, and is summed before the next matrix's is made
    by proxy     (sum |A * dL/dA| + sum |B * dL/dB|) / C    from the gradients that a step of LoRA has anyway; 0 as long
                                        as B is 0

C is the bytes that the matrix's adapter takes in training: of the exact one at rank 1, of the proxy at the rank that it
has. HSplitLoRA (arXiv 2505.02795) calls the quotient a resource-normalised gradient-weight product; the absolute
values, and what C counts, are our reading.

Shapes: S positions of a batch, M outputs, N inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from cutlayer.model.adapter import PREFIX
from cutlayer.model.base import Base
from cutlayer.model.cost import BYTES_PER_TRAINABLE
from cutlayer.model.low_rank import factor_names
from cutlayer.model.part import Part
from cutlayer.model.quantised import dense_weight

CHUNK_NUMBERS = 2**21
"""Numbers of a frozen matrix's gradient that are there at a time, at most."""


class Exactly:
    """Weighs the LoRA modules of a part by one forward pass and its backward pass.

    Args:
      base: What the part is of.
      part: The part.

    Attributes:
      scores: by the name of a module's A; filled by the backward pass of what ran within `watching`.
    """

    def __init__(self, base: Base, part: Part) -> None:
        self._base, self._part = base, part
        self.scores: dict[str, float] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The forward pass within is the one that is weighed."""
        hooks = [
            module.register_forward_hook(self._hook(f"{PREFIX}{path}.lora_A.weight"))
            for path, module in self._part.model.named_modules()
            if isinstance(module, LoraLayer)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, name: str) -> Callable[[Any, Any, Any], None]:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            weight, x = dense_weight(module.get_base_layer()), inputs[0].detach()

            def weigh(gradient: Tensor) -> None:
                matrix_MN = weight.T if self._base.transposed else weight
                total = _absolute(matrix_MN, gradient.flatten(0, -2), x.flatten(0, -2))
                self.scores[name] = self.scores.get(name, 0.0) + total / _cost(matrix_MN.shape, rank=1)

            output.register_hook(weigh)

        return hook


@torch.no_grad()
def _absolute(weight_MN: Tensor, gradient_SM: Tensor, x_SN: Tensor) -> float:
    """The sum of |W * dL/dW|, some rows at a time."""
    rows = max(1, CHUNK_NUMBERS // weight_MN.shape[1])
    x_SN, total = x_SN.float(), 0.0
    for start in range(0, weight_MN.shape[0], rows):
        some = slice(start, start + rows)
        dW_RN = gradient_SM[:, some].float().T @ x_SN
        total += float((weight_MN[some].float() * dW_RN).abs().sum())
    return total


def by_proxy(parameters: Mapping[str, nn.Parameter]) -> dict[str, float]:
    """The scores of one step by the gradients of LoRA, by the name of each module's A.

    Args:
      parameters: An adapter, between the backward pass and the step.
    """
    return {a: _proxy(parameters[b], parameters[a]) for b, a in factor_names(parameters)}


@torch.no_grad()
def _proxy(b_MR: nn.Parameter, a_RN: nn.Parameter) -> float:
    if b_MR.grad is None or a_RN.grad is None:
        return 0.0  # no sample has come by
    total = float((b_MR * b_MR.grad).abs().sum() + (a_RN * a_RN.grad).abs().sum())
    return total / _cost((b_MR.shape[0], a_RN.shape[1]), rank=a_RN.shape[0])


def _cost(shape: Sequence[int], rank: int) -> int:
    """Bytes that an adapter of this rank takes in training on a matrix of this shape."""
    return BYTES_PER_TRAINABLE * rank * sum(shape)


def flops_of(base: Base, names: Mapping[str, Any] | Sequence[str], num_samples: int, num_tokens: int) -> float:
    """FLOPs that making dL/dW of these modules takes, one product of a matrix's size for each.

    Args:
      base: The model.
      names: Trainable tensors; those that are an A name a module.
      num_samples, num_tokens: Of the batch.
    """
    sizes = (base.shapes[b][0] * base.shapes[a][1] for b, a in factor_names(names))
    return 2.0 * num_samples * num_tokens * sum(sizes)
