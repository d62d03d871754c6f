"""What one step of a part costs, counted and not assumed: FLOPs by torch's counter, memory by what autograd keeps.

Nothing is computed: parts are built on the meta device and run at three lengths on fake tensors, which choose the
CPU's kernels (fused attention keeps no T x T matrix) and answer no question about their values. Per sample, every
quantity of a transformer is a polynomial of the length T, constant (a head on one vector) + linear (projections) +
quadratic (attention), so three lengths fix it exactly and any batch is then one multiplication
(`tests/model/test_cost.py` counts other shapes directly and compares).

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import groupby

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from cutlayer.model.adapter import PREFIX
from cutlayer.model.base import Base, Blocks, ModelSettings
from cutlayer.model.part import DevicePart, MiddlePart, Part, ServerPart, WholePart
from cutlayer.model.structure import Left
from cutlayer.types import Batch, Cost, DevicePlan, Flow, Kept, adapted_blocks

PROBE_LENGTHS = (16, 32, 48)
PROBE_SAMPLES = 2
BYTES_PER_TRAINABLE = 16
"""fp32 value, gradient and AdamW's two moments."""
VALUE_BYTES = 4
"""fp32, where nothing is kept for a backward pass."""
TRANSIENTS = 2
"""Tensors as large as the largest one alive at the peak that no graph keeps: an input and an output of one operator."""
HEAP_SLACK = 1.25
"""What comes and goes takes this much more of the heap than it has bytes: a middle course. Where every tensor is mapped
on its own it is 1.0; glibc's heap keeps holes that no tensor fits (`tests/model/test_cost_memory.py` measures both)."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What one pass at one shape cost."""

    forward_flops: float
    backward_flops: float
    kept_bytes: int
    largest_bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """What a machine holds: device-side, server-side or the whole, its cut, the rank on every block, and, of a whole
    that is pruned, how many heads and channels are left in every block.

    A device that keeps its labels holds a `tail` too, from its cut on; the server's is then `middle`, up to `end`.
    """

    kind: str
    cut: int
    ranks: tuple[int, ...]
    left: Left | None = None
    end: int = 0

    @property
    def blocks(self) -> Blocks:
        return adapted_blocks(self.ranks)

    @property
    def on_device(self) -> bool:
        return self.kind in ("device", "tail")

    def num_blocks(self, of_model: int) -> int:
        """How many blocks it holds of a model of so many."""
        first, end = {"device": (0, self.cut), "middle": (self.cut, self.end), "whole": (0, of_model)}.get(
            self.kind, (self.cut, of_model)
        )
        return end - first


