"""Units that can be removed from a block: attention heads and FFN channels, with every row and column that is theirs.

    unit        rows of (what makes it)         columns of (what takes it)
    head        queries, keys, values           attention's output projection
    channel     FFN inputs (up; gate and up)    FFN's output projection

Heads that share a key and a value go together. The hidden width stays whole, so residual streams, norms, embeddings
and heads of the task know nothing of it. Removing is real: a pruned part has smaller matrices, and LoRA's B loses the
same rows, its A the same columns. Which modules these are is in the family's row (`families.py`); how many units there
are is read from the shapes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cutlayer.errors import ConfigError, MalformedMessage
from cutlayer.model.adapter import PREFIX
from cutlayer.model.families import Family
from cutlayer.types import Adapter, Kept

HEADS, CHANNELS = "heads", "channels"
KEPT, IMPORTANCE = "kept/", "importance/"
Left = tuple[int, int]
"""Heads and channels that are left in every block."""


@dataclass(frozen=True, slots=True)
class Member:
    """A matrix that has rows or columns of every unit of a group.

    Attributes:
      path: inside the block.
      group: heads or channels.
      makes: whether units are its outputs, else its inputs.
      sections: along that side, widths that are each divided among the units: one, or three where queries, keys and
        values are made by one projection.
      transposed: whether the matrix is stored as (inputs, outputs).
    """

    path: str
    group: str
    makes: bool
    sections: tuple[int, ...]
    transposed: bool

    def axis(self, attribute: str) -> int | None:
        """The axis of its tensor of this name along which units lie; None for one that they do not touch."""
        if self.makes:
            return {"weight": int(self.transposed), "weight_scale": 0, "bias": 0, "lora_B.weight": 0}.get(attribute)
        return {"weight": int(not self.transposed), "lora_A.weight": 1}.get(attribute)

    def indices(self, units: Sequence[int], count: int) -> Tensor:
        """The places of these units, of `count` in all, along the axis, in order."""
        chosen, start, found = torch.tensor(units), 0, []
        for width in self.sections:
            each = width // count
            found.append(start + (chosen[:, None] * each + torch.arange(each)).flatten())
            start += width
        return torch.cat(found)

    def unit_sums(self, values: Tensor, num_left: int, count: int) -> Tensor:
        """Sums along the axis of a pruned matrix, by unit that is left: (left,) of (left * rows per unit,)."""
        sections = values.split([num_left * (width // count) for width in self.sections])
        return torch.stack([section.view(num_left, -1).sum(1) for section in sections]).sum(0)


class Structure:
    """The units of a model's blocks, all alike.

    Args:
      model: the unpruned task model, on any device.
      blocks_path: path of the block list.
      family: its row.

    Attributes:
      num_blocks: blocks of the model.
      counts: units of each group in a block.
      members: the matrices that have units, by their path inside a block.

    Raises:
      ConfigError: The family's row does not say where units are.
    """

    def __init__(self, model: nn.Module, blocks_path: str, family: Family) -> None:
        self._family, self._blocks_path = family, blocks_path
        blocks = model.get_submodule(blocks_path)
        assert isinstance(blocks, nn.ModuleList)
        self.num_blocks = len(blocks)
        config: Any = model.config
        num_heads = int(config.num_attention_heads)
        key_values = int(getattr(config, "num_key_value_heads", None) or num_heads)
        described = {
            HEADS: (family.qkv, family.attention_output),
            CHANNELS: (family.ffn_inputs, family.ffn_output),
        }
        layers = {path: self._layer(blocks[0], path) for made, taken in described.values() for path in (*made, taken)}
        width = {path: _sizes(layer) for path, layer in layers.items()}
        self.counts = {HEADS: key_values, CHANNELS: width[family.ffn_output][0]}
        self.members: dict[str, Member] = {}
        for group, (made, taken) in described.items():
            for path in (*made, taken):
                inputs, outputs = width[path]
                size = inputs if path == taken else outputs
                sections = self._sections(group, size, width[taken][0], fused=path != taken and len(made) == 1)
                transposed = isinstance(layers[path], Conv1D)
                self.members[path] = Member(path, group, path != taken, sections, transposed)
        self._pattern = re.compile(
            re.escape(f"{blocks_path}.") + r"(\d+)\.(.+?)\.(weight|weight_scale|bias|lora_[AB]\.weight)$"
        )

    def _layer(self, block: nn.Module, path: str) -> nn.Module:
        layer = dict(block.named_modules()).get(path)
        if not isinstance(layer, nn.Linear | Conv1D):
            raise ConfigError(
                "method.name: expected a family whose row in cutlayer/model/families.py says what pruning needs "
                "(qkv, attention_output, ffn_inputs, ffn_output, head_counts, head_width, ffn_width), got "
                f"{self._family.name}, whose blocks have no linear layer {path!r}. Complete the row "
                "(docs/adding-a-family.md), or choose another method."
            )
        return layer

    def _sections(self, group: str, size: int, taken: int, *, fused: bool) -> tuple[int, ...]:
        """The widths that one side of a matrix is made of; `taken` is what the heads or channels give together."""
        if not fused or size == taken:
            return (size,)
        if group == HEADS:
            return (taken, (size - taken) // 2, (size - taken) // 2)
        return (taken,) * (size // taken)

    # ------------------------------------------------------------------ which units

    @property
    def everything(self) -> Kept:
        """Nothing removed."""
        heads, channels = (tuple(range(self.counts[group])) for group in (HEADS, CHANNELS))
        return Kept((heads,) * self.num_blocks, (channels,) * self.num_blocks)

    def lowest(self, num_blocks: int) -> Kept:
        """The units of the lowest blocks alone, nothing of them removed."""
        everything = self.everything
        return Kept(everything.heads[:num_blocks], everything.channels[:num_blocks])

    def with_the_rest(self, kept: Kept) -> Kept:
        """The units that are left of the lowest blocks, and all of the blocks above."""
        everything, num_blocks = self.everything, len(kept.heads)
        return Kept((*kept.heads, *everything.heads[num_blocks:]), (*kept.channels, *everything.channels[num_blocks:]))

    def left(self, ratio: float) -> Left:
        """Numbers of heads and channels of every block that are left at this pruning ratio: never fewer than one.

        Args:
          ratio: the share to remove; what it asks of whole units is rounded down.
        """
        heads, channels = (max(1, n - int(ratio * n + 1e-9)) for n in (self.counts[HEADS], self.counts[CHANNELS]))
        return heads, channels

    def count(self, unit_name: str) -> int:
        """Units of this name in the unpruned model."""
        return self.counts[unit_name.partition(".")[2]]

    def matrices(self, unit_name: str) -> Iterator[tuple[str, Member]]:
        """The matrices that have units of this name (`units_by_name`): full path and member."""
        block, _, group = unit_name.partition(".")
        for path, member in self.members.items():
            if member.group == group:
                yield f"{self._blocks_path}.{block}.{path}", member

    def check_adapted(self, adapted: Iterable[str]) -> None:
        """Raises ConfigError unless every matrix that can be pruned has LoRA: importance is read from its gradients.

        Args:
          adapted: paths of the adapted modules, inside a block.
        """
        missing = sorted(self.members.keys() - set(adapted))
        if missing:
            raise ConfigError(
                "lora.targets: expected LoRA on every matrix that is pruned, by whose gradients it is scored, "
                f"got none on {', '.join(missing)}. Set lora.targets=[all-linear], or method.prune=0."
            )

    # ------------------------------------------------------------------ slicing

    def where(self, path: str, kept: Kept) -> tuple[int, Tensor] | None:
        """The axis of a tensor along which units are, and the positions that are kept; None if all of it is.

        Args:
          path: the tensor's name, a parameter's of the model or a trainable one's.
          kept: the units that are left.
        """
        found = self._find(path)
        if found is None:
            return None
        block, member, axis = found
        units = (kept.heads if member.group == HEADS else kept.channels)[block]
        count = self.counts[member.group]
        return None if len(units) == count else (axis, member.indices(units, count))

    def slice(self, path: str, tensor: Tensor, kept: Kept) -> Tensor:
        """The part that is left of a tensor: the tensor itself where nothing of it is removed, else a copy."""
        place = self.where(path, kept)
        return tensor if place is None else tensor.index_select(place[0], place[1].to(tensor.device))

    def slice_all(self, adapter: Mapping[str, Tensor], kept: Kept) -> Adapter:
        """`slice` on every tensor of an adapter."""
        return {name: self.slice(name, tensor, kept) for name, tensor in adapter.items()}

    def shape(self, path: str, shape: tuple[int, ...], left: Left) -> tuple[int, ...]:
        """The shape of a tensor if this many heads and channels were left in its block."""
        found = self._find(path)
        if found is None:
            return shape
        _, member, axis = found
        count, num_left = self.counts[member.group], left[member.group == CHANNELS]
        return (*shape[:axis], shape[axis] // count * num_left, *shape[axis + 1 :])

    def _find(self, path: str) -> tuple[int, Member, int] | None:
        match = self._pattern.match(path.removeprefix(PREFIX))
        member = self.members.get(match[2]) if match else None
        axis = member.axis(match[3]) if match and member else None
        return None if match is None or member is None or axis is None else (int(match[1]), member, axis)

    def shrink(self, model: nn.Module, kept: Kept) -> None:
        """Makes the matrices of a model on the meta device as small as what is left; values come later."""
        for name, _ in units_by_name(kept):
            for path, member in self.matrices(name):
                self._shrink_layer(path, model.get_submodule(path), member, kept)
        for block, heads in enumerate(kept.heads):
            self._count_heads(model.get_submodule(f"{self._blocks_path}.{block}"), len(heads))

    def _shrink_layer(self, path: str, layer: Any, member: Member, kept: Kept) -> None:
        for attribute in ("weight", "bias"):
            if getattr(layer, attribute) is not None:
                tensor = self.slice(f"{path}.{attribute}", getattr(layer, attribute).detach(), kept)
                setattr(layer, attribute, nn.Parameter(tensor, requires_grad=False))
        inputs, outputs = _sizes_of_weight(layer.weight, member.transposed)
        if member.transposed:
            layer.nx, layer.nf = inputs, outputs
        else:
            layer.in_features, layer.out_features = inputs, outputs

    def _count_heads(self, block: nn.Module, num_left: int) -> None:
        """Sets what attention's forward counts its heads by."""
        attention: Any = block.get_submodule(self._family.qkv[0].rpartition(".")[0])
        for name in self._family.head_counts:
            owner, attribute = attention, name.removeprefix("config.")
            if attribute != name:
                owner = attention.config = copy.copy(attention.config)  # the other blocks have the model's
            setattr(owner, attribute, getattr(owner, attribute) // self.counts[HEADS] * num_left)

    # ------------------------------------------------------------------ as tensors

    def to_tensors(self, kept: Kept, importance: Adapter) -> Adapter:
        """A structure and the importance of every unit, as a checkpoint and the wire hold them.

        `kept/<block>.heads` and `kept/<block>.channels` are int32 indices; `importance/...` of the same names are fp32,
        absent where there is no importance yet.
        """
        kept_tensors = {f"{KEPT}{name}": torch.tensor(u, dtype=torch.int32) for name, u in units_by_name(kept)}
        return kept_tensors | {f"{IMPORTANCE}{name}": scores for name, scores in importance.items()}

    def from_tensors(self, tensors: Mapping[str, Tensor], sender: str) -> tuple[Kept, Adapter]:
        """The structure and the importance that `to_tensors` made.

        Args:
          tensors: Of `to_tensors`.
          sender: Who made them, for the error.

        Raises:
          MalformedMessage: They are none of this model's.
        """
        names = [name for name, _ in units_by_name(self.everything)]
        kept, importance = (
            {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            for prefix in (KEPT, IMPORTANCE)
        )
        for found in (kept, importance or kept):
            if sorted(found) != sorted(names):
                raise _malformed(sender, f"the units of {self.num_blocks} blocks", sorted(found))
        for name, scores in importance.items():
            if tuple(scores.shape) != (self.count(name),) or scores.dtype is not torch.float32:
                raise _malformed(sender, f"{self.count(name)} fp32 scores of {name}", list(scores.shape))
        units = {name: self._units(name, tensor, sender) for name, tensor in kept.items()}
        heads, channels = (
            tuple(units[f"{block}.{group}"] for block in range(self.num_blocks)) for group in (HEADS, CHANNELS)
        )
        return Kept(heads, channels), importance

    def _units(self, name: str, tensor: Tensor, sender: str) -> tuple[int, ...]:
        units = tensor.tolist() if tensor.dim() == 1 and tensor.dtype is torch.int32 else []
        if not units or units != sorted(set(units)) or units[0] < 0 or units[-1] >= self.count(name):
            raise _malformed(sender, f"{name} to be ascending int32 below {self.count(name)}, at least one", units)
        return tuple(units)


def units_by_name(kept: Kept) -> Iterator[tuple[str, tuple[int, ...]]]:
    """`<block>.heads` and `<block>.channels` with the units that are left there."""
    for block, (heads, channels) in enumerate(zip(kept.heads, kept.channels, strict=True)):
        yield f"{block}.{HEADS}", heads
        yield f"{block}.{CHANNELS}", channels


def _sizes(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return _sizes_of_weight(weight, isinstance(layer, Conv1D))


def _sizes_of_weight(weight: Tensor, transposed: bool) -> tuple[int, int]:
    first, second = weight.shape
    return (first, second) if transposed else (second, first)


def _malformed(sender: str, expected: str, got: object) -> MalformedMessage:
    return MalformedMessage(
        f"device {sender}, its structure: expected {expected}, got {got}. Do both ends run one version and one model?"
    )
