"""A GGUF file, the one that llama.cpp runs: what it says of the model, and its tensors, each read by itself.

    magic, version, counts      24 bytes
    facts                       `llama.block_count: 30`, the tokens, the chat template, ...
    tensors                     name, sizes, how it is packed, where it begins
    data                        from the next multiple of the alignment on

The reader keeps the facts that are one number, one truth value or one text, and of a list only its length: the hundred
thousand words of a vocabulary are stepped over, not made, so that opening a file takes milliseconds. What the file says
is checked before it is used: nothing lies outside the file, and no more is taken into memory than is read.

The format is described at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from cutlayer.errors import ModelError
from cutlayer.model.packed import PACKINGS, PLAIN

MAGIC = b"GGUF"
VERSIONS = (2, 3)
KINDS = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    8: "Q8_0",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    30: "BF16",
}
"""Ways of packing a tensor, by the number that the file has for each."""
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
TEXT, LIST = 8, 9
MOST_ENTRIES = 2**16
"""Facts, or tensors, that a file may have; a model of 100 blocks has about 1,000 tensors."""
MOST_TEXT = 2**24
MOST_NAME = 2**10

Fact = bool | int | float | str


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a tensor in a file.

    Attributes:
      kind: how it is packed.
      shape: in torch's order, the packed axis last.
      start: its first byte, from the beginning of the data.
      length: its bytes.
    """

    kind: str
    shape: tuple[int, ...]
    start: int
    length: int

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of what lies in the file: of bytes where weights are packed."""
        packing = PACKINGS.get(self.kind)
        if packing is None:
            return self.shape
        return (*self.shape[:-1], self.shape[-1] // packing.weights * packing.bytes)


class Gguf:
    """An opened file; only its beginning has been read.

    Attributes:
      path: the file.
      facts: by name; of a list, its length.
      tensors: by their names in the file.
      data: where the tensors' data begins.
      head: the bytes before that: two files of one head are models of one shape that read text alike.

    Raises:
      ModelError: It is no GGUF file, not a whole one, or one that is packed in a way that is not read here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                size = file.seek(0, 2)
                if size < 24:
                    raise _Malformed(f"at least 24 bytes, got {size}")
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                    reader = _Reader(mapped, size)
                    facts, tensors, self.data = _read(reader, size)
                    self.head = mapped[: self.data]
        except (_Malformed, OSError, struct.error, UnicodeDecodeError) as error:
            says = str(error) if isinstance(error, _Malformed) else f"a whole GGUF file, got {error}"
            raise ModelError(f"{path}: expected {says}. Fetch the file again, or choose another.") from error
        self.facts: Mapping[str, Fact] = MappingProxyType(facts)
        self.tensors: Mapping[str, Place] = MappingProxyType(tensors)

    def read(self, name: str) -> Tensor:
        """A tensor as it lies in the file: uint8 where it is packed.

        Raises:
          ModelError: The file has become shorter.
        """
        place = self.tensors[name]
        with open(self.path, "rb") as file:
            file.seek(self.data + place.start)
            found = bytearray(place.length)
            if file.readinto(found) < place.length:
                raise ModelError(f"{self.path}: expected {place.length} bytes of {name}, got fewer. Fetch it again.")
        return torch.frombuffer(found, dtype=PLAIN.get(place.kind, torch.uint8)).view(place.stored_shape)


class _Malformed(Exception):
    """An error whose text says what was expected and what is there, as the middle of a sentence."""


