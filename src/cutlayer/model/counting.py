"""Counting: FLOPs as torch's formulas have them, memory by what autograd keeps. Nothing is computed.

Parts are built on the meta device and run at three lengths on imagined tensors, which choose the CPU's kernels (fused
attention keeps no T x T matrix) and answer no question about their values (`model/imagined.py`). Per sample, every
quantity of a transformer is a polynomial of the length T, constant (a head on one vector) + linear (projections) +
quadratic (attention), so three lengths fix it exactly and any batch is then one multiplication
(`tests/model/test_cost.py` counts other shapes directly and compares).

Blocks that are alike cost alike, so no more than two of them are ever run, however many the model has, and each piece
once: the embeddings, a block by its rank and by whether its input waits for a gradient, what all blocks share (rotary
tables, a mask), the head. Any part is a sum of these, to the last FLOP and byte (`Pieces`).

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch
from torch import Tensor, nn

from cutlayer.model.base import Base, Blocks
from cutlayer.model.imagined import Imagined
from cutlayer.model.loss import Learned
from cutlayer.model.part import DevicePart, MiddlePart, Part, ServerPart, WholePart
from cutlayer.model.settings import ModelSettings
from cutlayer.model.structure import Left
from cutlayer.reading import TaskKind
from cutlayer.types import Kept, adapted_blocks

PROBE_LENGTHS = (16, 32, 48)
PROBE_SAMPLES = 2
DEPTH = 2
"""Blocks of the model that pieces are counted on: one above another."""


@dataclass(frozen=True, slots=True)
class Counts:
    """The cost of one pass at one shape."""

    forward_flops: float
    backward_flops: float
    kept_bytes: int
    largest_bytes: int


@dataclass(frozen=True, slots=True)
class Held:
    """The part that a machine holds: device-side, server-side or the whole, its cut, the rank on every block, and,
    where it is pruned, how many heads and channels are left in every block.

    A device that keeps its labels holds a `tail` too, from its cut on; the server's is then `middle`, up to `end`.
    What comes into a part above a cut `waits` for a gradient where anything below has an adapter, or where it says so.
    """

    kind: str
    cut: int
    ranks: tuple[int, ...]
    left: Left | None = None
    end: int = 0
    waits: bool = False

    @property
    def blocks(self) -> Blocks:
        return adapted_blocks(self.ranks)

    @property
    def on_device(self) -> bool:
        return self.kind in ("device", "tail")

    def span(self, num_blocks: int) -> range:
        """The blocks that the part holds, of a model of so many."""
        if self.kind == "device":
            return range(self.cut)
        if self.kind == "whole":
            return range(num_blocks)
        return range(self.cut, self.end if self.kind == "middle" else num_blocks)


class Counter:
    """Counts what parts of a model cost by running them whole.

    Args:
      settings: The model; its weights are not read.
      depth: As if it had so many blocks.
    """

    def __init__(self, settings: ModelSettings, depth: int | None = None) -> None:
        self.base = Base(settings, device="meta", depth=depth)
        self._fake = Imagined()

    @cached_property
    def hidden_size(self) -> int:
        """D: the width of the activations."""
        part = self.part(Held("device", 0, ()))
        assert isinstance(part, DevicePart)
        with self._fake:
            return int(part.forward(_inputs(1, 1)).shape[-1])

    @cache  # noqa: B019
    def counted(self, held: Held) -> np.ndarray:
        """Coefficients of 1, T and T**2, per sample, (4, 3): of forward FLOPs, backward FLOPs, kept bytes and the
        largest tensor's."""
        counts = [self.once(held, length) for length in PROBE_LENGTHS]
        values = np.array([[c.forward_flops, c.backward_flops, c.kept_bytes, c.largest_bytes] for c in counts])
        powers = np.array([[1.0, length, length**2] for length in PROBE_LENGTHS])
        coefficients: np.ndarray = np.linalg.solve(powers, values / PROBE_SAMPLES).T
        return coefficients

    def once(self, held: Held, length: int) -> Counts:
        """One step of a part on `PROBE_SAMPLES` texts of this length."""
        part, shapes = self.part(held), self.shapes(held.ranks, held.left)
        width = self.hidden_size  # of a part that is not built while tensors are fake
        with self._fake:
            part.use({name: nn.Parameter(torch.empty(shapes[name])) for name in part.names})
            return self._step(part, held, (PROBE_SAMPLES, length), width)

    def _step(self, part: Part, held: Held, shape: tuple[int, int], width: int) -> Counts:
        return _count(part, self._forward(part, held, shape, width), self._fake)

    def _forward(self, part: Part, held: Held, shape: tuple[int, int], width: int) -> Callable[[], Tensor]:
        labels = _labels(self.base.settings.task, shape)
        if isinstance(part, DevicePart):
            return lambda: part.forward(_inputs(*shape))
        if isinstance(part, WholePart):
            return lambda: part.loss_of(_inputs(*shape), labels)
        assert isinstance(part, ServerPart | MiddlePart)
        trains = held.kind == "tail" or held.waits or bool(self.base.device_names(held.cut, held.blocks))
        h_BTD = torch.zeros(*shape, width, dtype=self.base.dtype, requires_grad=trains)
        mask_BT = torch.ones(shape, dtype=torch.bool)
        if isinstance(part, MiddlePart):
            return lambda: part.forward(h_BTD, mask_BT)
        return lambda: part.loss(h_BTD, mask_BT, labels)

    def frozen_bytes(self, held: Held) -> int:
        """Bytes of the weights that a part holds and does not train, each once, in the form in which it holds them."""
        return sum(p.numel() * p.element_size() for p in self.base.stored_names(self.part(held)).values())

    def shared_bytes(self, one: Held, other: Held) -> int:
        """Bytes of the frozen weights that two parts share: of a head that is tied to the embeddings."""
        stored = [self.base.stored_names(self.part(held)) for held in (one, other)]
        return sum(stored[0][name].numel() * stored[0][name].element_size() for name in stored[0].keys() & stored[1])

    def shapes(self, ranks: tuple[int, ...], left: Left | None) -> dict[str, tuple[int, ...]]:
        """The trainable tensors and their shapes at these ranks, of what is left."""
        shapes = self.base.shapes_of(ranks)
        if left is None:
            return shapes
        return {name: self.base.structure.shape(name, shape, left) for name, shape in shapes.items()}

    def part(self, held: Held) -> Part:
        """The part, on imagined tensors."""
        if held.kind == "server":
            return self._faked(self.base.server_part(held.cut, held.blocks))
        if held.kind == "tail":
            return self._faked(self.base.tail_part(held.cut, held.blocks))
        if held.kind == "middle":
            return self._faked(self.base.middle_part(held.cut, held.end, held.blocks))
        kept = None
        if held.left is not None:
            heads, channels = (tuple(range(units)) for units in held.left)
            kept = Kept((heads,) * self.base.num_blocks, (channels,) * self.base.num_blocks)
        if held.kind == "device":
            return self._faked(self.base.device_part(held.cut, held.blocks, kept))
        return self._faked(self.base.whole(held.blocks) if kept is None else self.base.pruned(kept, held.blocks))

    @cache  # noqa: B019
    def _faked(self, part: Part) -> Part:
        """The part with imagined ones on the CPU where there were tensors on the meta device."""
        with self._fake:
            part.model.to_empty(device="cpu")
        if isinstance(part, WholePart):
            part.device = torch.device("cpu")
        return part


