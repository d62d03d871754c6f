"""The cut: a part of a model is the Hugging Face model itself with what it does not hold replaced.

On a device, blocks `[cut, L)` become `Skip` and what follows the last block becomes identity. On the server, blocks
`[0, cut)` become `Skip` and the embedding stage becomes a `Feed` that hands over the device's activations. Nothing
of the model's own forward is rewritten, so masks, rotary tables and sliding windows work as they are, and the result
is equal bit for bit to the unsplit model (`tests/model/test_parity.py`).

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cutlayer.errors import ModelError
from cutlayer.model.families import Family


class Skip(nn.Module):
    """Stands where a block was that this part does not hold: returns the hidden states that it is given.

    Args:
      block: The block. A backbone may ask it by a word of its own which mask it wants.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        for name, value in vars(block).items():
            if isinstance(value, str):
                setattr(self, name, value)

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states


class SkipOfPairs(Skip):
    """`Skip` in a family whose blocks return the hidden states and something that is not used."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return hidden_states, None


class Pass(nn.Module):
    """Stands where a norm, a projection or a dropout was that belongs to the other side."""

    def forward(self, x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return x


class Feed(nn.Module):
    """Stands where the embeddings were: gives the activations that arrived, whatever ids it is asked for."""

    h_BTD: Tensor | None = None

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
        assert self.h_BTD is not None, "activations are put in before the model runs"
        return self.h_BTD


class Zeros(nn.Module):
    """Stands where a position table was: the activations that are fed already carry their positions."""

    zero: Tensor

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("zero", torch.zeros((), dtype=dtype, device="cpu"), persistent=False)

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
        return self.zero


def check_cut(cut: int, num_blocks: int, where: str = "cut") -> None:
    """Raises ModelError unless `0 <= cut <= num_blocks`."""
    if not 0 <= cut <= num_blocks:
        raise ModelError(
            f"{where}: expected 0 to {num_blocks} (the model has {num_blocks} blocks), got {cut}. "
            f"0 sends embeddings, {num_blocks} leaves only the head on the server."
        )


def check_paths(model: nn.Module, backbone: nn.Module, family: Family) -> None:
    """Raises ModelError unless every module that the family names is there, as a row of somebody's own may not have it.

    Args:
      model: The task model.
      backbone: Its backbone.
      family: Its row.
    """
    inside = {"embeddings": (family.embeddings,), "pooler": (family.pooler,) if family.pooler else ()}
    inside |= {key: getattr(family, key) for key in ("positions", "after_embeddings", "final")}
    for key, paths in inside.items():
        for path in paths:
            _expect(key, path, backbone)
    for path in family.between:
        if _expect("between", path, backbone) is not None:
            raise ModelError(
                f"model: expected a {family.name} without {path}, got one that has it: it acts between two blocks, "
                "where a cut has no place for it. Use another model."
            )
    for path in family.head if not hasattr(model, "lm_head") else ():
        _expect("head", path, model)
    blocks = _expect("blocks", family.blocks, backbone)
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(
            f"model.family: blocks: expected the ModuleList of the blocks, got {family.blocks!r}, which is "
            f"{type(blocks).__name__}. Correct the path."
        )


def _expect(key: str, path: str, root: nn.Module) -> object:
    """The module at the path; None where the model has an optional module there and does not use it."""
    parent: object = root
    for name in path.split("."):
        if not hasattr(parent, name):
            children = [child for child, _ in parent.named_children()] if isinstance(parent, nn.Module) else []
            raise ModelError(
                f"model.family: {key}: expected a module of {type(root).__name__}, got {path!r}: "
                f"{type(parent).__name__} has no {name!r}, but {', '.join(children)}. Correct the path."
            )
        parent = getattr(parent, name)
    return parent


def keep_blocks(backbone: nn.Module, family: Family, first: int, end: int) -> None:
    """Replaces every block outside `[first, end)` by `Skip`."""
    blocks = backbone.get_submodule(family.blocks)
    assert isinstance(blocks, nn.ModuleList)
    for index in range(len(blocks)):
        if not first <= index < end:
            stand_in = Skip if family.block_output == "hidden" else SkipOfPairs
            blocks[index] = stand_in(blocks[index])


def keep_device_side(model: nn.Module, backbone: nn.Module, family: Family, cut: int) -> None:
    """Makes `model` a device-side model: embeddings and blocks `[0, cut)`. Run its backbone to get activations."""
    keep_blocks(backbone, family, 0, cut)
    for path in family.final:
        _replace(backbone, path, Pass())
    if family.pooler is not None:
        _replace(backbone, family.pooler, Pass())
    for name in head_modules(model, backbone):
        _replace(model, name, Pass())


def keep_server_side(backbone: nn.Module, family: Family, cut: int, num_blocks: int, dtype: torch.dtype) -> Feed:
    """Makes a server-side model: a feed, blocks `[cut, L)` and the head. Returns the feed."""
    keep_blocks(backbone, family, cut, num_blocks)
    feed = Feed()
    _replace(backbone, family.embeddings, feed)
    for path in family.positions:
        _replace(backbone, path, Zeros(dtype))
    for path in family.after_embeddings:
        _replace(backbone, path, Pass())
    return feed


def head_modules(model: nn.Module, backbone: nn.Module) -> list[str]:
    """Names of the modules of the task model that lie outside the backbone."""
    return [name for name, child in model.named_children() if child is not backbone]


def _replace(root: nn.Module, path: str, new: nn.Module) -> None:
    """Puts `new` at `path`, unless the model has None there (an optional projection or norm)."""
    parent_path, _, name = path.rpartition(".")
    parent = root.get_submodule(parent_path)
    if getattr(parent, name) is not None:
        setattr(parent, name, new)
