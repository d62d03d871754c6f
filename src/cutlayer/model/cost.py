"""The cost of one step of a part, counted and not assumed, at any cut and batch shape.

What is counted, and how, is in `model/counting.py`; here parts are put together from pieces, and steps from parts.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch

from cutlayer.model.adapter import PREFIX
from cutlayer.model.base import Base, Blocks
from cutlayer.model.counting import DEPTH, PROBE_LENGTHS, Counter, Held, Pieces
from cutlayer.model.settings import ModelSettings
from cutlayer.model.structure import Left
from cutlayer.types import Cost, DevicePlan, Flow, adapted_blocks

BYTES_PER_TRAINABLE = 16
"""fp32 value, gradient and AdamW's two moments."""
VALUE_BYTES = 4
"""fp32, where nothing is kept for a backward pass."""
TRANSIENTS = 2
"""Tensors as large as the largest one alive at the peak that no graph keeps: an input and an output of one operator."""
HEAP_SLACK = 1.25
"""Bytes of the heap for each byte of the tensors that come and go: a middle course. Where every tensor is mapped on its
own it is 1.0; glibc's heap keeps holes that no tensor fits (`tests/model/test_cost_memory.py` measures both)."""


class CostModel:
    """Costs of device-side and server-side steps at any cut and batch shape.

    Args:
      settings: The model; its weights are not read.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._whole = Counter(settings)
        self._base = self._whole.base
        self.num_blocks = self._base.num_blocks
        self.dtype = self._base.dtype
        self._settings = settings

    def of(self, flow: Callable[[DevicePlan], Flow]) -> ShapedCosts:
        """The costs of a shape of a round.

        Args:
          flow: What a device runs in a local step of it.
        """
        return ShapedCosts(self, flow)

    def device(self, plan: DevicePlan, flow: Flow, num_samples: int, num_tokens: int) -> Cost:
        """One step of a device: `num_samples` x `num_tokens`, padding included."""
        if flow.away is not None:
            return self._around(flow.away, plan.ranks, num_samples, num_tokens)
        if plan.head and not plan.alone:
            return self._both_ends(plan, flow, num_samples, num_tokens)
        held = Held("whole" if plan.alone else "device", plan.cut, plan.ranks, self._left(flow))
        if flow.backward and flow.forwards == 1:
            return self._cost(held, num_samples, num_tokens)
        forward = self._cost(held, num_samples * flow.at_once, num_tokens)
        times = flow.forwards / flow.at_once
        backward, memory = 0.0, self._forward_bytes(held, num_samples * flow.at_once, num_tokens)
        if flow.backward:
            backward, memory = forward.backward_flops, forward.memory_bytes
        return Cost(times * forward.forward_flops, backward, memory)

    def largest_bytes(self, plan: DevicePlan, flow: Flow, num_samples: int, num_tokens: int) -> int:
        """The largest tensor that comes and goes in a step of a device. See `device`."""
        held = [Held("whole" if plan.alone else "device", plan.cut, plan.ranks, self._left(flow))]
        if flow.away is not None:
            held = [Held("device", flow.away[0], plan.ranks), Held("server", flow.away[1], plan.ranks)]
        elif plan.head and not plan.alone:
            assert plan.top is not None, "who keeps its labels holds a tail"
            held = [Held("device", plan.cut, plan.ranks), Held("tail", plan.top, plan.ranks)]
        powers = np.array([1.0, num_tokens, num_tokens**2])
        largest = max(
            sum(share * self._coefficients(corner)[3] @ powers for share, corner in self._corners(one)) for one in held
        )
        return int(largest * num_samples * flow.at_once)

    def _both_ends(self, plan: DevicePlan, flow: Flow, num_samples: int, num_tokens: int) -> Cost:
        """A step below the cut and in the tail: what is kept for the backward pass below is there all the while."""
        assert plan.top is not None, "who keeps its labels holds a tail"
        ends = [Held("device", plan.cut, plan.ranks), Held("tail", plan.top, plan.ranks)]
        below, above = (self._cost(held, num_samples, num_tokens) for held in ends)
        powers = np.array([1.0, num_tokens, num_tokens**2])
        (kept, largest), (kept_above, largest_above) = ((self._coefficients(held) @ powers)[2:] for held in ends)
        samples = num_samples * (flow.in_flight * kept + kept_above + TRANSIENTS * max(largest, largest_above))
        fixed = self._fixed_bytes(ends[0]) + self._fixed_bytes(ends[1]) - self._shared_bytes(*ends)
        fixed += (flow.in_flight - 1) * self.device_adapter_bytes(plan, flow)  # the values of earlier steps
        return Cost(
            below.forward_flops + above.forward_flops,
            below.backward_flops + above.backward_flops,
            int(fixed + HEAP_SLACK * samples),
        )

    @cache  # noqa: B019
    def _shared_bytes(self, one: Held, other: Held) -> int:
        """Frozen weights that two parts on one machine share: of a head that is tied to the embeddings."""
        if not self._alike:
            return self._whole.shared_bytes(one, other)
        pieces = self._pieces(one)
        return pieces.counter.shared_bytes(pieces.empty(one.kind), pieces.empty(other.kind))

    def _around(self, away: tuple[int, int], ranks: tuple[int, ...], num_samples: int, num_tokens: int) -> Cost:
        """A step of what lies below and above blocks that others run; and the adapters of these, which it keeps."""
        first, end = away
        below, above = (
            self._cost(Held(kind, at, ranks), num_samples, num_tokens)
            for kind, at in (("device", first), ("server", end))
        )
        between = set(self._base.device_names(end, adapted_blocks(ranks))) - set(self._base.device_names(first))
        kept = self.activation_bytes(num_samples, num_tokens) * (end - first)  # what went into each span, at most
        return Cost(
            below.forward_flops + above.forward_flops,
            below.backward_flops + above.backward_flops,
            below.memory_bytes
            + above.memory_bytes
            + kept
            + BYTES_PER_TRAINABLE // 4 * self.adapter_bytes(between, ranks),
        )

    def server(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
        """The server's step for that device; memory is that of one model, one adapter and one batch."""
        held = Held("server", plan.cut, plan.ranks)
        if plan.top is not None:
            held = Held("middle", plan.cut, plan.ranks, end=max(plan.cut, plan.top))
        return self._cost(held, num_samples, num_tokens)

    def server_trainable_bytes(self, plan: DevicePlan) -> int:
        """A server adapter of that device at rest: values and AdamW's moments."""
        names = self._base.server_names(plan.cut, plan.blocks, top=plan.top)
        return 3 * self.adapter_bytes(names, plan.ranks)

    @cache  # noqa: B019  (one cost model per process; what is held and batch shapes are few, and every step asks)
    def _cost(self, held: Held, num_samples: int, num_tokens: int) -> Cost:
        corners = self._corners(held)
        coefficients = sum(share * self._coefficients(corner) for share, corner in corners)
        per_sample = coefficients @ np.array([1.0, num_tokens, num_tokens**2])
        forward, backward, kept, largest = np.rint(per_sample * num_samples)
        fixed = round(sum(share * self._fixed_bytes(corner) for share, corner in corners))
        memory = fixed + HEAP_SLACK * (kept + TRANSIENTS * largest)
        return Cost(float(forward), float(backward), int(memory))

    @cache  # noqa: B019
    def _forward_bytes(self, held: Held, num_samples: int, num_tokens: int) -> int:
        """Memory of forward passes that keep no graph: weights, the adapter's values, and what comes and goes."""
        corners = self._corners(held)
        largest = sum(share * self._coefficients(corner)[3] for share, corner in corners)
        per_sample = float(largest @ np.array([1.0, num_tokens, num_tokens**2]))
        fixed = sum(share * self._fixed_bytes(corner, VALUE_BYTES) for share, corner in corners)
        return round(fixed + HEAP_SLACK * TRANSIENTS * per_sample * num_samples)

    def activation_bytes(self, num_samples: int, num_tokens: int) -> int:
        """The activations that cross the cut, one way, in the run's dtype."""
        return num_samples * num_tokens * self.hidden_size * self._base.dtype.itemsize

    def adapter_bytes(self, names: Iterable[str], ranks: tuple[int, ...] = (), left: Left | None = None) -> int:
        """The fp32 tensors that go by these names, at these ranks, of what is left."""
        shapes = self._whole.shapes(ranks, left)
        return 4 * sum(int(np.prod(shapes[name])) for name in names)

    def device_adapter_bytes(self, plan: DevicePlan, flow: Flow) -> int:
        """The adapter that the device trains, as it is sent."""
        names = self._base.device_names(plan.cut, plan.blocks, top=plan.top)
        return self.adapter_bytes(names, plan.ranks, self._left(flow))

    def adapters_on_device(self, plan: DevicePlan) -> int:
        """Number of LoRA layers that a device trains."""
        return self._adapters(plan.cut, plan.blocks, plan.top)

    @cache  # noqa: B019
    def _adapters(self, cut: int, blocks: Blocks, top: int | None) -> int:
        return sum(".lora_A." in name for name in self._base.device_names(cut, blocks, top=top))

    @property
    def hidden_size(self) -> int:
        """D: the width of the activations."""
        return self._few[False].counter.hidden_size

    @cached_property
    def _without_recomputing(self) -> CostModel:
        return CostModel(replace(self._settings, checkpoint_device=False, checkpoint_server=False))

    def _left(self, flow: Flow) -> Left | None:
        """Numbers of heads and channels that are left in every block; None for all of them."""
        return self._base.structure.left(flow.removed) if flow.removed else None

    def _corners(self, held: Held) -> list[tuple[float, Held]]:
        """Structures to count instead of a pruned one, and how much of each makes it.

        All that a step costs is linear in the heads of the blocks and in their channels, so the whole, the fewest
        heads and the fewest channels say it all: FLOPs and fixed bytes exactly. The largest tensor is a maximum of
        such lines, of which this is an upper bound.
        """
        if held.left is None:
            return [(1.0, held)]
        most = self._base.structure.left(0.0)
        heads, channels = ((n - left) / max(1, n - 1) for n, left in zip(most, held.left, strict=True))
        fewest = (replace(held, left=(1, most[1])), replace(held, left=(most[0], 1)))
        return [(1 - heads - channels, replace(held, left=None)), (heads, fewest[0]), (channels, fewest[1])]

    @cache  # noqa: B019
    def _coefficients(self, held: Held) -> np.ndarray:
        """Coefficients of 1, T and T**2 for each of the four quantities, per sample: (4, 3).

        Where modules have ranks of their own, all that a step costs is linear in each of them (of the largest tensor,
        which no LoRA makes, nothing is): what is counted at rank 1 and what one more rank of each module adds say it
        all, so that ranks that nobody has had before cost no counting.
        """
        if not self._base.by_module(held.ranks):
            return self._recomputed(held)
        coefficients: np.ndarray = self._recomputed(replace(held, ranks=(1,) * self.num_blocks)).copy()
        for block in held.span(self.num_blocks):
            ranks = self._base.ranks_on(block, held.ranks)
            for slope, rank in zip(self._pieces(held).slopes, ranks, strict=True):
                coefficients[:3] += (rank - 1) * slope
        return coefficients

    @cache  # noqa: B019
    def _recomputed(self, held: Held) -> np.ndarray:
        """The coefficients that are counted, and what recomputing blocks adds to them."""
        coefficients, settings = self._counted(held).copy(), self._settings
        recomputes = settings.checkpoint_device if held.on_device else settings.checkpoint_server
        blocks = len(held.span(self.num_blocks))
        if recomputes and blocks:  # while one block is recomputed, its activations are there
            at_once = self._without_recomputing._coefficients(held)
            coefficients[2] += at_once[2] / blocks
            coefficients[3] = at_once[3]
        return coefficients

    @cache  # noqa: B019
    def _counted(self, held: Held) -> np.ndarray:
        """`_coefficients` before anything is recomputed: the sum of the pieces, and the largest of their tensors."""
        if not self._alike:
            return self._whole.counted(held)
        pieces, span = self._pieces(held), held.span(self.num_blocks)
        ranks = held.ranks or (self._settings.lora.rank,) * self.num_blocks
        waits = held.kind == "tail" or (held.kind in ("server", "middle") and any(ranks[: held.cut]))
        parts = [pieces.bottom] if held.kind in ("device", "whole") else [pieces.fed]
        if waits and span:
            parts.append(pieces.shared)
        for block in span:
            parts.append(pieces.block(ranks[block], held.left, waits=waits))
            waits = waits or ranks[block] > 0
        if held.kind in ("server", "tail", "whole"):
            parts.append(pieces.top(waits=waits))
        powers = np.array([[1.0, length, length**2] for length in PROBE_LENGTHS])
        largest = np.linalg.solve(powers, np.max([powers @ part[3] for part in parts], axis=0))
        sums: np.ndarray = np.vstack([np.sum([part[:3] for part in parts], axis=0), largest])
        return sums

    def _pieces(self, held: Held) -> Pieces:
        settings = self._settings
        return self._few[settings.checkpoint_device if held.on_device else settings.checkpoint_server]

    @cached_property
    def _few(self) -> dict[bool, Pieces]:
        """The pieces, by whether blocks are recomputed."""
        wanted = {False, self._settings.checkpoint_device, self._settings.checkpoint_server}
        return {checkpoint: Pieces(self._settings, checkpoint=checkpoint) for checkpoint in wanted}

    @cached_property
    def _alike(self) -> bool:
        """Whether all blocks have the same parameters, and those of the model that pieces are counted on too."""
        few = self._few[False].counter.base
        every = [*_by_block(self._base), *_by_block(few)]
        return few.num_blocks == DEPTH and all(one == every[0] for one in every)

    @cache  # noqa: B019
    def _fixed_bytes(self, held: Held, bytes_each: int = BYTES_PER_TRAINABLE) -> int:
        """Frozen weights, and the trainable tensors: with gradient and moments, or `bytes_each` for each number."""
        return self._frozen_bytes(held) + bytes_each // 4 * self.adapter_bytes(self._names(held), held.ranks, held.left)

    def _frozen_bytes(self, held: Held) -> int:
        if not self._alike:
            return self._whole.frozen_bytes(held)
        ends, block = self._pieces(held).frozen_bytes(held.kind, held.left)
        return ends + len(held.span(self.num_blocks)) * block

    def _names(self, held: Held) -> list[str]:
        """The trainable tensors of a part."""
        base, blocks = self._base, held.blocks
        if held.kind == "device":
            return base.device_names(held.cut, blocks)
        if held.kind == "whole":
            return base.server_names(0, blocks)
        return base.server_names(held.cut, blocks, top=held.end if held.kind == "middle" else None)


