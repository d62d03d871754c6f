"""Codecs: a tensor in fewer bytes, as one packed tensor, and back.

    codec          a row of D numbers, packed                                     bytes of a row
    -------------  -------------------------------------------------------------  --------------------------
    none           as it is                                                       D x item
    bf16           bf16, to the nearest, ties to even                             2 D
    int8           D signed bytes in steps of the largest / 127, then that step   D + 4
    topk:FRACTION  the largest in magnitude, then where they were (int32)         k (item + 4), k = FRACTION x D

A row is the last dimension; `item` is the size of the tensor's own dtype. Packing is deterministic, and its size
depends on shape and dtype alone: pack a tensor that holds nothing (`meta`) to know it. A packed tensor says nothing
of where it came from: whoever unpacks knows the shape and dtype to expect, so nothing that arrives is believed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from cutlayer.errors import ConfigError, MalformedMessage

SPELLED = "none, bf16, int8 or topk:FRACTION with a fraction above 0 and at most 1"
"""What a person may write for a codec."""

SCALE_BYTES = 4


class NotFinite(ValueError):
    """Numbers that a codec cannot carry: infinite or not a number. Whoever packs says whose they were."""


class Codec(Protocol):
    """One way to pack. A tensor has at least one dimension and no dimension of rows is empty.

    Attributes:
      name: as a person spells it.
    """

    @property
    def name(self) -> str: ...

    def __hash__(self) -> int: ...

    def pack(self, tensor: Tensor) -> Tensor:
        """The packed form.

        Raises:
          NotFinite: The codec carries finite numbers only, and there are others.
        """

    def unpack(self, packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """The tensor of this shape and dtype that was packed, as nearly as the codec keeps it.

        Raises:
          MalformedMessage: It is not what `pack` makes of such a tensor. Nothing is allocated for it then.
        """


class RowCodec(Codec, Protocol):
    """A codec whose packed form shows the shape of what was packed."""

    def width(self, packed_width: int) -> int:
        """D, from the last dimension of the packed form."""


@dataclass(frozen=True, slots=True)
class AsItIs:
    """No packing."""

    name: str = "none"

    def pack(self, tensor: Tensor) -> Tensor:
        return tensor

    def unpack(self, packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        _expect_form(self, packed, shape, dtype)
        return packed

    def width(self, packed_width: int) -> int:
        return packed_width


@dataclass(frozen=True, slots=True)
class Bf16:
    """Half of fp32's bytes; relative error at most 2^-8, and none for what is bf16 already. Carries inf and nan."""

    name: str = "bf16"

    def pack(self, tensor: Tensor) -> Tensor:
        return tensor.to(torch.bfloat16)

    def unpack(self, packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        _expect_form(self, packed, shape, dtype)
        return packed.to(dtype)

    def width(self, packed_width: int) -> int:
        return packed_width


def in_steps(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Each row as whole steps of its largest magnitude / 127: the steps (int8) and that one (fp32), of width 1."""
    rows = tensor.float().contiguous()
    scale = rows.abs().amax(-1, keepdim=True) / 127
    # a scale below the smallest number is zero; just above it, it is so coarse that more than 127 steps fit
    steps = rows / torch.where(scale > 0, scale, math.inf)
    return steps.round_().clamp_(-127, 127).to(torch.int8), scale


@dataclass(frozen=True, slots=True)
class Int8:
    """A quarter of fp32's bytes; error at most half a step, which is the row's largest magnitude / 127.

    Symmetric: zero stays zero, and a row of zeros stays one. Rounds to the nearest step, ties to even.
    """

    name: str = "int8"

    def pack(self, tensor: Tensor) -> Tensor:
        _expect_finite(tensor)
        steps, scale = in_steps(tensor)
        return torch.cat([steps.view(torch.uint8), scale.view(torch.uint8)], -1)

    def unpack(self, packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        _expect_form(self, packed, shape, dtype)
        steps = packed[..., :-SCALE_BYTES].view(torch.int8)
        scale = _as(torch.float32, packed[..., -SCALE_BYTES:])
        return (steps * scale).to(dtype)

    def width(self, packed_width: int) -> int:
        return packed_width - SCALE_BYTES


@dataclass(frozen=True, slots=True)
class TopK:
    """The largest numbers in magnitude, exactly; the others become zero. Of equal ones, those that come first.

    Attributes:
      fraction: how many are kept, rounded to a whole number and at least one; 1 loses nothing.
      rows: choose in each row; False: in the tensor as a whole, whose packed form is then one row.
    """

    fraction: float
    rows: bool = True

    @property
    def name(self) -> str:
        return f"topk:{self.fraction:g}"

    def pack(self, tensor: Tensor) -> Tensor:
        _expect_finite(tensor)
        rows = (tensor if self.rows else tensor.reshape(-1)).contiguous()
        # torch.topk may take any of equal numbers; a stable sort takes the first
        largest = torch.sort(rows.abs(), dim=-1, descending=True, stable=True).indices
        where = largest[..., : self._kept(rows.shape[-1])].sort(-1).values
        values = rows.gather(-1, where)
        return torch.cat([values.view(torch.uint8), where.to(torch.int32).view(torch.uint8)], -1)

    def unpack(self, packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        _expect_form(self, packed, shape, dtype)
        rows = shape if self.rows else (math.prod(shape),)
        split = self._kept(rows[-1]) * dtype.itemsize
        values = _as(dtype, packed[..., :split])
        where = _as(torch.int32, packed[..., split:]).long()
        _expect_ascending(where, rows[-1])
        zeros = torch.zeros(tuple(rows), dtype=dtype, device=packed.device)
        return zeros.scatter(-1, where, values).reshape(tuple(shape))

    def _kept(self, width: int) -> int:
        return max(1, round(self.fraction * width))


NONE = AsItIs()


def codec_by_name(name: str, *, rows: bool = True) -> AsItIs | Bf16 | Int8 | TopK:
    """The codec that a person spelled.

    Args:
      name: See `SPELLED`.
      rows: Of top-k: whether it chooses in each row.

    Raises:
      ConfigError: No codec is spelled like this.
    """
    plain: dict[str, AsItIs | Bf16 | Int8] = {"none": NONE, "bf16": Bf16(), "int8": Int8()}
    if name in plain:
        return plain[name]
    kind, _, text = name.partition(":")
    try:
        fraction = float(text) if kind == "topk" else math.nan
    except ValueError:
        fraction = math.nan
    if not 0 < fraction <= 1:
        raise ConfigError(f"codec: expected {SPELLED}, got {name!r}. Change it.")
    return TopK(fraction, rows)


@lru_cache(maxsize=4096)  # a run has few shapes, and asks for each message
def packed_form(codec: Codec, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """What packing a tensor of this shape and dtype gives, without elements: its shape, dtype and `nbytes`."""
    return codec.pack(torch.empty(shape, dtype=dtype, device="meta"))


def _as(dtype: torch.dtype, rows: Tensor) -> Tensor:
    """Bytes as numbers of this dtype; copied first, because they may lie at any address."""
    return rows.clone(memory_format=torch.contiguous_format).view(dtype)


def _expect_form(codec: Codec, packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> None:
    form = packed_form(codec, tuple(shape), dtype)
    if packed.shape != form.shape or packed.dtype != form.dtype:
        raise MalformedMessage(
            f"tensor packed by {codec.name}: expected {form.dtype} of shape {list(form.shape)}, "
            f"got {packed.dtype} of {list(packed.shape)}. Set `wire` alike on both ends."
        )


def _expect_ascending(where: Tensor, width: int) -> None:
    """Raises MalformedMessage unless each row's places are places, in order, each once."""
    if where.is_meta:
        return
    inside = bool(((where >= 0) & (where < width)).all())
    if not (inside and bool((where.diff(dim=-1) > 0).all())):
        raise MalformedMessage(
            f"tensor packed by top-k: expected ascending places below {width}, got others. Drop it: it is damaged."
        )


def _expect_finite(tensor: Tensor) -> None:
    if tensor.is_meta:  # nothing in it to look at
        return
    others = tensor.numel() - int(torch.isfinite(tensor).sum())
    if others:
        raise NotFinite(f"expected finite numbers, got {others} of {tensor.numel()} that are not")
