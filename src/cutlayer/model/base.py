"""One frozen base model in this process, and the parts that are cut from it.

`Base` builds a part by making the task model on the meta device, cutting it, attaching LoRA and assigning the
tensors that it still holds. The tensors come from one `Weights`, so all parts share their storage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from cutlayer.errors import ConfigError, ModelError
from cutlayer.model.adapter import (
    PREFIX,
    at_rank,
    attach_lora,
    check_targets,
    find_slots,
    initial_tensor,
    inside_block,
    peft_targets,
    shape_at_rank,
    target_modules,
)
from cutlayer.model.classes import in_the_heads_order, why_drawn_anew
from cutlayer.model.cut import check_cut, check_paths, keep_device_side, keep_server_side
from cutlayer.model.folds import by_number
from cutlayer.model.low_rank import factor_names
from cutlayer.model.part import DevicePart, MiddlePart, Part, ServerPart, WholePart
from cutlayer.model.pooling import FRESH_POOLER_STD
from cutlayer.model.quantised import SCALE, Form, forms_of, quantise
from cutlayer.model.settings import ModelSettings
from cutlayer.model.skeleton import BUILDING, Skeletons, backbone_of
from cutlayer.model.source import ModelFiles, Weights
from cutlayer.model.standing import Standing
from cutlayer.model.structure import Structure
from cutlayer.types import Adapter, Kept

Blocks = frozenset[int] | None
"""The blocks that have an adapter; None for all of them."""


class Base:
    """The frozen base model of this process, and the factory of its parts.

    Args:
      settings: What the run says of the model.
      device: Where tensors live and arithmetic happens; `meta` makes parts without reading any weight.
      depth: As if the model had so many blocks; None for those that it has.

    Raises:
      ModelError: The model's files or architecture do not serve.
      AdapterError: The LoRA targets attach to nothing.
    """

    def __init__(
        self, settings: ModelSettings, device: torch.device | str = "cpu", *, depth: int | None = None
    ) -> None:
        self.settings = settings
        self.device = torch.device(device)
        self.files = ModelFiles(settings.name, settings.revision)
        self.dtype = settings.computes_in
        self._skeletons = Skeletons(settings, self.files, self.device, depth)
        self.config, self.family = self._skeletons.config, self._skeletons.family
        self.pooling, self.trained_heads = self._skeletons.pooling, self._skeletons.trained_heads
        skeleton = self._skeletons.make()
        self._prefix: str = skeleton.base_model_prefix
        check_paths(skeleton, backbone_of(skeleton), self.family)
        self._blocks = f"{self._prefix}.{self.family.blocks}"
        self.num_blocks = len(skeleton.get_submodule(self._blocks))
        self._ties = _ties(skeleton)
        if self._ties and self._has_own_head():
            self.config.tie_word_embeddings = False
            skeleton, self._ties = self._skeletons.make(), {}
        self.parameter_shapes = {name: value.shape for name, value in skeleton.named_parameters()}
        self.parameter_names = [name for name in self.parameter_shapes if name not in self._ties]
        kind = settings.quantised
        tables = [f"{self._prefix}.{path}" for path in (self.family.embeddings, *self.family.positions)]
        self.forms = forms_of(skeleton, kind, self._blocks, self.trained_heads, tables) if kind else {}
        self.weights = self._weights(self.forms)
        check_targets(skeleton, self._blocks, self.family, settings.lora.targets)
        self.target_names = peft_targets(skeleton, self._blocks, self.family, settings.lora.targets)
        self._skeletons.pool(skeleton)
        self._block_pattern = re.compile(re.escape(f"{PREFIX}{self._blocks}.") + r"(\d+)\.")
        self.shapes = self._trainable_shapes(skeleton)
        self._folded: dict[str, int] = {}
        self._standing: Standing | None = None
        self._device_parts: dict[tuple[int, Blocks], DevicePart] = {}
        self._upper_parts: dict[tuple[int, Blocks, bool], ServerPart] = {}
        self._middle_parts: dict[tuple[int, int, Blocks], MiddlePart] = {}
        self._wholes: dict[Blocks, WholePart] = {}
        self._pruned: tuple[tuple[Kept, Blocks], WholePart] | None = None
        self._pruned_device_parts: dict[int, tuple[tuple[Kept, frozenset[int]], DevicePart]] = {}

    def device_part(self, cut: int, blocks: Blocks = None, kept: Kept | None = None) -> DevicePart:
        """Embeddings and blocks `[0, cut)`; parts that hold the same are one object.

        Args:
          cut: Blocks on the device.
          blocks: Which blocks of the model have an adapter; None for all. Backward ends at the lowest of them.
          kept: What is left of each block, as of `pruned`; None for all of it. Of the pruned parts of one cut, only the
            last that was asked for is kept.

        Raises:
          ConfigError: This model or these LoRA targets cannot be pruned.
        """
        check_cut(cut, self.num_blocks)
        adapted = self._adapted(blocks, 0, cut)
        if kept is not None and kept != self.structure.everything:
            known = self._pruned_device_parts.get(cut)
            if known is None or known[0] != (kept, adapted):
                self._pruned_device_parts.pop(cut, None)  # before its successor is there
                known = (kept, adapted), self._device_part(cut, adapted, kept)
                self._pruned_device_parts[cut] = known
            return known[1]
        if (cut, adapted) not in self._device_parts:
            self._device_parts[cut, adapted] = self._device_part(cut, adapted, None)
        return self._device_parts[cut, adapted]

    def _device_part(self, cut: int, adapted: frozenset[int], kept: Kept | None) -> DevicePart:
        model = self._skeletons.make(checkpoint=self.settings.checkpoint_device)
        if kept is not None:
            self.structure.shrink(model, kept)
        keep_device_side(model, backbone_of(model), self.family, cut)
        self._finish(model, adapted, kept)
        return DevicePart(model, backbone_of(model), find_slots(model, ()))

    def server_part(self, cut: int, blocks: Blocks = None) -> ServerPart:
        """Blocks `[cut, L)` and the head; parts that hold the same are one object. See `device_part`."""
        return self._upper(cut, blocks, checkpoint=self.settings.checkpoint_server)

    def tail_part(self, top: int, blocks: Blocks = None) -> ServerPart:
        """Blocks `[top, L)` and the head, on a device that keeps its labels. See `device_part`."""
        return self._upper(top, blocks, checkpoint=self.settings.checkpoint_device)

    def _upper(self, first: int, blocks: Blocks, *, checkpoint: bool) -> ServerPart:
        check_cut(first, self.num_blocks)
        key = (first, self._adapted(blocks, first, self.num_blocks), checkpoint)
        if key not in self._upper_parts:
            model = self._skeletons.make(checkpoint=checkpoint)
            feed = keep_server_side(backbone_of(model), self.family, first, self.num_blocks, self.dtype)
            self._skeletons.pool(model)
            self._finish(model, key[1])
            slots = find_slots(model, self.trained_heads)
            self._upper_parts[key] = ServerPart(model, feed, slots)
        return self._upper_parts[key]

    def middle_part(self, first: int, end: int, blocks: Blocks = None) -> MiddlePart:
        """Blocks `[first, end)`; parts that hold the same are one object. See `device_part`."""
        check_cut(end, self.num_blocks)
        check_cut(first, end)
        key = (first, end, self._adapted(blocks, first, end))
        if key not in self._middle_parts:
            model = self._skeletons.make(checkpoint=self.settings.checkpoint_server)
            feed = keep_server_side(backbone_of(model), self.family, first, self.num_blocks, self.dtype)
            keep_device_side(model, backbone_of(model), self.family, end)
            self._finish(model, key[2])
            slots = find_slots(model, ())
            self._middle_parts[key] = MiddlePart(model, backbone_of(model), feed, slots)
        return self._middle_parts[key]

    def whole(self, blocks: Blocks = None) -> WholePart:
        """The unsplit model. See `device_part`."""
        key = self._adapted(blocks, 0, self.num_blocks)
        if key not in self._wholes:
            model = self._skeletons.make(checkpoint=self.settings.checkpoint_server)
            self._skeletons.pool(model)
            self._finish(model, key)
            self._wholes[key] = WholePart(model, find_slots(model, self.trained_heads), self.device)
        return self._wholes[key]

    def pruned(self, kept: Kept, blocks: Blocks = None) -> WholePart:
        """The whole model without the units that are removed: smaller matrices, LoRA of the same sizes.

        What is removed from is copied, and only the last part that was asked for is kept: a process that plays a
        fleet holds one such copy, not one per device. Use a part before asking for another.

        Args:
          kept: What is left of each block.
          blocks: See `device_part`.

        Raises:
          ConfigError: This model or these LoRA targets cannot be pruned.
        """
        if kept == self.structure.everything:
            return self.whole(blocks)
        key = (kept, self._adapted(blocks, 0, self.num_blocks))
        if self._pruned is None or self._pruned[0] != key:
            self._pruned = None  # before its successor is there
            model = self._skeletons.make(checkpoint=self.settings.checkpoint_server)
            self.structure.shrink(model, kept)
            self._skeletons.pool(model)
            self._finish(model, key[1], kept)
            self._pruned = key, WholePart(model, find_slots(model, self.trained_heads), self.device)
        return self._pruned[1]

    @cached_property
    def structure(self) -> Structure:
        """The units that can be removed from the blocks.

        Raises:
          ConfigError: This model or these LoRA targets cannot be pruned.
        """
        skeleton = self._skeletons.make()
        if self.settings.dtype == "nf4":
            raise ConfigError(
                "model.dtype: expected int8 or a plain dtype where rows and columns of weights are removed, got nf4, "
                "whose scales lie across both. Set model.dtype=int8, or choose another method."
            )
        structure = Structure(skeleton, self._blocks, self.family)
        targets = target_modules(skeleton, self._blocks, self.family, self.settings.lora.targets)
        structure.check_adapted(inside_block(path, self._blocks) for path in targets)
        return structure

    def device_names(self, cut: int, blocks: Blocks = None, *, top: int | None = None) -> list[str]:
        """The trainable tensors of blocks `[0, cut)`, of those of `blocks` alone; with `top`, of `[top, L)` and the
        head too."""
        return [name for name in self.shapes if self._on_device(name, cut, top) and self._has_adapter(name, blocks)]

    def server_names(self, cut: int, blocks: Blocks = None, *, top: int | None = None) -> list[str]:
        """The other trainable tensors: of blocks `[cut, L)` and the head; with `top`, of blocks `[cut, top)`."""
        return [name for name in self.shapes if not self._on_device(name, cut, top) and self._has_adapter(name, blocks)]

    def stored_names(self, part: Part) -> dict[str, Tensor]:
        """The frozen tensors of a part by the names under which they are stored: a tied one once, under one name."""
        trained = {slot.name for slot in part.slots}
        named = (
            (PREFIX + path.replace(".default.", "."), path, value) for path, value in part.model.named_parameters()
        )
        frozen = ((path.replace(".base_layer.", "."), value) for name, path, value in named if name not in trained)
        return {self._untied(path): value for path, value in frozen}

    def _untied(self, path: str) -> str:
        """The name under which a frozen tensor is stored, of which a tied one has another."""
        weight = path.removesuffix(SCALE)
        return self._ties.get(weight, weight) + path[len(weight) :]

    def shapes_of(self, ranks: Sequence[int] = ()) -> dict[str, tuple[int, ...]]:
        """The trainable tensors and their shapes at these ranks.

        Args:
          ranks: Of each block, 0 for no adapter there, or of each of `modules`; empty for the run's rank everywhere.
        """
        shapes = {}
        for name, shape in self.shapes.items():
            rank = self._rank_on(name, ranks) if ranks else self.settings.lora.rank
            if rank is None:
                shapes[name] = shape
            elif rank > 0:
                shapes[name] = shape_at_rank(name, shape, rank)
        return shapes

    def at_ranks(self, tensors: Mapping[str, Tensor], ranks: Sequence[int]) -> Adapter:
        """The first rows of each A and columns of each B of these trainable tensors, as many as the rank says.

        Args:
          tensors: By global name, AdamW's moments too; none of a block of rank 0.
          ranks: Of each block, or of each of `modules`; empty leaves all as they are.
        """
        if not ranks:
            return dict(tensors)
        return {
            name: value if (rank := self._rank_on(name, ranks)) is None else at_rank(name, value, rank)
            for name, value in tensors.items()
        }

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The LoRA modules of the model, block after block: each by the name of its A."""
        return tuple(a for _, a in factor_names(self.shapes))

    def by_module(self, ranks: Sequence[int]) -> bool:
        """Whether these are ranks of `modules`, and not of blocks."""
        return len(ranks) not in (0, self.num_blocks)

    def ranks_on(self, block: int, ranks: Sequence[int]) -> tuple[int, ...]:
        """The ranks on one block, from a list that is not empty: one for all of the block, or one for each module."""
        if not self.by_module(ranks):
            return (ranks[block],)
        return tuple(ranks[place] for place in self._places_on_block[block])

    def _rank_on(self, name: str, ranks: Sequence[int]) -> int | None:
        """The rank of a trainable tensor, or a moment of it, from a list that is not empty; None where it has none."""
        if self.by_module(ranks):
            place = self._place_of_module.get(name.partition("#")[0])
            return None if place is None else ranks[place]
        block = self.block_of(name)
        return None if block is None else ranks[block]

    @cached_property
    def _places_on_block(self) -> tuple[tuple[int, ...], ...]:
        """The places of each block's modules among `modules`, by block."""
        blocks = [self.block_of(name) for name in self.modules]
        return tuple(
            tuple(place for place, one in enumerate(blocks) if one == block) for block in range(self.num_blocks)
        )

    @cached_property
    def _place_of_module(self) -> dict[str, int]:
        """Name of a LoRA factor -> the place of its module among `modules`."""
        return {name: place for place, (b, a) in enumerate(factor_names(self.shapes)) for name in (a, b)}

    def blocks_in(self, names: Iterable[str]) -> frozenset[int]:
        """The blocks that these trainable tensors belong to."""
        return frozenset(block for name in names if (block := self.block_of(name)) is not None)

    def fold(self, folds: Mapping[str, Tensor]) -> None:
        """Adds the products of stacked factors to the frozen weights of this process: W + s B A, fold after fold.

        In place, so in all parts, and in the weights' dtype, to which each fold is rounded; the files stay as they
        are. A fold that was done is not done again: all machines that one process plays may ask for it.

        Args:
          folds: By `<number>/<name>` (`model/folds.py`).

        Raises:
          ModelError: One that comes before it is missing, or the weights are int8 or nf4.
        """
        self._check_movable(bool(folds))
        scale = self.settings.lora.alpha / self.settings.lora.rank
        for number, stack in by_number(folds) if self.device.type != "meta" else ():
            for b, a in factor_names(stack):
                path = a.removeprefix(PREFIX).replace(".lora_A.", ".")
                done = self._folded.get(path, 0)
                if number > done:
                    raise ModelError(
                        f"model {self.settings.name}: expected fold {done} of {path} next, got {number}. "
                        "Send all folds since the last."
                    )
                if number == done:
                    weight = self._stored(path)
                    product = scale * (stack[b].to(self.device) @ stack[a].to(self.device))
                    weight.copy_(weight + (product.T if self.transposed else product))
                    self._folded[path] = number + 1

    def standing(self, seeds: Sequence[int], adapter: Mapping[str, Tensor], *, frozen: bool = True) -> Standing:
        """Weights as sums of seeded noise move them: of the whole model, in place and so in all parts.

        All machines that one process plays share them. The first call puts the weights on their grids, which
        rounds them (`model/grid.py`); the files stay as they are, and `unfold` reads them again.

        Args:
          seeds: The run's.
          adapter: Trainable tensors that move along with the base's, such as a head's; the parts must `use` the
            standing's own, `Standing.tensors`.
          frozen: Whether the base's weights move at all; else `adapter` moves alone.

        Raises:
          ModelError: The weights are not fp32.
        """
        self._check_movable(frozen)
        known = self._standing
        if known is None or known.seeds != tuple(seeds) or not adapter.keys() <= known.tensors.keys():
            self.unfold()
            base = {}
            if frozen and self.device.type != "meta":
                base = {name: self._stored(name) for name in self._frozen_names()}
            known = Standing({**base, **{name: value.clone() for name, value in adapter.items()}}, seeds)
            self._standing = known
        return known

    def _check_movable(self, moves: bool) -> None:
        if moves and self.settings.quantised:
            raise ModelError(
                f"model.dtype: expected fp32, bf16 or fp16 where the base's weights change, got {self.settings.dtype}, "
                "which would be rounded anew by every change. Set model.dtype=fp32."
            )

    def _frozen_names(self) -> list[str]:
        """The tensors of the whole model that no adapter holds, each once, in the model's order."""
        held = {path for path, _ in self.whole(frozenset()).model.named_parameters()}
        return [name for name in self.parameter_names if name in held and PREFIX + name not in self.shapes]

    def unfold(self) -> None:
        """Takes all folds and all sums of noise back: the weights are again as they are stored."""
        moved = set(self._folded) | (self._standing.tensors.keys() - self.shapes.keys() if self._standing else set())
        for path in moved:
            self._stored(path).copy_(self.weights.read(self._untied(path)))
        self._folded.clear()
        self._standing = None

    def _stored(self, path: str) -> Tensor:
        """The frozen tensor of this name, which all parts share."""
        return self.weights.held(self._untied(path))

    @property
    def vocabulary(self) -> int:
        """Number of tokens that the model knows."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def widest(self) -> int:
        """The widest that hidden states get inside a block."""
        inside = (shape for name, shape in self.parameter_shapes.items() if self.block_of(PREFIX + name) is not None)
        return max(int(size) for shape in inside for size in shape)

    @property
    def transposed(self) -> bool:
        """Whether weights are stored inputs first, as GPT-2's are."""
        return self.family.name == "gpt2"

    def _adapted(self, blocks: Blocks, first: int, end: int) -> frozenset[int]:
        return frozenset(range(first, end)) if blocks is None else blocks & frozenset(range(first, end))

    def _on_device(self, name: str, cut: int, top: int | None) -> bool:
        block = self.block_of(name)
        above = top is not None and (block is None or block >= top)
        return above or (block is not None and block < cut)

    def _has_adapter(self, name: str, blocks: Blocks) -> bool:
        block = self.block_of(name)
        return blocks is None or block is None or block in blocks

    def block_of(self, name: str) -> int | None:
        """The block that a trainable tensor belongs to; None for the head's."""
        match = self._block_pattern.match(name)
        return int(match.group(1)) if match else None

    def initial_adapter(self, seed: int, ranks: Sequence[int] = ()) -> Adapter:
        """The adapter that training starts from: the same for every device, whatever its cut.

        LoRA starts as PEFT does. A head's tensor starts from the checkpoint if it is there in the right shape (and
        is not a pooler that never learned, and its rows are the run's classes), else from a seeded normal distribution.

        Args:
          seed: Of the draw.
          ranks: See `shapes_of`.
        """
        return {name: self._initial(name, shape, seed).to(self.device) for name, shape in self.shapes_of(ranks).items()}

    def _initial(self, name: str, shape: tuple[int, ...], seed: int) -> Tensor:
        path = name.removeprefix(PREFIX)
        if ".lora_" not in name and self.device.type != "meta" and path in self.weights:
            stored = self.weights.read(path)
            if tuple(stored.shape) == shape and not self._never_learned(path) and not self._of_others(name):
                return stored.float()
        pooler = self.family.pooler is not None and path.startswith(f"{self._prefix}.{self.family.pooler}.")
        std = FRESH_POOLER_STD if pooler else float(getattr(self.config, "initializer_range", 0.02))
        return initial_tensor(name, shape, seed=seed, std=std)

    @property
    def unused_head(self) -> str | None:
        """A line on the checkpoint's own classifier where the run does not go on from it: it is of other classes, or of
        the same in another order."""
        there = [path for name in sorted(self._by_class) if (path := name.removeprefix(PREFIX)) in self.weights]
        if not there or not self._is_of_others:
            return None
        return why_drawn_anew(self.settings.labels, self.files, len(self.weights.read(there[0])))

    def _of_others(self, name: str) -> bool:
        return name in self._by_class and self._is_of_others

    @cached_property
    def _is_of_others(self) -> bool:
        labels = self.settings.labels
        return bool(labels) and in_the_heads_order(labels, self.files) != labels

    @cached_property
    def _by_class(self) -> frozenset[str]:
        """The tensors that have a row for each class: those of the last layer of the head."""
        if self.settings.task != "classification":
            return frozenset()
        last = f"{PREFIX}{self.trained_heads[-1]}."
        weights = [name for name in self.shapes if name.startswith(last) and name.endswith(".weight")]
        owner = weights[-1].removesuffix("weight")
        return frozenset(name for name in self.shapes if name.startswith(owner))

    def _never_learned(self, path: str) -> bool:
        """Whether this tensor belongs to a pooler whose weights are well below their own initialisation."""
        owner = f"{self._prefix}.{self.family.pooler}"
        if self.family.pooler is None or not path.startswith(f"{owner}."):
            return False
        weight = self.weights.read(f"{owner}.dense.weight").float()
        return bool(weight.std() < 0.5 * float(self.config.initializer_range))

    def _weights(self, forms: Mapping[str, Form] | None = None) -> Weights:
        instead = {source: tied for tied, source in self._ties.items()}
        return Weights(
            self.files, prefix=self._prefix, dtype=self.dtype, device=self.device, forms=forms, instead=instead
        )

    def _has_own_head(self) -> bool:
        """Whether the checkpoint has another head than its embeddings, to which config.json ties it."""
        if self.device.type == "meta" and not self.files.has_weights:
            return False  # on the hub: for what is only counted nothing is fetched
        weights = self._weights()
        with suppress(ModelError):  # what is not there or torn is said where it is read
            return any(weights.differ(source, tied) for tied, source in self._ties.items())
        return False

    def _finish(self, model: Any, blocks: frozenset[int], kept: Kept | None = None) -> None:
        """Attaches LoRA to these blocks, assigns the frozen tensors, freezes, and sets the modes."""
        modules = target_modules(model, self._blocks, self.family, self.settings.lora.targets)
        held = [path for path in modules if self.block_of(f"{PREFIX}{path}") in blocks]
        with BUILDING:
            attach_lora(model, held, self.settings.lora)
        quantise(model, self.forms, self.dtype)
        model.requires_grad_(False)
        if self.device.type != "meta":
            self._assign(model, kept)
        for name in self.trained_heads:
            if self.dtype is not torch.float32 and _has_parameters(model, name):
                model.get_submodule(name).register_forward_pre_hook(_to_fp32)
        model.train()

    def _assign(self, model: nn.Module, kept: Kept | None) -> None:
        trained = {slot.name for slot in find_slots(model, self.trained_heads)}
        for path, parameter in list(model.named_parameters(remove_duplicate=False)):
            if PREFIX + path.replace(".default.", ".") in trained:
                continue  # an adapter is put in there
            owner, _, attribute = path.rpartition(".")
            stored = path.replace(".base_layer.", ".")
            tensor = self._stored(stored)
            if kept is not None:
                tensor = self.structure.slice(stored, tensor, kept)
            if tensor.shape != parameter.shape:
                raise ModelError(
                    f"model {self.settings.name}: expected {stored} of shape {tuple(parameter.shape)}, got "
                    f"{tuple(tensor.shape)}. config.json and the weights belong to different models."
                )
            # not by setattr: while another thread attaches LoRA, PEFT makes it put every parameter on the meta device
            model.get_submodule(owner)._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)

    def _trainable_shapes(self, skeleton: Any) -> dict[str, tuple[int, ...]]:
        """The shapes of the trainable tensors by global name: LoRA's in the model's order, then the head's.

        One of the blocks that are alike gets its LoRA and speaks for all: PEFT takes milliseconds for each module.
        """
        modules = target_modules(skeleton, self._blocks, self.family, self.settings.lora.targets)
        linear: list[list[tuple[str, tuple[int, ...]]]] = [[] for _ in range(self.num_blocks)]
        for path in modules:
            block = self.block_of(f"{PREFIX}{path}")
            assert block is not None, "targets lie inside blocks"
            linear[block].append((inside_block(path, self._blocks), skeleton.get_submodule(path).weight.shape))
        speakers = [linear.index(like) for like in linear]  # the first block that is like it, of each
        spoken = [path for path in modules if self.block_of(f"{PREFIX}{path}") in speakers]
        attach_lora(skeleton, spoken, self.settings.lora)
        slots = find_slots(skeleton, self.trained_heads)
        shapes = {slot.name: tuple(getattr(slot.module, slot.attribute).shape) for slot in slots}
        of_blocks: dict[int | None, dict[str, tuple[int, ...]]] = {}
        for name, shape in shapes.items():
            of_blocks.setdefault(self.block_of(name), {})[name] = shape
        start = f"{PREFIX}{self._blocks}."
        lora = {
            f"{start}{block}." + name.removeprefix(f"{start}{speaker}."): shape
            for block, speaker in enumerate(speakers)
            for name, shape in of_blocks.get(speaker, {}).items()
        }
        return {**lora, **of_blocks.get(None, {})}


def _ties(model: Any) -> dict[str, str]:
    """Parameter -> the parameter whose tensor it shares, such as an output head tied to the embeddings."""
    tied = getattr(model, "_tied_weights_keys", None) or {}
    return dict(tied) if model.config.tie_word_embeddings else {}


def _has_parameters(model: nn.Module, name: str) -> bool:
    return any(True for _ in model.get_submodule(name).parameters())


def _to_fp32(_module: nn.Module, inputs: Sequence[Any]) -> tuple[Any, ...]:
    """Trained heads are fp32; what reaches them may be bf16 or fp16."""
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
