"""A machine that runs some blocks of the model for whoever asks, and keeps nothing between two calls.

    forward      what went in -> what comes out of the last block; no graph is kept
    backward     what went in, again, and the gradient by what came out -> forward once more, then backward

So it may fail at any moment: whoever asked has all that a call needs, and asks another. Trainable tensors of its
blocks, where there are any, come with the call, and their gradients go with the answer.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from cutlayer.errors import Refused
from cutlayer.fleet.machine import Machine
from cutlayer.model.base import Base
from cutlayer.types import Adapter, Cost, Costs, DevicePlan
from cutlayer.wire.messages import SpanAnswer, SpanCall


@dataclass(frozen=True, slots=True)
class SpanServer:
    """Answers calls.

    Attributes:
      name: the machine's.
      base: the frozen model, of which it reads the blocks that it is asked for.
      machine: what it computes on.
      costs: what steps cost, for a modelled machine.
      blocks: those that it holds, [first, end).
      longest_tokens: the longest batch there can be.
    """

    name: str
    base: Base
    machine: Machine
    costs: Costs
    blocks: tuple[int, int]
    longest_tokens: int

    async def answer(self, call: SpanCall) -> SpanAnswer:
        """Runs a call.

        Raises:
          Refused: It asks for other blocks, or its tensors do not fit them.
        """
        self.check(call)
        forward = call.grad_BTD is None
        h_BTD, grad_BTD, gradients = await self.machine.run(
            (lambda: self._forward(call)) if forward else (lambda: self._back(call)),
            like=lambda: _like(call),
            what="forward" if forward else "backward",
            flops=self.flops(call),
            round=call.round,
            step=call.step,
            peer=call.device,
        )
        return SpanAnswer(call.run, call.round, call.step, call.device, h_BTD, grad_BTD, gradients)

    def flops(self, call: SpanCall) -> float:
        """Floating-point operations of a call."""
        cost = span_cost(self.costs, call, self.base)
        return cost.forward_flops + (0.0 if call.grad_BTD is None else cost.backward_flops)

    def check(self, call: SpanCall) -> None:
        """Raises Refused where a call is for other blocks, or its tensors do not fit the model."""
        first, end = self.blocks
        if not first <= call.first < call.end <= end:
            raise self._refused("wrong-blocks", f"blocks within [{first}, {end})", f"[{call.first}, {call.end})")
        shape = tuple(call.h_BTD.shape)
        if len(shape) != 3 or not 0 < shape[1] <= self.longest_tokens or not shape[0]:
            raise self._refused("wrong-shape", f"samples of 1 to {self.longest_tokens} tokens", list(shape))
        self._expect("h_BTD", call.h_BTD, (*shape[:2], self.costs.hidden_size), self.base.dtype)
        self._expect("mask_BT", call.mask_BT, shape[:2], torch.bool)
        if call.grad_BTD is not None:
            self._expect("grad_BTD", call.grad_BTD, shape, self.base.dtype)
        self._check_adapter(call)

    def _check_adapter(self, call: SpanCall) -> None:
        """Checks that a call has tensors for all of its blocks or for none: no caller may make us build any part."""
        expected = _names(self.base, call.first, call.end) if call.tensors else frozenset()
        if call.tensors.keys() != expected:
            raise self._refused("wrong-tensors", f"none or the {len(expected)} tensors of its blocks", "others")
        full = self.base.shapes
        for name, tensor in call.tensors.items():
            axis = 1 if ".lora_B." in name else 0  # along which a lower rank is shorter
            rank = tensor.shape[axis] if tensor.dim() == 2 else 0
            shape = [*full[name]]
            if 0 < rank <= shape[axis]:
                shape[axis] = rank
            self._expect(name, tensor, tuple(shape), torch.float32)

    def _expect(self, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        if tuple(tensor.shape) != shape or tensor.dtype is not dtype:
            got = f"{tensor.dtype} of {list(tensor.shape)}"
            raise self._refused("wrong-shape", f"{dtype} of {list(shape)} for {name}", got)

    def _refused(self, reason: str, expected: str, got: object) -> Refused:
        return Refused(
            reason, f"span {self.name}: expected {expected}, got {got}. Do all machines have one model and one plan?"
        )

    def _forward(self, call: SpanCall) -> tuple[Tensor, None, Adapter]:
        part = self.base.middle_part(call.first, call.end, _adapted(call))
        part.use(call.tensors)
        with torch.no_grad():
            return part.forward(call.h_BTD, call.mask_BT), None, {}

    def _back(self, call: SpanCall) -> tuple[None, Tensor | None, Adapter]:
        part = self.base.middle_part(call.first, call.end, _adapted(call))
        parameters = {name: nn.Parameter(value) for name, value in call.tensors.items()}
        part.use(parameters)
        h_BTD = call.h_BTD.detach().requires_grad_(call.below)
        part.forward(h_BTD, call.mask_BT).backward(call.grad_BTD)
        gradients = {name: value.grad for name, value in parameters.items() if value.grad is not None}
        return None, h_BTD.grad, gradients


def span_cost(costs: Costs, call: SpanCall, base: Base) -> Cost:
    """One pass over a call's blocks: as much as a device pays more that holds them than one that ends below them.

    Args:
      costs: What steps of a device cost.
      call: Which blocks, what of them trains, whether somebody below waits; its batch.
      base: The model.
    """
    ranks = [1 if call.below and block < call.first else 0 for block in range(base.num_blocks)]
    for name, value in call.tensors.items():
        block = base.block_of(name)
        if block is not None and ".lora_A." in name:
            ranks[block] = int(value.shape[0])
    shape = call.h_BTD.shape[:2]
    upper, lower = (
        costs.device(DevicePlan(call.device, cut=cut, ranks=tuple(ranks)), *shape) for cut in (call.end, call.first)
    )
    return Cost(
        upper.forward_flops - lower.forward_flops,
        max(0.0, upper.backward_flops - lower.backward_flops),
        max(0, upper.memory_bytes - lower.memory_bytes),
    )


@lru_cache(maxsize=256)  # every call asks, and a model has few runs of blocks
def _names(base: Base, first: int, end: int) -> frozenset[str]:
    """The trainable tensors of blocks [first, end)."""
    return frozenset(base.device_names(end)) - frozenset(base.device_names(first))


def _adapted(call: SpanCall) -> frozenset[int] | None:
    """The blocks that have an adapter: all of the call's, or none."""
    return None if call.tensors else frozenset()


def _like(call: SpanCall) -> tuple[Tensor | None, Tensor | None, Adapter]:
    """Tensors of the form that running the call would return, with nothing computed in them."""
    if call.grad_BTD is None:
        return torch.empty_like(call.h_BTD), None, {}
    gradients = {name: torch.empty_like(value) for name, value in call.tensors.items()}
    return None, torch.empty_like(call.h_BTD) if call.below else None, gradients
