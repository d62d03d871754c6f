"""Weights as llama.cpp packs them, and the numbers that they stand for: a few lines of torch for each way of packing.

A matrix is packed row by row, in blocks of 32 or 256 weights; a block is a scale (fp16), in some ways an offset, and a
few bits for each weight. The numbers are those of `dequantize` in llama.cpp's `gguf` package, bit for bit
(`tests/model/test_packed.py`), because each product and each sum is rounded to fp32 where it is there.

A safetensors file can hold such a tensor too: as bytes, with a note on how to read them in the file's metadata. That is
how a server sends a part of a GGUF model to a device, in the few bits that it has in the file (`model/pieces.py`).

Shapes: N blocks, G groups of a block.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cutlayer.errors import ModelError

NOTE = "packed"
"""The word of a safetensors file's metadata under which stands how its packed tensors are to be read."""
AT_ONCE = 2**22
"""Weights that are unpacked at a time: a large matrix is never there twice in fp32."""
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes of numbers that are not packed, by the names that GGUF and safetensors share."""


@dataclass(frozen=True, slots=True)
class Packing:
    """A way of packing weights.

    Attributes:
      weights: of a block.
      bytes: of a block.
      unpack: (N, bytes) of uint8 to (N, weights) of fp32.
    """

    weights: int
    bytes: int
    unpack: Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Stored:
    """The form in which a tensor lies in its file.

    Attributes:
      kind: a name of `PLAIN` or `PACKINGS`.
      heads: the heads whose rows llama.cpp has put in another order, as it does with queries and keys of Llamas; 0
        where rows are in transformers' order.
    """

    kind: str
    heads: int = 0


def unpacked(values: Tensor, stored: Stored, name: str) -> Tensor:
    """The tensor that transformers would have: fp32 of what was packed, rows in its order.

    Args:
      values: As they lie in the file: (rows, bytes) of uint8 where they are packed.
      stored: How they lie there.
      name: The tensor's, for the error.

    Raises:
      ModelError: They do not lie there like that.
    """
    found = PACKINGS.get(stored.kind)
    if found is not None:
        if values.dtype is not torch.uint8 or values.dim() == 0 or values.shape[-1] % found.bytes:
            raise _not_stored(name, f"rows of whole {stored.kind} blocks of {found.bytes} bytes", values)
        values = _unpacked(values, found)
    elif values.dtype is not PLAIN.get(stored.kind):
        raise _not_stored(name, f"one of {', '.join((*PLAIN, *PACKINGS))}, and {stored.kind} as it says", values)
    if not stored.heads:
        return values
    if values.dim() == 0 or stored.heads < 0 or values.shape[0] % (2 * stored.heads):
        raise _not_stored(name, f"rows of {stored.heads} heads, each an even number", values)
    width, rest = values.shape[0] // stored.heads // 2, values.shape[1:]
    return values.reshape(stored.heads, width, 2, *rest).transpose(1, 2).reshape(values.shape)


def _not_stored(name: str, expected: str, values: Tensor) -> ModelError:
    return ModelError(
        f"tensor {name}: expected {expected}, got {list(values.shape)} of {values.dtype}. Fetch the file again."
    )


def _unpacked(values: Tensor, packing: Packing) -> Tensor:
    blocks = values.reshape(-1, packing.bytes)
    numbers = torch.empty(blocks.shape[0], packing.weights)
    for first in range(0, blocks.shape[0], step := AT_ONCE // packing.weights):
        numbers[first : first + step] = packing.unpack(blocks[first : first + step])
    return numbers.view(*values.shape[:-1], -1)


def written_note(packed: Mapping[str, Stored]) -> dict[str, str]:
    """The metadata of a safetensors file that says of these tensors how they lie in it; empty for none."""
    note = {name: [one.kind, one.heads] for name, one in packed.items()}
    return {NOTE: json.dumps(note, sort_keys=True)} if note else {}


def read_note(metadata: Mapping[str, str] | None, name: str) -> Stored | None:
    """The note that `written_note` wrote of a tensor; None where the tensor lies in the file as it is.

    Raises:
      ModelError: It is no such note.
    """
    text = (metadata or {}).get(NOTE)
    if text is None:
        return None
    try:
        note = json.loads(text).get(name)
        if note is None:
            return None
        kind, heads = note
        if type(kind) is not str or type(heads) is not int or kind not in {*PLAIN, *PACKINGS}:
            raise ValueError(f"{note}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(
            f"tensor {name}: expected a note on how it is packed, got {str(error)[:80]}. Fetch the file again."
        ) from error
    return Stored(kind, heads)


# ------------------------------------------------------------------ the ways of packing


def _half(blocks: Tensor, first: int) -> Tensor:
    """The fp16 number at this byte of each block, as fp32: (N, 1)."""
    return blocks[:, first : first + 2].contiguous().view(torch.float16).float()


def _nibbles(blocks: Tensor, width: int) -> Tensor:
    """The lower halves of each `width` bytes and then the upper: (N, bytes * 2 / width, width) of (N, bytes)."""
    groups = blocks.reshape(blocks.shape[0], -1, 1, width)
    return torch.cat((groups & 15, groups >> 4), 2).flatten(1, 2)


def _bits(blocks: Tensor) -> Tensor:
    """The bits of each byte, the lowest first: (N, bytes * 8)."""
    return (blocks[..., None] >> torch.arange(8, dtype=torch.uint8) & 1).flatten(1)


def _q4_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * (_nibbles(blocks[:, 2:], 16).flatten(1).float() - 8)


def _q4_1(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * _nibbles(blocks[:, 4:], 16).flatten(1).float() + _half(blocks, 2)


def _q5_0(blocks: Tensor) -> Tensor:
    fives = _nibbles(blocks[:, 6:], 16).flatten(1) | _bits(blocks[:, 2:6]) << 4
    return _half(blocks, 0) * (fives.float() - 16)


def _q5_1(blocks: Tensor) -> Tensor:
    fives = _nibbles(blocks[:, 8:], 16).flatten(1) | _bits(blocks[:, 4:8]) << 4
    return _half(blocks, 0) * fives.float() + _half(blocks, 2)


def _q8_0(blocks: Tensor) -> Tensor:
    return _half(blocks, 0) * blocks[:, 2:].contiguous().view(torch.int8).float()


def _scales_and_offsets(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """The factors by which the eight groups of 256 weights are multiplied, and what is taken off: twice (N, 8, 1)."""
    packed = blocks[:, 4:16]
    scales, offsets, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat((scales & 63, (rest & 15) | (scales >> 2 & 48)), 1).float()
    offsets = torch.cat((offsets & 63, (rest >> 4) | (offsets >> 2 & 48)), 1).float()
    return (_half(blocks, 0) * scales)[..., None], (_half(blocks, 2) * offsets)[..., None]


def _q4_k(blocks: Tensor) -> Tensor:
    scales, offsets = _scales_and_offsets(blocks)
    return (scales * _nibbles(blocks[:, 16:], 32).float() - offsets).flatten(1)


def _q5_k(blocks: Tensor) -> Tensor:
    scales, offsets = _scales_and_offsets(blocks)
    fifth = blocks[:, None, 16:48] >> torch.arange(8, dtype=torch.uint8)[:, None] & 1
    return (scales * (_nibbles(blocks[:, 48:], 32) | fifth << 4).float() - offsets).flatten(1)


def _q6_k(blocks: Tensor) -> Tensor:
    scales = _half(blocks, 208) * blocks[:, 192:208].contiguous().view(torch.int8).float()
    low = _nibbles(blocks[:, :128], 64).reshape(-1, 8, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> torch.tensor([0, 2, 4, 6], dtype=torch.uint8)[:, None] & 3
    sixes = (low | high.reshape(-1, 8, 32) << 4).float() - 32
    return (scales[..., None] * sixes.reshape(-1, 16, 16)).flatten(1)


PACKINGS = {
    "Q4_0": Packing(32, 18, _q4_0),
    "Q4_1": Packing(32, 20, _q4_1),
    "Q5_0": Packing(32, 22, _q5_0),
    "Q5_1": Packing(32, 24, _q5_1),
    "Q8_0": Packing(32, 34, _q8_0),
    "Q4_K": Packing(256, 144, _q4_k),
    "Q5_K": Packing(256, 176, _q5_k),
    "Q6_K": Packing(256, 210, _q6_k),
}
