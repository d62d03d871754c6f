"""The server side in one stage or in a row of them: loss and gradients of the shared adapter.

SplitFrozen decomposes the backward pass: a stage first computes the gradient of its input, for which the stage below
waits, and later the gradients of its weights. On one machine, as here, the stages work one piece at a time in the
order of `schedule`, and the gradients are those of the ordinary backward pass (`tests/server/steps/test_stages.py`).

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor

from cutlayer.errors import ModelError
from cutlayer.model.base import Base, Blocks
from cutlayer.model.part import MiddlePart, Part, ServerPart
from cutlayer.server.samples import weight_of
from cutlayer.server.steps.schedule import Piece, schedule


@dataclass(frozen=True, slots=True)
class _MicroBatch:
    """A part of a batch, and its share in the batch's loss."""

    h_BTD: Tensor
    mask_BT: Tensor
    labels: Tensor
    share: float


@dataclass(slots=True)
class _Passing:
    """A micro-batch on its way through one stage."""

    input_BTD: Tensor
    output: Tensor
    pending: Any = None  # what the deferred half of the backward pass needs


class Stages:
    """Blocks `[cut, L)` and the head, in `stages` runs of blocks.

    Args:
      base: The frozen model.
      cut: Where the lowest stage begins; nothing below it trains.
      blocks: Which blocks have an adapter.
      stages: How many there are, at most one per block.
      micro_batches: Into how many a batch is divided. The loss is the whole batch's; above 1, sums round differently.
      decomposed: Whether the backward pass is done in two pieces.

    Raises:
      ModelError: It cannot be, in this family.
    """

    def __init__(
        self, base: Base, cut: int, blocks: Blocks, *, stages: int = 1, micro_batches: int = 1, decomposed: bool = False
    ) -> None:
        num_blocks = base.num_blocks - cut
        if decomposed and base.family.shared_table is not None:
            raise ModelError(
                f"method.decomposed: expected false for {base.family.name}, whose blocks project a table that all "
                f"share ({base.family.shared_table}): their gradients cannot be deferred, got true. Set it to false."
            )
        assert stages <= max(1, num_blocks), "the plan left a block for every stage"
        self.cut = cut
        self._micro_batches, self._decomposed = micro_batches, decomposed
        sizes = [num_blocks // stages + (stage < num_blocks % stages) for stage in range(stages)]
        *lower, last = pairwise(accumulate(sizes, initial=cut))
        self._middle: list[MiddlePart] = [base.middle_part(first, end, blocks) for first, end in lower]
        self._last: ServerPart = base.server_part(last[0], blocks)
        self._parts: list[Part] = [*self._middle, self._last]

    def use(self, adapter: Mapping[str, Tensor]) -> None:
        """Puts an adapter in."""
        for part in self._parts:
            part.use(adapter)

    def backward(self, h_BTD: Tensor, mask_BT: Tensor, labels: Tensor) -> float:
        """The mean loss over the batch, as `ServerPart.loss`; adds its gradients to those of the adapter's tensors.

        Args:
          h_BTD: Activations at the cut; no gradient of theirs is computed.
          mask_BT: True where there is a token.
          labels: (B,) classes or (B, T) tokens with -100 where masked; int64.
        """
        micro_batches = self._divide(h_BTD, mask_BT, labels)
        runs: dict[tuple[int, int], _Passing] = {}
        total = 0.0
        for slot in schedule(len(self._parts), len(micro_batches), decomposed=self._decomposed):
            stage, number = slot.stage, slot.micro_batch
            if slot.what == "forward":
                runs[stage, number] = self._forward(stage, runs.get((stage - 1, number)), micro_batches[number])
                if stage + 1 == len(self._parts):
                    total += float(runs[stage, number].output.detach())
            else:
                self._back(stage, slot.what, runs[stage, number], runs.get((stage + 1, number)))
        return total

    def _divide(self, h_BTD: Tensor, mask_BT: Tensor, labels: Tensor) -> list[_MicroBatch]:
        pieces = zip(*(tensor.chunk(self._micro_batches) for tensor in (h_BTD, mask_BT, labels)), strict=True)
        weighed = [(sum(weight_of(label) for label in piece[2]), piece) for piece in pieces]
        total = sum(weight for weight, _ in weighed)
        return [_MicroBatch(h, mask, label, weight / total) for weight, (h, mask, label) in weighed if weight]

    def _forward(self, stage: int, below: _Passing | None, given: _MicroBatch) -> _Passing:
        input_BTD = given.h_BTD if below is None else below.output.detach().requires_grad_()
        if stage + 1 == len(self._parts):
            return _Passing(input_BTD, self._last.loss(input_BTD, given.mask_BT, given.labels) * given.share)
        output = self._middle[stage].forward(input_BTD, given.mask_BT)
        return _Passing(input_BTD, output.clone() if output._is_view() else output)  # GPT-2's; see `_halves`

    def _back(self, stage: int, what: Piece, passing: _Passing, above: _Passing | None) -> None:
        grad = None if above is None else above.input_BTD.grad
        weights = [slot.module._parameters[slot.attribute] for slot in self._parts[stage].slots]
        if what == "backward" or stage == 0:
            passing.output.backward(grad)
        elif what == "input":
            _, passing.pending = _halves()[0](
                [passing.output], None if grad is None else [grad], [passing.input_BTD], iter(weights)
            )
        else:
            _halves()[1](iter(weights), passing.pending)


def _halves() -> Any:
    """The two halves of a stage's backward pass, torch's own; they need no process group.

    The first detaches the stage's output in place, which a view does not allow. They are imported when they are
    needed: most runs need neither.
    """
    from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

    return stage_backward_input, stage_backward_weight