def _by_block(base: Base) -> list[dict[str, torch.Size]]:
    """The shapes of each block's parameters, by their names inside the block."""
    blocks: list[dict[str, torch.Size]] = [{} for _ in range(base.num_blocks)]
    for name, shape in base.parameter_shapes.items():
        if (block := base.block_of(PREFIX + name)) is not None:
            blocks[block][name.partition(f".{block}.")[2]] = shape
    return blocks


@dataclass(frozen=True, slots=True)
class ShapedCosts:
    """The costs of steps of one shape of a round: what planners, machines and forecasts ask (`types.Costs`).

    Attributes:
      model: counts what parts cost.
      flow: what a device runs in a local step under its plan.
    """

    model: CostModel
    flow: Callable[[DevicePlan], Flow]

    @property
    def num_blocks(self) -> int:
        """Blocks of the model."""
        return self.model.num_blocks

    @property
    def hidden_size(self) -> int:
        """D: the width of the activations."""
        return self.model.hidden_size

    @property
    def dtype(self) -> torch.dtype:
        """The activations' dtype."""
        return self.model.dtype

    def device(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
        """One step of a device: `num_samples` x `num_tokens`, padding included."""
        return self.model.device(plan, self.flow(plan), num_samples, num_tokens)

    def device_forward(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> float:
        """FLOPs of one forward pass of the device's part, whatever its steps run."""
        return self.model.device(plan, Flow(), num_samples, num_tokens).forward_flops

    def largest_bytes(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> int:
        """The largest tensor of a device's step. See `CostModel.largest_bytes`."""
        return self.model.largest_bytes(plan, self.flow(plan), num_samples, num_tokens)

    def server(self, plan: DevicePlan, num_samples: int, num_tokens: int) -> Cost:
        """The server's step for that device. See `CostModel.server`."""
        return self.model.server(plan, num_samples, num_tokens)

    def activation_bytes(self, num_samples: int, num_tokens: int) -> int:
        """The activations that cross the cut, one way. See `CostModel.activation_bytes`."""
        return self.model.activation_bytes(num_samples, num_tokens)

    def device_adapter_bytes(self, plan: DevicePlan) -> int:
        """The adapter that the device trains, as it is sent."""
        return self.model.device_adapter_bytes(plan, self.flow(plan))

    def server_trainable_bytes(self, plan: DevicePlan) -> int:
        """A server adapter of that device at rest. See `CostModel.server_trainable_bytes`."""
        return self.model.server_trainable_bytes(plan)

    def adapters_on_device(self, plan: DevicePlan) -> int:
        """Number of LoRA layers that a device trains."""
        return self.model.adapters_on_device(plan)


@cache
def cost_model(settings: ModelSettings) -> CostModel:
    """The cost model for these settings, one per process: what was counted once is not counted again."""
    return CostModel(settings)
