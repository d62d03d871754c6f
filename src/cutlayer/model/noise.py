"""Standard normal noise that anybody can make again: a function of a seed, a tensor's name and an element's place.

Zeroth-order methods send a seed and a scalar in place of a gradient; whoever has the seed makes the direction again.
torch's generators give a CPU and a GPU different numbers for one seed, and their numbers depend on what was drawn
before. Here each element is computed by itself, and to the same bits on every machine:

    bits    Philox 4x64-10 (Salmon et al., SC 2011) of the key (seed, name); block i, which serves the elements
            8 i to 8 i + 7, is that of counter i + 1
    normal  the inverse of the normal distribution function. 31 bits say how far out, p = (m + 1/2) / 2^32, the
            sign bit on which side; z is a quotient of two polynomials of degree 5 in (m + 1/2)^(1/8), fitted to it

Of the arithmetic only operations that IEEE 754 rounds exactly are used, each a call of its own, so that no compiler
may contract two of them: +, -, *, / and the square root, in fp32. Logarithms and cosines differ between libraries. The
noise is made in fp32 and then cast. |z| is at most 6.34; its error is below 2e-5, which no sample of fewer than 1e9
numbers would show.

Shapes: S seeds, N elements.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")

Term = tuple[int, float]
"""A seed and the factor of its noise."""

PIECE = 2**16
"""Elements that are made at a time on a CPU: their arithmetic stays in its cache, in less than 2 MB."""
PIECE_ELSEWHERE = 2**19
"""The same on an accelerator, where each of some 400 small kernels has its own cost."""
SMALL = 2**14
"""Fewer elements than this are made by the CPU and sent to the accelerator."""

_WORDS = 8  # 32-bit words of a block
_ROUNDS = 10
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_LOW = 0xFFFFFFFF
_ALL = 2**64 - 1

# z = P(x) / Q(x) of x = (m + 1/2)^(1/8) - MIDDLE, lowest power first, each in fp32
_MIDDLE = 7.794534
_ABOVE = (2.72941787, -2.00910178e-1, -6.41029168e-2, 3.34007644e-3, 3.31378167e-4, -9.32678280e-6)
_BELOW = (1.0, 5.03828906e-2, -1.88298370e-2, -7.03791318e-4, 7.42836116e-5, 1.26956556e-6)


def normal(seeds: Sequence[int], name: str, start: int, end: int, device: torch.device | str = "cpu") -> Tensor:
    """The noise of elements `[start, end)` of the tensor of this name, fp32 of shape (S, end - start).

    Args:
      seeds: 0 to 2^64 - 1.
      name: The global name; other names have other noise.
      start, end: Places in the flattened tensor.
      device: Where it is wanted.
    """
    return to_normal(torch.stack([bits(seed, name, start, end, device) for seed in seeds]))


def combined(terms: Sequence[Term], name: str, start: int, end: int, device: torch.device | str = "cpu") -> Tensor:
    """The sum of factor x noise over the terms, in their order, fp32 of shape (end - start,). See `normal`."""
    sum_N = torch.zeros(end - start, device=device)
    for some in in_groups(terms, end - start):
        z_SN = normal([seed for seed, _ in some], name, start, end, device)
        for (_, factor), z_N in zip(some, z_SN, strict=True):
            sum_N.add_(z_N.mul_(factor))
    return sum_N


def uniform(seed: int, name: str, start: int, end: int, device: torch.device | str = "cpu") -> Tensor:
    """Multiples of 2^-24 in [0, 1), fp32 of shape (end - start,). See `normal`."""
    return (bits(seed, name, start, end, device) >> 8).bitwise_and_(2**24 - 1).float().mul_(2.0**-24)


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements of a tensor that are worked on together.

    Attributes:
      name: the tensor's.
      start: the place of the first of them in the flattened tensor.
      values_N: the elements themselves; writing to them writes to the tensor.
    """

    name: str
    start: int
    values_N: Tensor

    @property
    def end(self) -> int:
        return self.start + len(self.values_N)

    def normal(self, seeds: Sequence[int]) -> Tensor:
        """The noise of these seeds, (S, N)."""
        return normal(seeds, self.name, self.start, self.end, self.values_N.device)

    def combined(self, terms: Sequence[Term]) -> Tensor:
        """The sum of factor x noise, (N,)."""
        return combined(terms, self.name, self.start, self.end, self.values_N.device)