class CostModel:
    """Costs of device-side and server-side steps at any cut and batch shape.

    Args:
      settings: The model; its weights are not read.
    """

    def __init__(self, settings: ModelSettings) -> None:
        self._base = Base(settings, device="meta")
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
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
        stored = [self._base.stored_names(self._part(held)) for held in (one, other)]
        return sum(stored[0][name].numel() * stored[0][name].element_size() for name in stored[0].keys() & stored[1])

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
        shapes = self._shapes(ranks, left)
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

    @cached_property
    def hidden_size(self) -> int:
        """D: the width of the activations."""
        part = self._part(Held("device", 0, ()))
        assert isinstance(part, DevicePart)
        with self._fake:
            return int(part.forward(_inputs(1, 1)).shape[-1])

    @cached_property
    def _without_recomputing(self) -> CostModel:
        return CostModel(replace(self._settings, checkpoint_device=False, checkpoint_server=False))

    def _part(self, held: Held) -> Part:
        if held.kind == "server":
            return self._faked(self._base.server_part(held.cut, held.blocks))
        if held.kind == "tail":
            return self._faked(self._base.tail_part(held.cut, held.blocks))
        if held.kind == "middle":
            return self._faked(self._base.middle_part(held.cut, held.end, held.blocks))
        kept = None
        if held.left is not None:
            heads, channels = (tuple(range(units)) for units in held.left)
            kept = Kept((heads,) * self.num_blocks, (channels,) * self.num_blocks)
        if held.kind == "device":
            return self._faked(self._base.device_part(held.cut, held.blocks, kept))
        return self._faked(self._base.whole(held.blocks) if kept is None else self._base.pruned(kept, held.blocks))

    def _left(self, flow: Flow) -> Left | None:
        """How many heads and channels are left in every block; None for all of them."""
        return self._base.structure.left(flow.removed) if flow.removed else None

    def _shapes(self, ranks: tuple[int, ...], left: Left | None) -> dict[str, tuple[int, ...]]:
        shapes = self._base.shapes_of(ranks)
        if left is None:
            return shapes
        return {name: self._base.structure.shape(name, shape, left) for name, shape in shapes.items()}

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
    def _faked(self, part: Part) -> Part:
        """The part with fake tensors on the CPU where there were tensors on the meta device."""
        with self._fake:
            part.model.to_empty(device="cpu")
        if isinstance(part, WholePart):
            part.device = torch.device("cpu")
        return part

    @cache  # noqa: B019
    def _coefficients(self, held: Held) -> np.ndarray:
        """(4, 3): per quantity the coefficients of 1, T and T**2, per sample.

        Where modules have ranks of their own, all that a step costs is linear in each of them (of the largest tensor,
        which no LoRA makes, nothing is): what is counted at rank 1 and what one more rank of each module adds say it
        all, so that ranks that nobody has had before cost no counting.
        """
        if not self._base.by_module(held.ranks):
            return self._recomputed(held)
        first, end = {"device": (0, held.cut), "server": (held.cut, self.num_blocks)}.get(
            held.kind, (0, self.num_blocks)
        )
        coefficients: np.ndarray = self._recomputed(replace(held, ranks=(1,) * self.num_blocks)).copy()
        for block in range(first, end):
            ranks = self._base.ranks_on(block, held.ranks)
            for slope, rank in zip(self._slopes(held.kind), ranks, strict=True):
                coefficients[:3] += (rank - 1) * slope
        return coefficients

    @cache  # noqa: B019
    def _slopes(self, kind: str) -> list[np.ndarray]:
        """Of each LoRA module of a block, (3, 3): what one more rank adds to the first three quantities.

        They are those of a block whose input waits for a gradient, where there is one. In the lowest block, a module
        that reads the embeddings takes no such gradient, and costs as much less.
        """
        cut = self.num_blocks - 1 if kind == "server" else min(2, self.num_blocks)
        block = self.num_blocks - 1 if kind == "server" else cut - 1
        places = [place for place, name in enumerate(self._base.modules) if self._base.block_of(name) == block]
        ones = (1,) * len(self._base.modules)
        held = Held("server" if kind == "server" else "device", cut, ones)
        at_one = self._recomputed(held)[:3]

        def one_more(place: int) -> np.ndarray:
            raised = (*ones[:place], 2, *ones[place + 1 :])
            slope: np.ndarray = self._recomputed(replace(held, ranks=raised))[:3] - at_one
            return slope

        return [one_more(place) for place in places]

    @cache  # noqa: B019
    def _recomputed(self, held: Held) -> np.ndarray:
        """What is counted, and what recomputing blocks needs."""
        coefficients, settings = self._counted(held).copy(), self._settings
        recomputes = settings.checkpoint_device if held.on_device else settings.checkpoint_server
        blocks = held.num_blocks(self.num_blocks)
        if recomputes and blocks:  # while one block is recomputed, its activations are there
            coefficients[2] += self._without_recomputing._coefficients(held)[2] / blocks
        return coefficients

    @cache  # noqa: B019
    def _counted(self, held: Held) -> np.ndarray:
        """`_coefficients` before anything is recomputed.

        Blocks that are alike cost alike, so only parts of few blocks are run: what more of them cost lies on a line
        with two and three, and the whole is the embeddings and a server that holds every block. The largest tensor is
        the same however many there are.
        """
        spelled = self._spelled(held)
        if spelled != held:
            return self._counted(spelled)
        if held.kind == "whole" and held.left is None:
            bottom, top = (self._counted(Held(kind, 0, held.ranks)) for kind in ("device", "server"))
            return np.vstack([bottom[:3] + top[:3], top[3:]])
        run = self._longest_run(held)
        if run is None:
            part = self._part(held)
            return self._fit(part, self._probe(part, held), self._shapes(held.ranks, held.left))
        two, three = (self._counted(self._with_run(held, run, length)) for length in (2, 3))
        return np.vstack([two[:3] + (run[1] - 2) * (three[:3] - two[:3]), three[3:]])

    def _spelled(self, held: Held) -> Held:
        """The same with a rank for every block, and of blocks that are not held no more than whether any trains."""
        if held.left is not None or len(held.ranks) not in (0, self.num_blocks):
            return held
        ranks = held.ranks or (self._settings.lora.rank,) * self.num_blocks
        others = self.num_blocks - held.cut
        if held.kind == "device":
            return replace(held, ranks=(*ranks[: held.cut], *(0,) * others))
        if held.kind == "server":
            return replace(held, ranks=((int(any(ranks[: held.cut])),) * held.cut) + ranks[held.cut :])
        return replace(held, ranks=ranks)

    def _longest_run(self, held: Held) -> tuple[int, int] | None:
        """The longest run of more than three blocks of one rank, in a part that may have fewer: where, how long."""
        shortens = held.kind in ("device", "server") and held.left is None
        if not shortens or len(held.ranks) != self.num_blocks or not self._alike:
            return None
        first, end = (0, held.cut) if held.kind == "device" else (held.cut, self.num_blocks)
        runs, start = [], first
        for _, blocks in groupby(held.ranks[first:end]):
            length = len(list(blocks))
            runs.append((start, length))
            start += length
        longest = max(runs, key=lambda run: run[1], default=(0, 0))
        return longest if longest[1] > 3 else None

    def _with_run(self, held: Held, run: tuple[int, int], length: int) -> Held:
        """The part with so many blocks in place of that run."""
        first, fewer = run[0], run[1] - length
        if held.kind == "device":
            own = held.ranks[:first] + held.ranks[first + fewer : held.cut]
            return Held("device", held.cut - fewer, own + (0,) * (self.num_blocks - len(own)))
        own = held.ranks[held.cut : first] + held.ranks[first + fewer :]
        below = held.ranks[0] if held.cut else 0
        return Held("server", held.cut + fewer, (below,) * (held.cut + fewer) + own)

    @cached_property
    def _alike(self) -> bool:
        """Whether all blocks have the same parameters."""
        shapes: dict[int, dict[str, torch.Size]] = {}
        for name, parameter in self._base.whole().model.named_parameters():
            if (block := self._base.block_of(PREFIX + name)) is not None:
                shapes.setdefault(block, {})[name.partition(f".{block}.")[2]] = parameter.shape
        return all(one == shapes[0] for one in shapes.values())

    def _probe(self, part: Part, held: Held) -> Callable[[int], Counts]:
        """One step of this part on `PROBE_SAMPLES` texts of the given length."""
        classes, hidden_size = self._settings.task == "classification", self.hidden_size

        def step(length: int) -> Counts:
            shape = (PROBE_SAMPLES, length)
            labels = torch.zeros(shape[:1] if classes else shape, dtype=torch.long)
            if isinstance(part, DevicePart):
                return _count(part, lambda: part.forward(_inputs(*shape)))
            if isinstance(part, WholePart):
                ids_BT, mask_BT = _inputs(*shape).values()
                batch = Batch(ids_BT, mask_BT, labels, token_type_ids_BT=None, indices=(), weight=1)
                return _count(part, lambda: part.loss(batch))
            assert isinstance(part, ServerPart | MiddlePart)
            trains = held.kind == "tail" or bool(self._base.device_names(held.cut, held.blocks))
            h_BTD = torch.zeros(*shape, hidden_size, dtype=self._base.dtype, requires_grad=trains)
            mask_BT = torch.ones(shape, dtype=torch.bool)
            if isinstance(part, MiddlePart):
                return _count(part, lambda: part.forward(h_BTD, mask_BT))
            return _count(part, lambda: part.loss(h_BTD, mask_BT, labels))

        return step

    def _fit(self, part: Part, step: Callable[[int], Counts], shapes: dict[str, tuple[int, ...]]) -> np.ndarray:
        """(4, 3): per quantity the coefficients of 1, T and T**2, per sample."""
        with self._fake:
            part.use({name: nn.Parameter(torch.empty(shapes[name])) for name in part.names})
            counts = [step(length) for length in PROBE_LENGTHS]
        values = np.array([[c.forward_flops, c.backward_flops, c.kept_bytes, c.largest_bytes] for c in counts])
        powers = np.array([[1.0, length, length**2] for length in PROBE_LENGTHS])
        coefficients: np.ndarray = np.linalg.solve(powers, values / PROBE_SAMPLES).T
        return coefficients

    @cache  # noqa: B019
    def _fixed_bytes(self, held: Held, bytes_each: int = BYTES_PER_TRAINABLE) -> int:
        """Frozen weights, and the trainable tensors: with gradient and moments, or `bytes_each` for each number."""
        part, shapes = self._part(held), self._shapes(held.ranks, held.left)
        frozen = sum(p.numel() * p.element_size() for p in self._base.stored_names(part).values())
        return frozen + bytes_each * sum(int(np.prod(shapes[name])) for name in part.names)


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


