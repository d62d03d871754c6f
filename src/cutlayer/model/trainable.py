"""An adapter that somebody trains: Parameters, the rule that moves them, and what a checkpoint must keep of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cutlayer.model.optimizers import OptimizerSettings, Rule, adamw
from cutlayer.types import Adapter

__all__ = ["OptimizerSettings", "TrainSettings", "Trainable"]


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """Settings for training adapters, on either side.

    Attributes:
      optimizer: AdamW's settings.
      keep_moments: whether AdamW's moments outlive the end of a round, when averaged values come in.
      seed: of dropout.
    """

    optimizer: OptimizerSettings
    keep_moments: bool = True
    seed: int = 0


class Trainable:
    """One owner's trainable tensors and what moves them.

    Args:
      adapter: Starting values by global name; copied.
      rule: How a step is made (`model/optimizers.py`); settings are those of AdamW.
    """

    def __init__(self, adapter: Mapping[str, Tensor], rule: Rule | OptimizerSettings) -> None:
        self._rule = adamw(rule) if isinstance(rule, OptimizerSettings) else rule
        self.parameters: dict[str, nn.Parameter] = {}
        self._moments: Adapter = {}
        self._fitted = True  # whether the moments are this owner's own, and of its parameters
        self.load(adapter)

    def load(self, adapter: Mapping[str, Tensor]) -> None:
        """Takes these values. Moments are kept for tensors that stay, begin anew for new names and new shapes.

        Gradients of a step that has not been done to its end are dropped.
        """
        if _shapes(adapter) == _shapes(self.parameters):
            with torch.no_grad():
                for name, value in adapter.items():
                    self.parameters[name].copy_(value)
                    self.parameters[name].grad = None
            return
        self.parameters = {name: nn.Parameter(value.detach().clone()) for name, value in adapter.items()}
        self._fitted = False

    def shrink(self, smaller: Callable[[Adapter], Adapter]) -> None:
        """Cuts values and moments alike: the rule goes on with what is left as if there had never been more.

        Args:
          smaller: Of tensors by name, what is left of each; moments come as `<name>#<key>`.
        """
        moments = self.moments()
        counts = {name: value for name, value in moments.items() if value.ndim == 0}
        left = smaller(self.values())
        self.parameters = {name: nn.Parameter(value.clone()) for name, value in left.items()}
        self._moments = counts | smaller({name: value for name, value in moments.items() if name not in counts})
        self._fitted = False

    def step(self, learning_rate: float, rule: Rule | None = None) -> None:
        """One step, on the gradients that have arrived; then there are none.

        Args:
          learning_rate: Of this step.
          rule: What makes this one step in place of the owner's rule, such as `zeroth(terms)`.
        """
        if not self.parameters:
            return
        self._fit()
        with torch.no_grad():
            (rule or self._rule)(self.parameters, self._moments, learning_rate)
        for parameter in self.parameters.values():
            parameter.grad = None

    def adapter(self) -> Adapter:
        """A copy of the values."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def values(self) -> Adapter:
        """The values themselves, not copied: they change with the next step or load."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def moments(self) -> Adapter:
        """The tensors that the rule remembers, as `<name>#<key>`; of AdamW `step`, `exp_avg`, `exp_avg_sq`."""
        places = {name: place for place, name in enumerate(self.parameters)}
        by_place = sorted(self._moments.items(), key=lambda item: places.get(_owner(item[0]), len(places)))
        return dict(by_place)

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Takes a state that `moments` gave; none at all begins anew."""
        self._moments = dict(moments)
        self._fitted = False

    def _fit(self) -> None:
        """Makes the moments this owner's own: copies of those whose parameter is there and has their shape."""
        if self._fitted:
            return
        foreign = {
            _owner(key)
            for key, value in self._moments.items()
            if (parameter := self.parameters.get(_owner(key))) is None
            or (value.ndim and value.shape != parameter.shape)
        }
        self._moments = {
            key: value.clone().to(self.parameters[_owner(key)].device)
            for key, value in self._moments.items()
            if _owner(key) not in foreign
        }
        self._fitted = True


def _owner(key: str) -> str:
    """`<name>#<key>` -> the tensor's name."""
    return key.rpartition("#")[0]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
