"""Rows of a tensor in a file, read when they are asked for and kept by nobody.

A file that is mapped counts, page by page, as memory of the process for as long as anybody holds a tensor of it. Of an
embedding of 500 MB that is rounded to 8 bits or made fp32, all of it would be there beside the result. So whatever is
converted is read some rows at a time, into memory that goes when they are done.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from cutlayer.errors import ModelError
from cutlayer.model.packed import PACKINGS, Stored, unpacked

AT_ONCE = 2**18
"""Numbers that are read at a time."""
SPELLED = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Dtypes by the names that safetensors has for them."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A tensor in a file.

    Attributes:
      path: the file.
      name: the tensor's in it, for errors.
      start: its first byte.
      lies: its shape as it lies there: of bytes where it is packed.
      dtype: of what lies there.
      stored: how it is packed, or in which order its rows are; None where it lies there as it is.
    """

    path: Path
    name: str
    start: int
    lies: tuple[int, ...]
    dtype: torch.dtype
    stored: Stored | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the numbers."""
        packing = PACKINGS.get(self.stored.kind) if self.stored is not None else None
        if packing is None or not self.lies:
            return self.lies
        return (*self.lies[:-1], self.lies[-1] // packing.bytes * packing.weights)

    @property
    def is_floating_point(self) -> bool:
        """Whether the numbers are floats, as all are that are packed."""
        return self.read_as.is_floating_point

    @property
    def read_as(self) -> torch.dtype:
        """The dtype of the numbers: fp32 of packed ones."""
        packed = self.stored is not None and self.stored.kind in PACKINGS
        return torch.float32 if packed else self.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes in the file."""
        return prod(self.lies) * self.dtype.itemsize

    def __getitem__(self, some: slice) -> Tensor:
        """These rows, from one to before another: numbers as transformers has them, packed ones in fp32.

        Raises:
          ModelError: The file has become shorter, or they do not lie there as it says.
        """
        first, end, stored = some.start, some.stop, self.stored
        if stored is None:
            return self._read(first, end)
        rows, heads = self.lies[0], stored.heads
        if heads == 0:
            return unpacked(self._read(first, end), stored, self.name)
        if heads < 0 or rows % heads:
            return unpacked(self._read(0, rows), stored, self.name)  # refuses them
        width = rows // heads  # rows change places within their head
        low, high = first // width * width, -(-end // width) * width
        some_heads = replace(stored, heads=(high - low) // width)
        return unpacked(self._read(low, high), some_heads, self.name)[first - low : end - low]

    def chunks(self) -> Iterator[tuple[int, int, Tensor]]:
        """All rows, some at a time: from, to, and they."""
        shape = self.shape
        each = max(1, AT_ONCE // max(1, prod(shape[1:])))
        for first in range(0, shape[0], each):
            end = min(first + each, shape[0])
            yield first, end, self[first:end]

    def whole(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The tensor of this dtype on a device."""
        if not self.lies:
            return self._read(0, 1).view(()).to(device=device, dtype=dtype)
        made = torch.empty(self.shape, dtype=dtype, device=device)
        for first, end, rows in self.chunks():
            made[first:end] = rows
        return made

    def _read(self, first: int, end: int) -> Tensor:
        inside = self.lies[1:]
        width = prod(inside) * self.dtype.itemsize
        found = torch.empty((end - first) * width, dtype=torch.uint8)
        with open(self.path, "rb") as file:
            file.seek(self.start + first * width)
            if file.readinto(found.numpy().data) < found.numel():
                raise ModelError(
                    f"{self.path}: expected {found.numel()} bytes of {self.name}, got fewer. Fetch it again."
                )
        return found.view(self.dtype).view(end - first, *inside)
