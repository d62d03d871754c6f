"""Adapters: the trainable tensors of a model, by the global names of the exported PEFT file.

A LoRA layer is PEFT's own layer. Its factors, and the head's tensors, sit in *slots* of a part; putting an adapter in
swaps the Parameter objects in those slots. Each owner (a device, the server on behalf of a device) has Parameters
of its own, so a graph built with one adapter sends its gradients there even when another was put in meanwhile, and
a swap costs one dictionary assignment per tensor.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from cutlayer.errors import AdapterError
from cutlayer.model.families import Family
from cutlayer.types import Adapter

PREFIX = "base_model.model."
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """LoRA on W: W + (alpha / rank) B A.

    Attributes:
      rank: rows of A, columns of B.
      alpha: the numerator of the scale.
      dropout: on the input of A; 0 is none.
      targets: last parts of the paths of the adapted modules inside the blocks; () is the family's attention
        projections, ("all-linear",) every linear layer of a block.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a part where a trainable tensor sits."""

    name: str
    module: nn.Module
    attribute: str


def target_modules(model: nn.Module, blocks_path: str, family: Family, targets: Sequence[str]) -> dict[str, str]:
    """The linear layers inside the blocks that LoRA adapts: full path -> the target that it matched.

    Args:
      model: The task model, whole or a part.
      blocks_path: Path of the block list from the task model.
      family: For the default targets.
      targets: See `LoraSettings.targets`.
    """
    linear = [
        name
        for name, module in model.named_modules()
        if name.startswith(f"{blocks_path}.") and isinstance(module, (nn.Linear, Conv1D))
    ]
    if tuple(targets) == (ALL_LINEAR,):
        return {name: inside_block(name, blocks_path) for name in linear}
    wanted = tuple(targets) or family.attention
    matched = {name: next((t for t in wanted if name.endswith(f".{t}")), None) for name in linear}
    return {name: target for name, target in matched.items() if target is not None}


def peft_targets(model: nn.Module, blocks_path: str, family: Family, targets: Sequence[str]) -> list[str]:
    """Names by which a PEFT config finds the same modules: PEFT looks in the whole model, not only in its blocks.

    A target that ends a path outside the blocks too (BERT's pooler has a `dense`) is written out, block by block.
    """
    outside = [f".{name}" for name, _ in model.named_modules() if not name.startswith(f"{blocks_path}.")]
    matched = target_modules(model, blocks_path, family, targets)
    taken = {target for target in matched.values() if any(name.endswith(f".{target}") for name in outside)}
    return sorted({path if target in taken else target for path, target in matched.items()})


def check_targets(model: nn.Module, blocks_path: str, family: Family, targets: Sequence[str]) -> None:
    """Raises AdapterError if a target matches nothing in the blocks of the whole model: silence would train less."""
    found = set(target_modules(model, blocks_path, family, targets).values())
    missing = [] if tuple(targets) == (ALL_LINEAR,) else [t for t in targets if t not in found]
    if not missing:
        return
    known = sorted(set(target_modules(model, blocks_path, family, (ALL_LINEAR,)).values()))
    ends = sorted({name.rpartition(".")[2] for name in known})
    guess = get_close_matches(missing[0], [*known, *ends], n=1, cutoff=0.5)
    hint = f"Did you mean {guess[0]!r}?" if guess else "Choose among them, or all-linear."
    raise AdapterError(
        f"lora.targets: expected modules inside the blocks ({', '.join(known)}), got {missing[0]!r}, "
        f"which attaches to none. {hint}"
    )


def inside_block(name: str, blocks_path: str) -> str:
    """`encoder.layer.3.attention.self.query` -> `attention.self.query`."""
    return name.removeprefix(f"{blocks_path}.").partition(".")[2]


def attach_lora(model: nn.Module, modules: Sequence[str], settings: LoraSettings) -> None:
    """Wraps the named modules in PEFT's LoRA layers; the factors stay on the meta device until an adapter is put in."""
    if not modules:
        return  # a part without blocks
    transposed = isinstance(model.get_submodule(modules[0]), Conv1D)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(modules),
        fan_in_fan_out=transposed,
    )
    inject_adapter_in_model(config, model, low_cpu_mem_usage=True)


def find_slots(model: nn.Module, head: Sequence[str]) -> list[Slot]:
    """Every place for a trainable tensor in this part: LoRA factors, and the tensors of the `head` modules."""
    slots = []
    for path, module in model.named_modules():
        in_head = any(path == name or path.startswith(f"{name}.") for name in head)
        for attribute in module._parameters:
            full = f"{path}.{attribute}"
            if module._parameters[attribute] is not None and (in_head or ".lora_" in full):
                slots.append(Slot(PREFIX + full.replace(".default.", "."), module, attribute))
    return slots


def put(adapter: Mapping[str, Tensor], slots: Sequence[Slot]) -> None:
    """Puts an adapter's tensors into the slots of a part. Values that are not Parameters are only for evaluation."""
    for slot in slots:
        tensor = adapter[slot.name]
        if not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        slot.module._parameters[slot.attribute] = tensor


def initial_tensor(name: str, shape: Sequence[int], *, seed: int, std: float) -> Tensor:
    """A fresh trainable tensor, fp32. The draw depends on the seed and the global name only, never on the cut.

    LoRA's A is uniform in +-1/sqrt(fan-in), its B zero (so step 0 is the base model), as in PEFT; a head's weight is
    normal with `std`, its bias zero.
    """
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    if ".lora_A." in name:
        bound = 1 / math.sqrt(shape[1])
        return torch.empty(*shape).uniform_(-bound, bound, generator=generator)
    if ".lora_B." in name or name.endswith("bias"):
        return torch.zeros(*shape)
    return torch.empty(*shape).normal_(0.0, std, generator=generator)


def split_adapter(adapter: Mapping[str, Tensor], names: Sequence[str]) -> Adapter:
    """The part of an adapter that goes by these names."""
    return {name: adapter[name] for name in names}


def shape_at_rank(name: str, shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The shape of a trainable tensor if its LoRA had this rank."""
    if ".lora_A." in name:
        return (rank, *shape[1:])
    if ".lora_B." in name:
        return (shape[0], rank)
    return shape


def at_rank(name: str, tensor: Tensor, rank: int) -> Tensor:
    """The first `rank` rows of an A, columns of a B; any other tensor as it is.

    One scale, the run's alpha over the run's rank, holds for every rank (docs/decisions/0009-one-scale.md), so what
    is left of a factor means what it meant.
    """
    if ".lora_A." in name:
        return tensor[:rank]
    if ".lora_B." in name:
        return tensor[:, :rank].contiguous()
    return tensor