def pieces(tensors: Mapping[str, Tensor]) -> Iterator[Piece]:
    """All elements of contiguous tensors, in pieces; of tensors that hold nothing (`meta`), none."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            continue
        size = PIECE if tensor.device.type == "cpu" else PIECE_ELSEWHERE
        for index, values_N in enumerate(tensor.detach().view(-1).split(size) if tensor.numel() else ()):
            yield Piece(name, index * size, values_N)


def in_groups(items: Sequence[T], num_elements: int) -> Iterator[Sequence[T]]:
    """The items in groups of as many as have, with so many elements each, no more than a piece together."""
    at_once = max(1, PIECE // max(1, num_elements))
    return (items[first : first + at_once] for first in range(0, len(items), at_once))


def to_normal(bits_N: Tensor) -> Tensor:
    """Normal numbers from random 32-bit patterns (int32), fp32 of the same shape."""
    signed_N = bits_N.to(torch.float32).add_(0.5)
    x_N = _root(_root(_root(signed_N.abs()))).sub_(_MIDDLE)
    return _polynomial(_ABOVE, x_N).div_(_polynomial(_BELOW, x_N)).copysign_(signed_N)


def bits(seed: int, name: str, start: int, end: int, device: torch.device | str = "cpu") -> Tensor:
    """The random 32-bit patterns of elements `[start, end)`, int32 of shape (end - start,). See `normal`."""
    first, last = start // _WORDS, -(-end // _WORDS)
    device = torch.device(device)
    if device.type == "cpu" or end - start < SMALL:
        key = np.array([seed, _key_of(name)], np.uint64)
        counter = np.array([first, 0, 0, 0], np.uint64)  # of the block before: numpy counts, then computes
        raw: NDArray[np.uint64] = np.random.Philox(key=key, counter=counter).random_raw((last - first) * _WORDS // 2)
        words = torch.from_numpy(raw.view(np.int32)).to(device)
    else:
        counter_N = torch.arange(first + 1, last + 1, device=device)
        zero_N = torch.zeros_like(counter_N)
        words = philox((counter_N, zero_N, zero_N, zero_N), (seed, _key_of(name))).view(torch.int32).view(-1)
    return words[start - first * _WORDS : end - first * _WORDS]


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """Philox 4x64-10 in torch's operations: the four words of each counter, (N, 4). What accelerators run.

    Args:
      counter: Its words, lowest first, int64 of shape (N,), the bits of unsigned numbers.
      key: Its words.
    """
    c0, c1, c2, c3 = counter
    for round in range(_ROUNDS):
        (high0, low0), (high1, low1) = _product(c0, _MULTIPLIERS[0]), _product(c2, _MULTIPLIERS[1])
        key0, key1 = (_signed(word + round * step) for word, step in zip(key, _WEYL, strict=True))
        c0, c1, c2, c3 = (
            high1.bitwise_xor_(c1).bitwise_xor_(key0),
            low1,
            high0.bitwise_xor_(c3).bitwise_xor_(key1),
            low0,
        )
    return torch.stack((c0, c1, c2, c3), dim=-1)


def _product(x: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """The upper and the lower 64 bits of an unsigned product, from products of halves; int64 wraps around."""
    high, low = multiplier >> 32, multiplier & _LOW
    x_high, x_low = _upper(x), x & _LOW
    middle = x_high * low + _upper(x_low * low)
    other = x_low * high + (middle & _LOW)
    return x_high * high + _upper(middle) + _upper(other), x * _signed(multiplier)


def _upper(x: Tensor) -> Tensor:
    return (x >> 32).bitwise_and_(_LOW)


def _signed(word: int) -> int:
    """The signed number of the same 64 bits."""
    word &= _ALL
    return word - 2**64 if word >> 63 else word


def _root(x_N: Tensor) -> Tensor:
    """The square root, rounded as IEEE 754 rounds it. On a CPU torch's own is its vector library's, which is not."""
    if x_N.device.type == "cpu":
        return torch.from_numpy(np.sqrt(x_N.numpy()))
    # right even where fp64 errs by a unit: a root of 24 bits is never that near to half-way between two of 24
    return x_N.double().sqrt_().float()


def _polynomial(coefficients: Sequence[float], x_N: Tensor) -> Tensor:
    *others, last = coefficients
    sum_N = x_N * last
    for coefficient in reversed(others[1:]):
        sum_N.add_(coefficient).mul_(x_N)
    return sum_N.add_(others[0])


@lru_cache(maxsize=2**14)
def _key_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
