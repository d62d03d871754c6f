"""What a device that prunes knows of its model: what is left, and how much each unit has mattered so far."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cutlayer.model.base import Base
from cutlayer.model.importance import magnitudes, smooth, unit_scores
from cutlayer.model.part import WholePart
from cutlayer.model.structure import units_by_name
from cutlayer.policies.prune import most_important
from cutlayer.state import State
from cutlayer.types import Adapter


class Pruning:
    """The structure of one device's model.

    Args:
      base: the model.

    Attributes:
      kept: what is left.

    Raises:
      ConfigError: This model or these LoRA targets cannot be pruned.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self.kept = base.structure.everything
        self._importance: Adapter = {}

    def prune(self, ratio: float) -> None:
        """Removes the least important units until this share of each block is gone; what is gone stays gone.

        Importance is what earlier rounds' gradients say; before there were any, the size of the weights.
        """
        if ratio > 0:
            left = self._base.structure.left(ratio)
            self.kept = most_important(self._importance or magnitudes(self._base), self.kept, left)
            units = dict(units_by_name(self.kept))
            self._importance = {name: _only(scores, units[name]) for name, scores in self._importance.items()}

    def observe(self, part: WholePart, parameters: Mapping[str, nn.Parameter]) -> None:
        """Learns from one step's gradients, before the step is taken."""
        self._importance = smooth(self._importance, unit_scores(self._base, part, parameters, self.kept))

    def state(self) -> State:
        """Structure and importance as tensors: what a checkpoint holds and what the server is told."""
        return State(tensors=self._base.structure.to_tensors(self.kept, self._importance))

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        self.kept, self._importance = self._base.structure.from_tensors(state.tensors, "checkpoint")


def _only(scores: Tensor, units: tuple[int, ...]) -> Tensor:
    """The scores of these units; 0 for the others, which are gone."""
    chosen = torch.tensor(units, device=scores.device)
    return torch.zeros_like(scores).index_copy_(0, chosen, scores[chosen])