class _Reader:
    """Steps through the beginning of a file."""

    def __init__(self, mapped: mmap.mmap, size: int) -> None:
        self._mapped, self._size = mapped, size
        self.at = 0

    def take(self, form: str) -> Any:
        """The next number."""
        start = self._step(struct.calcsize(form))
        return struct.unpack_from(form, self._mapped, start)[0]

    def text(self, most: int) -> str:
        """The next text, of at most so many bytes."""
        length = self.take("<Q")
        if length > most:
            raise _Malformed(f"a text of at most {most} bytes at {self.at}, got {length}")
        start = self._step(length)
        return self._mapped[start : start + length].decode()

    def fact(self) -> Fact:
        """The next fact: its kind, then its value."""
        kind = self.take("<I")
        if kind == TEXT:
            return self.text(MOST_TEXT)
        if kind != LIST:
            found: Fact = self.take(_form(kind, self.at))
            return found
        inner, count = self.take("<I"), self.take("<Q")
        if inner == TEXT:
            self._step_over_texts(count)
        else:
            self._step(count * struct.calcsize(_form(inner, self.at)))
        return int(count)

    def _step_over_texts(self, count: int) -> None:
        """Moves behind so many texts without making them."""
        unpack, mapped, at, last = struct.Struct("<Q").unpack_from, self._mapped, self.at, self._size - 8
        if count > self._size // 8:
            raise _Malformed(f"a list within the file, got one of {count} texts")
        for _ in range(count):
            if at > last:
                raise _Malformed(f"a list of {count} texts within the file, got fewer")
            at += 8 + unpack(mapped, at)[0]
        self.at = at
        self._step(0)

    def _step(self, length: int) -> int:
        start, self.at = self.at, self.at + length
        if self.at > self._size:
            raise _Malformed(f"a file of at least {self.at} bytes, got {self._size}")
        return start


def _form(kind: int, at: int) -> str:
    if kind not in NUMBERS:
        raise _Malformed(f"a kind of fact at {at}, got {kind}")
    return NUMBERS[kind]


def _read(reader: _Reader, size: int) -> tuple[dict[str, Fact], dict[str, Place], int]:
    """Facts, tensors, and where the data begins."""
    magic, version = reader.take("4s"), reader.take("<I")
    if magic != MAGIC or version not in VERSIONS:
        versions = " or ".join(map(str, VERSIONS))
        raise _Malformed(f"a little-endian GGUF file of version {versions}, got {magic!r} and {version}")
    num_tensors, num_facts = reader.take("<Q"), reader.take("<Q")
    if max(num_tensors, num_facts) > MOST_ENTRIES:
        raise _Malformed(f"at most {MOST_ENTRIES} facts and tensors, got {num_facts} and {num_tensors}")
    facts: dict[str, Fact] = {}
    for _ in range(num_facts):
        name = reader.text(MOST_NAME)
        if name in facts:
            raise _Malformed(f"each fact once, got {name} twice")
        facts[name] = reader.fact()
    alignment = facts.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**16 or alignment % 8:
        raise _Malformed(f"an alignment of a multiple of 8 bytes, got {alignment}")
    tensors: dict[str, Place] = {}
    for _ in range(num_tensors):
        name = reader.text(MOST_NAME)
        if name in tensors:
            raise _Malformed(f"each tensor once, got {name} twice")
        tensors[name] = _place(reader, name, alignment)
    data = -(-reader.at // alignment) * alignment
    _check_inside(tensors, size - data)
    return facts, tensors, data


def _place(reader: _Reader, name: str, alignment: int) -> Place:
    num_axes = reader.take("<I")
    if not 1 <= num_axes <= 4:
        raise _Malformed(f"one to four axes of {name}, got {num_axes}")
    sizes = [reader.take("<Q") for _ in range(num_axes)]
    number, start = reader.take("<I"), reader.take("<Q")
    kind = KINDS.get(number)
    if kind is None:
        raise _Malformed(
            f"{name} packed as {', '.join(KINDS.values())}, got type {number} of GGUF, which is not read here "
            "(a Q4_K_M or Q8_0 file is)"
        )
    weights, width = _block(kind)
    if sizes[0] % weights or min(sizes) < 1 or start % alignment:
        raise _Malformed(f"{name} in whole blocks of {weights} at a multiple of {alignment}, got {sizes} at {start}")
    return Place(kind, tuple(reversed(sizes)), start, prod(sizes) // weights * width)


def _block(kind: str) -> tuple[int, int]:
    """Weights and bytes of a block."""
    if kind in PLAIN:
        return 1, PLAIN[kind].itemsize
    return PACKINGS[kind].weights, PACKINGS[kind].bytes


def _check_inside(tensors: Mapping[str, Place], length: int) -> None:
    """Raises _Malformed unless the tensors lie one behind another within so many bytes of data."""
    end, before = 0, ""
    for name, place in sorted(tensors.items(), key=lambda item: item[1].start):
        if place.start < end:
            raise _Malformed(f"{name} behind {before}, got it at {place.start}, inside of it")
        end, before = place.start + place.length, name
    if end > length:
        raise _Malformed(f"{end} bytes of tensors, got {length}")