def _attention(*shapes: torch.Size, **_: object) -> int:
    return int(sdpa_flop_count(*shapes[:3]))


def _attention_backward(*shapes: torch.Size, **_: object) -> int:
    return int(sdpa_backward_flop_count(*shapes[:4]))


FUSED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""The CPU's kernels, for which torch's counter has no formula."""


def _inputs(num_samples: int, num_tokens: int) -> dict[str, Tensor]:
    shape = (num_samples, num_tokens)
    return {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.ones(shape, dtype=torch.long),
    }


def _count(part: Part, forward: Callable[[], Tensor]) -> Counts:
    """Runs forward and, where something trains, backward, within a fake mode."""
    weights = {_storage(parameter) for parameter in part.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as ahead,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        output = forward()
    # what the loss of a language model keeps, it turns into its gradient in place
    reused = {_storage(tensor) for tensor in getattr(output.grad_fn, "saved_tensors", ())}
    back_flops = 0.0
    if output.requires_grad:
        with FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as back:
            output.backward(torch.empty_like(output))
        back_flops = float(back.get_total_flops())
    others = (size for storage, size in kept.items() if storage not in reused)
    largest = max([*others, output.numel() * output.element_size()])
    return Counts(float(ahead.get_total_flops()), back_flops, sum(kept.values()), largest)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
