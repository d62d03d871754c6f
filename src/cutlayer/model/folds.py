"""Folds: stacks of LoRA factors that were added to the frozen weights, one after each round.

All folds of a run are one dictionary, `<number>/<global name>` -> factor, in messages, on the server and in a
checkpoint. Whoever has folded them all, in the order of their numbers, has the same weights, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cutlayer.model.low_rank import Term, factor_names, stacked, truncated
from cutlayer.types import Adapter


def numbered(number: int, stack: Mapping[str, Tensor]) -> Adapter:
    """A stack as fold of this number."""
    return {f"{number}/{name}": value for name, value in stack.items()}


def by_number(folds: Mapping[str, Tensor]) -> list[tuple[int, Adapter]]:
    """The stacks with their numbers, lowest first."""
    stacks: dict[int, Adapter] = {}
    for key, value in folds.items():
        number, _, name = key.partition("/")
        stacks.setdefault(int(number), {})[name] = value
    return sorted(stacks.items())


def taken_back(adapter: Mapping[str, Tensor], folds: Mapping[str, Tensor]) -> Adapter:
    """The adapter that is on the weights as they are stored what `adapter` is on the folded ones.

    Its rank is the sum of all ranks, or the largest rank that a module can have if that is less: then the sum is
    factored anew, to the last bits of fp32.
    """
    if not folds:
        return dict(adapter)
    stacks = [stack for _, stack in by_number(folds)]
    names = factor_names(adapter)
    most = max(min(adapter[b].shape[0], adapter[a].shape[1]) for b, a in names)
    result = dict(adapter)
    for b, a in names:
        terms: list[Term] = [(1.0, part[b], part[a]) for part in (*stacks, adapter) if a in part]
        result[b], result[a] = _at_most(terms, most)
    return result


def _at_most(terms: Sequence[Term], rank: int) -> tuple[Tensor, Tensor]:
    """The sum of the terms as factors of at most this rank, which is enough for it; zeros where it has less."""
    b_MR, a_RN = stacked(terms)
    if a_RN.shape[0] <= rank:
        return b_MR, a_RN
    b_MJ, a_JN = (factor.float() for factor in truncated(b_MR, a_RN, rank))
    missing = rank - a_JN.shape[0]
    return torch.nn.functional.pad(b_MJ, (0, missing)), torch.nn.functional.pad(a_JN, (0, 0, 0, missing))
