"""Stack-merge: the devices' factors side by side are the mean of their products, exactly, and go into the base (FLoRA).

    here                                 the authors' code (FLoRA)
    ---------------------------------    ---------------------------------------------------------
    stack()                              A = concat of w_k A_k, B = concat of B_k: B A = sum of w_k B_k A_k
    Server.fold, Base.fold               the stack is merged into the base model of everyone
    begin_anew()                         the next round trains a fresh adapter, B = 0

A method that folds changes the frozen weights from round to round. Activations that were kept for later, and copies of
the weights that pruning made, would be those of another model: `Method.make_plan` refuses both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cutlayer.model.adapter import initial_tensor
from cutlayer.model.low_rank import factor_names, stacked
from cutlayer.policies.aggregate import Aggregate, Contribution, mean_per_block, terms_of
from cutlayer.state import State
from cutlayer.types import Adapter, RoundPlan


def stack(contributions: Sequence[Contribution]) -> Adapter:
    """One stack of factors for each module: its product is the mean of the products, weighted by what was trained.

    The rank of a module is the sum of the ranks of those who trained it. The weight is in A alone.

    Example:
      >>> import torch
      >>> from cutlayer import Contribution, stack
      >>> def of_rank(rank: int) -> Contribution:
      ...     factors = {"q.lora_A.weight": torch.ones(rank, 2), "q.lora_B.weight": torch.ones(2, rank)}
      ...     return Contribution(factors, dict.fromkeys(factors, 1.0))
      >>> stacked = stack([of_rank(1), of_rank(2)])
      >>> stacked["q.lora_A.weight"].shape, stacked["q.lora_B.weight"] @ stacked["q.lora_A.weight"]
      (torch.Size([3, 2]), tensor([[1.5000, 1.5000],
              [1.5000, 1.5000]]))
    """
    result: Adapter = {}
    everything = dict.fromkeys(name for part in contributions for name in part.adapter)
    for b, a in factor_names(everything):
        terms = terms_of(contributions, b, a)
        total = sum(weight for weight, _, _ in terms)
        if terms:
            result[b], result[a] = stacked([(weight / total, b_k, a_k) for weight, b_k, a_k in terms])
    return result


def begin_anew(seed: int) -> Aggregate:
    """Fresh LoRA factors after each round: B = 0, A drawn by the seed, the round and the name. The head is averaged.

    Goes with a method's `fold=stack`, which keeps what the factors had learnt.

    Example:
      >>> import torch
      >>> from cutlayer import Contribution, RoundPlan, begin_anew
      >>> def of_rank(rank: int) -> Contribution:
      ...     factors = {"q.lora_A.weight": torch.ones(rank, 2), "q.lora_B.weight": torch.ones(2, rank)}
      ...     return Contribution(factors, dict.fromkeys(factors, 1.0))
      >>> fresh = begin_anew(seed=0)(of_rank(2).adapter, [of_rank(1), of_rank(2)], RoundPlan(0))
      >>> fresh["q.lora_B.weight"]
      tensor([[0., 0.],
              [0., 0.]])
    """
    return _BeginAnew(seed)


class _BeginAnew:
    name, mixed_ranks = "stacking", True

    def __init__(self, seed: int) -> None:
        self._seed, self._num_rounds = seed, 0
        self._mean = mean_per_block()

    def __call__(self, broadcast: Adapter, contributions: Sequence[Contribution], plan: RoundPlan) -> Adapter:
        self._num_rounds += 1
        fresh: Adapter = {}
        for b, a in factor_names(broadcast):
            draw = initial_tensor(f"{a}#{self._num_rounds}", broadcast[a].shape, seed=self._seed, std=0.0)
            fresh[b], fresh[a] = torch.zeros_like(broadcast[b]), draw.to(broadcast[a])
        head = self._mean({name: value for name, value in broadcast.items() if name not in fresh}, contributions, plan)
        return {name: fresh[name] if name in fresh else head[name] for name in broadcast}

    def state(self) -> State:
        return State({"num_rounds": self._num_rounds})

    def load(self, state: State) -> None:
        self._num_rounds = int(state.facts.get("num_rounds", 0))