class Pieces:
    """The costs of the pieces of a model of like blocks, each counted once, on a model of `DEPTH` blocks.

    Every piece is a difference of two parts of which one has it: (4, 3) as of `Counter.counted`, but that the largest
    tensor is that of the larger part.

    Args:
      settings: The model.
      checkpoint: Whether blocks are recomputed in the backward pass.
    """

    def __init__(self, settings: ModelSettings, *, checkpoint: bool) -> None:
        self.counter = Counter(replace(settings, checkpoint_device=checkpoint, checkpoint_server=checkpoint), DEPTH)
        self._rank = max(1, settings.lora.rank)

    @cached_property
    def bottom(self) -> np.ndarray:
        """The embeddings."""
        return self._device()

    def block(self, rank: int, left: Left | None, *, waits: bool) -> np.ndarray:
        """A block of this rank: linear in it, from 1 on.

        Args:
          rank: 0 for no adapter.
          left: How many heads and channels it has; None for all.
          waits: Whether its input waits for a gradient. A block that trains while its input does not is the first to
            keep anything, and counts what all blocks share.
        """
        if rank in (0, 1, self._rank):
            return self._block(rank, left, waits)
        at_one, other = self._block(1, left, waits), max(2, self._rank)
        slope = (self._block(other, left, waits) - at_one) / (other - 1)
        return _joined(at_one + (rank - 1) * slope, at_one)

    @cache  # noqa: B019
    def _block(self, rank: int, left: Left | None, waits: bool) -> np.ndarray:
        below = (self._rank,) if waits else ()
        return _above(self._device(*below, rank, left=left), self._device(*below, left=left))

    @cached_property
    def fed(self) -> np.ndarray:
        """The activations that come in above a cut."""
        return self.counter.counted(Held("middle", 0, (1,) * DEPTH, waits=True))

    @cached_property
    def shared(self) -> np.ndarray:
        """The costs that all blocks share, where their input waits for a gradient."""
        ranks = (self._rank,) * DEPTH
        return _above(
            self.counter.counted(Held("middle", 0, ranks, end=1, waits=True)), self.block(self._rank, None, waits=True)
        )

    @cache  # noqa: B019
    def top(self, *, waits: bool) -> np.ndarray:
        """The final norm and the head."""
        return self.counter.counted(Held("server", DEPTH, (int(waits),) * DEPTH))

    @cached_property
    def slopes(self) -> list[np.ndarray]:
        """The increase of the first three quantities by one more rank, (3, 3), for each LoRA module of a block whose
        input waits for a gradient."""
        base = self.counter.base
        ones = (1,) * len(base.modules)
        places = [place for place, name in enumerate(base.modules) if base.block_of(name) == DEPTH - 1]
        at_one = self.counter.counted(Held("device", DEPTH, ones))[:3]

        def one_more(place: int) -> np.ndarray:
            raised = (*ones[:place], 2, *ones[place + 1 :])
            slope: np.ndarray = self.counter.counted(Held("device", DEPTH, raised))[:3] - at_one
            return slope

        return [one_more(place) for place in places]

    @cache  # noqa: B019
    def frozen_bytes(self, kind: str, left: Left | None) -> tuple[int, int]:
        """Bytes of frozen weights: of a part of this kind with no block, and of a block."""
        block = self.counter.frozen_bytes(Held("device", 1, (), left)) - self.counter.frozen_bytes(
            Held("device", 0, ())
        )
        if kind == "whole":
            return self.counter.frozen_bytes(Held("whole", DEPTH, ())) - DEPTH * self.frozen_bytes("device", None)[
                1
            ], block
        return self.counter.frozen_bytes(self.empty(kind)), block

    def empty(self, kind: str) -> Held:
        """A part of this kind that holds no block."""
        return Held(kind, 0 if kind in ("device", "middle") else DEPTH, ())

    def _device(self, *ranks: int, left: Left | None = None) -> np.ndarray:
        """The device-side model of blocks of these ranks."""
        missing = DEPTH - len(ranks)
        return self.counter.counted(Held("device", len(ranks), (*ranks, *(0,) * missing), left if ranks else None))


