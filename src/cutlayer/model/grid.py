"""The grid of a tensor: whole multiples of a power of two, among which fp32 adds and subtracts without rounding.

fp32 holds every whole number up to 2^24, so it holds every multiple of `unit` up to `reach` = 2^24 unit. A tensor whose
elements are such multiples can be moved by such multiples and back, in any order, and is then what it was, to the
bit. Zeroth-order methods move weights along seeded noise and back again, thousands of times; on the grid that needs
no copy of the weights, and a weight does not depend on the way that led to it.

Putting a tensor on its grid rounds it once, by at most half a unit: 2^-25 for weights below 1/2, as most tensors of a
language model are, which is the precision that fp32 has for numbers between 1/2 and 1.

Shapes: N elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

_WHOLE = 2**24
"""fp32 holds every whole number up to here."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The multiples of a unit.

    Attributes:
      unit: a power of two.
    """

    unit: float

    @staticmethod
    def of(tensor: Tensor) -> Grid:
        """The grid that leaves an fp32 tensor room to double, and to reach 1 in any case."""
        largest = float(tensor.abs().max()) if tensor.numel() else 0.0
        _, exponent = math.frexp(2 * largest)  # 2 largest < 2^exponent, with no logarithm that a library rounds
        return Grid(2.0 ** max(0, exponent) / _WHOLE)

    @property
    def reach(self) -> float:
        """The largest magnitude up to which every multiple is a number of fp32."""
        return self.unit * _WHOLE

    def snap(self, values_N: Tensor) -> None:
        """Rounds to the nearest multiples, in place."""
        values_N.copy_(self.steps(values_N).mul_(self.unit))

    def steps(self, values_N: Tensor) -> Tensor:
        """The nearest multiples, as whole numbers in fp32; of two that are as near, the even one."""
        return (values_N * (1 / self.unit)).round_()

    def holds(self, values_N: Tensor) -> bool:
        """Whether every element is finite and at most three quarters of the reach: the rest is for perturbations."""
        return bool(values_N.abs().max() <= 0.75 * self.reach)
