"""Codecs: a tensor in fewer bytes, as one packed tensor, and back.

    codec          a row of D numbers, packed                                     bytes of a row
    -------------  -------------------------------------------------------------  --------------------------
    none           as it is                                                       D x item
    bf16           bf16, to the nearest, ties to even                             2 D
    int8           D signed bytes in steps of the largest / 127, then that step   D + 4
    topk:FRACTION  the largest in magnitude, then where they were (int32)         k (item + 4), k = FRACTION x D
    sparse:F:BITS  of a tensor of N as one row: which are the largest (a bitmap), N / 8 + k BITS / 8 + 4, k = F x N
                   these in steps of the largest / (2^(BITS-1) - 1), that step

Two more a method chooses for a round (`packing.codec_under`), with a key from which both ends, or the one that packs,
draw what is random: `SomeNumbers` of each row, and `StochasticSteps`, a tensor in few bits without bias.

A row is the last dimension; `item` is the size of the tensor's own dtype. Packing is deterministic (`sparse` rounds at
random, by a key that whoever packs gives it), and its size
depends on shape and dtype alone: pack a tensor that holds nothing (`meta`) to know it. A packed tensor says nothing
of where it came from: whoever unpacks knows the shape and dtype to expect, so nothing that arrives is believed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from cutlayer.errors import MalformedMessage
from cutlayer.wire.spelled import parse_codec

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


@dataclass(frozen=True, slots=True)
class SomeNumbers:
    """Some of the numbers of each row, the same of all rows, packed by another codec; the others become zero.

    Which ones, both ends draw from the key: it is not sent. Those that stay are multiplied by how many there were for
    each that stays, so that a row keeps its mean over draws, as dropout keeps it.

    Attributes:
      codec: what packs those that stay.
      fraction: how many stay, rounded to a whole number and at least one.
      key: what they are drawn from.
      on_arrival: whether they are multiplied when they are unpacked, else before they are packed. A gradient travels
        back through a product: what was multiplied before it was packed is multiplied again where its gradient arrives.
    """

    codec: Codec
    fraction: float
    key: str
    on_arrival: bool = False

    @property
    def name(self) -> str:
        return f"{self.fraction:g} of {self.codec.name}"

    def pack(self, tensor: Tensor) -> Tensor:
        some = tensor.index_select(-1, self._where(tensor))
        return self.codec.pack(some if self.on_arrival else some * self._factor(tensor.shape[-1]))

    def unpack(self, packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        some = self.codec.unpack(packed, (*shape[:-1], self._kept(shape[-1])), dtype)
        whole = torch.zeros(tuple(shape), dtype=dtype, device=packed.device)
        if self.on_arrival:
            some = some * self._factor(shape[-1])
        return whole.index_copy_(-1, self._where(whole), some)

    def _kept(self, width: int) -> int:
        return max(1, round(self.fraction * width))

    def _factor(self, width: int) -> float:
        return width / self._kept(width)

    def _where(self, tensor: Tensor) -> Tensor:
        """The places of those that stay, in order: those of the smallest of as many random numbers as there are."""
        width = tensor.shape[-1]
        drawn = np.frombuffer(hashlib.shake_256(self.key.encode()).digest(8 * width), dtype="<u8")
        where = np.sort(np.argsort(drawn, kind="stable")[: self._kept(width)])
        return torch.from_numpy(where).to(tensor.device)


@dataclass(frozen=True, slots=True)
class StochasticSteps:
    """Whole steps of the largest magnitude / (2^(bits - 1) - 1), rounded at random so that their mean is the number.

    The error of each number is below one step, and its variance at most a quarter of a step's square. The packed form
    is one row: the steps, `bits` each, and then the step (fp32). Numbers so small that a step would be below the normal
    ones of fp32 (2^-126) become 0.

    Attributes:
      bits: of a number, 2 to 16.
      key: what the rounding is drawn from, by the end that packs.
    """

    bits: int
    key: str

    @property
    def name(self) -> str:
        return f"stochastic:{self.bits}"

    def pack(self, tensor: Tensor) -> Tensor:
        _expect_finite(tensor)
        num_bytes = self._num_bytes(tensor.numel())
        if tensor.is_meta:
            return torch.empty(num_bytes + SCALE_BYTES, dtype=torch.uint8, device="meta")
        values_N = tensor.detach().flatten().float()
        scale = values_N.abs().amax().reshape(1) / self._levels if len(values_N) else values_N.new_zeros(1)
        scale[scale < torch.finfo(torch.float32).tiny] = 0.0  # below it, a step is too coarse to say how long it is
        steps_N = values_N / torch.where(scale > 0, scale, math.inf)
        below_N = steps_N.floor()
        up_N = _uniform(self.key, len(values_N)).to(values_N.device) < steps_N - below_N
        # the largest magnitude is all steps, or by the division's rounding a little more
        codes_N = (below_N + up_N).clamp_(-self._levels, self._levels).to(torch.int32) + self._levels
        bits_NB = (codes_N[:, None] >> torch.arange(self.bits, device=codes_N.device)) & 1
        bits_M8 = torch.nn.functional.pad(bits_NB.flatten(), (0, 8 * num_bytes - bits_NB.numel())).view(-1, 8)
        packed = (bits_M8 << torch.arange(8, device=codes_N.device)).sum(1).to(torch.uint8)
        return torch.cat([packed, scale.view(torch.uint8)])

    def unpack(self, packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        _expect_form(self, packed, shape, dtype)
        if packed.is_meta:
            return torch.empty(tuple(shape), dtype=dtype, device="meta")
        count = math.prod(shape)
        scale = _as(torch.float32, packed[-SCALE_BYTES:])
        bits_M8 = (packed[:-SCALE_BYTES, None].int() >> torch.arange(8, device=packed.device)) & 1
        bits_NB = bits_M8.flatten()[: count * self.bits].view(count, self.bits)
        steps_N = (bits_NB << torch.arange(self.bits, device=packed.device)).sum(1) - self._levels
        if bool((steps_N > self._levels).any()) or not bool((scale >= 0).all() and scale.isfinite().all()):
            raise MalformedMessage(
                f"tensor packed by {self.name}: expected steps up to {self._levels} of a finite length, got others. "
                "Drop it: it is damaged."
            )
        return (steps_N * scale).to(dtype).view(tuple(shape))

    @property
    def _levels(self) -> int:
        return int(2 ** (self.bits - 1) - 1)

    def _num_bytes(self, count: int) -> int:
        return -(-count * self.bits // 8)


def _uniform(key: str, count: int) -> Tensor:
    """Numbers (count,) in fp32, from 0 to below 1, drawn from a key: multiples of 2^-24."""
    drawn = np.frombuffer(hashlib.shake_256(key.encode()).digest(4 * count), dtype="<u4") >> 8
    return torch.from_numpy(drawn.astype(np.float32) * np.float32(2.0**-24))


@dataclass(frozen=True, slots=True)
class Sparse:
    """The largest numbers of a tensor in magnitude, in few bits; the others become zero. Of equal ones, the first.

    A number that lies between two steps becomes one of them at random, the nearer one more likely: what is kept is
    unbiased (`StochasticSteps`). With 32 bits it is kept as it is.

    Attributes:
      fraction: how many are kept, of the tensor as a whole, rounded to a whole number and at least one.
      bits: of each of these.
      key: of the draws: with another one rounds otherwise.
    """

    fraction: float
    bits: int
    key: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        return f"sparse:{self.fraction:g}:{self.bits}"

    def keyed(self, key: str) -> Sparse:
        """The same codec with another key."""
        return replace(self, key=key)

    def pack(self, tensor: Tensor) -> Tensor:
        _expect_finite(tensor)
        flat_N = tensor.reshape(-1).float()
        if flat_N.is_meta:
            return torch.empty(sum(self._bytes(flat_N.numel())), dtype=torch.uint8, device="meta")
        order_N = torch.sort(flat_N.abs(), descending=True, stable=True).indices
        kept_N = torch.zeros_like(flat_N, dtype=torch.bool)
        kept_N[order_N[: self._kept(flat_N.numel())]] = True
        return torch.cat([_bitmap(kept_N), self._of_kept.pack(flat_N[kept_N]).contiguous().view(torch.uint8)])

    def unpack(self, packed: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        _expect_form(self, packed, shape, dtype)
        if packed.is_meta:
            return torch.empty(tuple(shape), dtype=dtype, device="meta")
        size = math.prod(shape)
        bitmap, values = packed.split(self._bytes(size))
        kept_N = _from_bitmap(bitmap, size)
        if int(kept_N.sum()) != self._kept(size) or not torch.equal(_bitmap(kept_N), bitmap):
            raise MalformedMessage(
                f"tensor packed by {self.name}: expected {self._kept(size)} of {size} numbers, got others. "
                "Drop it: it is damaged."
            )
        whole_N = torch.zeros(size, dtype=torch.float32, device=packed.device)
        held = _as(torch.float32, values) if self.bits == 32 else values
        whole_N[kept_N] = self._of_kept.unpack(held, (self._kept(size),), torch.float32)
        return whole_N.reshape(tuple(shape)).to(dtype)

    @property
    def _of_kept(self) -> Codec:
        return NONE if self.bits == 32 else StochasticSteps(self.bits, self.key)

    def _kept(self, size: int) -> int:
        return max(1, round(self.fraction * size))

    def _bytes(self, size: int) -> list[int]:
        """The lengths of the bitmap and of what is kept."""
        kept = torch.empty(self._kept(size), dtype=torch.float32, device="meta")
        return [-(-size // 8), self._of_kept.pack(kept).nbytes]


def _bitmap(kept_N: Tensor) -> Tensor:
    """Eight truths in a byte, the first the highest bit."""
    padded = torch.zeros(-(-len(kept_N) // 8) * 8, dtype=torch.uint8, device=kept_N.device)
    padded[: len(kept_N)] = kept_N
    return (padded.view(-1, 8) * _eights(kept_N.device)).sum(1).to(torch.uint8)


def _from_bitmap(packed: Tensor, size: int) -> Tensor:
    return ((packed[:, None] & _eights(packed.device)) > 0).reshape(-1)[:size]


def _eights(device: torch.device) -> Tensor:
    return torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=device)


NONE = AsItIs()


def codec_by_name(name: str, *, rows: bool = True) -> AsItIs | Bf16 | Int8 | TopK | Sparse:
    """The codec that a person spelled.

    Args:
      name: See `SPELLED`.
      rows: Of top-k: whether it chooses in each row; only without may it be `sparse`.

    Raises:
      ConfigError: No codec is spelled like this.
    """
    plain: dict[str, AsItIs | Bf16 | Int8] = {"none": NONE, "bf16": Bf16(), "int8": Int8()}
    kind, fraction, bits = parse_codec(name, rows=rows)
    if kind in plain:
        return plain[kind]
    return Sparse(fraction, bits) if bits else TopK(fraction, rows)


@lru_cache(maxsize=4096)  # a run has few shapes, and asks for each message
def packed_form(codec: Codec, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The packed form of a tensor of this shape and dtype, without elements: its shape, dtype and `nbytes`."""
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