def _above(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return _joined(one - other, one)


def _joined(sums: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """The quantities that add up, from `sums`, and the largest tensor, from `largest`."""
    joined: np.ndarray = np.vstack([sums[:3], largest[3:]])
    return joined


def _inputs(num_samples: int, num_tokens: int) -> dict[str, Tensor]:
    shape = (num_samples, num_tokens)
    return {
        "input_ids": torch.zeros(shape, dtype=torch.long),
        "attention_mask": torch.ones(shape, dtype=torch.long),
    }


def _labels(task: TaskKind, shape: tuple[int, int]) -> Tensor | Learned:
    """Labels of a batch of which as much is learned as can be: every token has a next one but the last."""
    if task == "classification":
        return torch.zeros(shape[:1], dtype=torch.long)
    targets_N = torch.zeros(shape[0] * (shape[1] - 1), dtype=torch.long)
    return Learned(torch.zeros_like(targets_N), targets_N)


def _count(part: Part, forward: Callable[[], Tensor], fake: Imagined) -> Counts:
    """Runs forward and, where something trains, backward, where tensors are imagined."""
    weights = {_storage(parameter) for parameter in part.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    before = fake.flops
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = forward()
    ahead = fake.flops
    # what the loss of a language model keeps, it turns into its gradient in place
    reused = {_storage(tensor) for tensor in getattr(output.grad_fn, "saved_tensors", ())}
    if output.requires_grad:
        output.backward(torch.empty_like(output))
    others = (size for storage, size in kept.items() if storage not in reused)
    largest = max([*others, output.numel() * output.element_size()])
    return Counts(ahead - before, fake.flops - ahead, sum(kept.values()), largest)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
