"""Several values of an adapter in one forward pass: the batch comes once for each, and each copy of it meets its own.

P-RGE (arXiv 2409.15520) asks for the losses at 2q places near the same weights. They are one forward pass of a batch
that is repeated 2q times: the frozen weights see one large batch, the trainable tensors are 2q matrices, one for each
replica. What a part computes is its model's own forward; only what multiplies by a replicated tensor multiplies
differently.

Shapes: R replicas, B samples of the batch, I inputs and O outputs of a trained layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cutlayer.errors import ModelError
from cutlayer.model.dropout import still
from cutlayer.model.part import Part


@contextmanager
def replicated(part: Part, adapter: Mapping[str, Tensor], replicas: Mapping[str, Tensor]) -> Iterator[None]:
    """A context in which the part runs R B samples, replica after replica, each with trainable tensors of its own.

    Without dropout and without graphs; afterwards the part is as it was, with `adapter` in it.

    Args:
      part: Any part.
      adapter: All of its trainable tensors, for those that have no replicas.
      replicas: Tensors of shape (R, ...) by global name, all of the same R. One replica alone runs as the part always
        does, by the same kernels.

    Raises:
      ModelError: A tensor with replicas belongs to something else than a linear layer; or, when the part runs, to one
        that sees more than the batch.
    """
    part.use(adapter)
    count = {len(tensor) for tensor in replicas.values()}
    assert len(count) == 1, "replicas are made together"
    changed: list[nn.Linear] = []
    try:
        if count == {1}:
            part.use({**adapter, **{name: tensor[0] for name, tensor in replicas.items()}})
        else:
            for module, tensors in _by_module(part, replicas).items():
                _replace_forward(module, tensors, count.copy().pop())
                changed.append(module)
        with still(part.model):
            yield
    finally:
        for module in changed:
            del module.forward
        part.use(adapter)


def _by_module(part: Part, replicas: Mapping[str, Tensor]) -> dict[nn.Linear, dict[str, Tensor]]:
    found: dict[nn.Linear, dict[str, Tensor]] = {}
    for slot in part.slots:
        if slot.name in replicas:
            if not isinstance(slot.module, nn.Linear):
                raise ModelError(
                    f"{slot.name}: expected a tensor of a linear layer, of which several can run at once, got one of "
                    f"{type(slot.module).__name__}. Run the queries one at a time."
                )
            found.setdefault(slot.module, {})[slot.attribute] = replicas[slot.name]
    return found


def _replace_forward(module: nn.Linear, tensors: Mapping[str, Tensor], count: int) -> None:
    def every(attribute: str) -> Tensor | None:
        own: Tensor | None = module._parameters[attribute]
        return tensors.get(attribute, None if own is None else own.expand(count, *own.shape))

    weight_ROI, bias_RO = every("weight"), every("bias")
    assert weight_ROI is not None

    def forward(x: Tensor) -> Tensor:
        if x.shape[0] % count:
            raise ModelError(
                f"adapter: expected layers that see the batch alone, of which {count} can run at once, got one that "
                "sees a table that all share. Run the queries one at a time."
            )
        y_RNO = torch.bmm(x.reshape(count, -1, x.shape[-1]), weight_ROI.transpose(1, 2))
        if bias_RO is not None:
            y_RNO += bias_RO[:, None]
        return y_RNO.view(*x.shape[:-1], -1)

    module.forward = forward  # type: ignore[assignment, method-assign]
