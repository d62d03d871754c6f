"""An adapter that somebody trains: Parameters, AdamW, and what a checkpoint must keep of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cutlayer.types import Adapter


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW.

    Attributes:
      weight_decay: decoupled decay of every trainable tensor.
      beta1, beta2, epsilon: as in the paper.
      clip: largest norm of the gradient of one owner's tensors on one side of the cut; 0 is no clipping. A device
        and the server each clip what they hold: neither sees the other's gradients.
    """

    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    clip: float = 0.0


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """How adapters are trained, on either side.

    Attributes:
      optimizer: AdamW's settings.
      keep_moments: whether AdamW's moments outlive the end of a round, when averaged values come in.
      seed: of dropout.
    """

    optimizer: OptimizerSettings
    keep_moments: bool = True
    seed: int = 0


class Trainable:
    """One owner's trainable tensors and their optimizer.

    Args:
      adapter: Starting values by global name; copied.
      settings: The optimizer.
    """

    def __init__(self, adapter: Mapping[str, Tensor], settings: OptimizerSettings) -> None:
        self._settings = settings
        self.parameters: dict[str, nn.Parameter] = {}
        self._moments: Adapter = {}
        self._optimizer: torch.optim.AdamW | None = None
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
        self._moments = self.moments()
        self.parameters = {name: nn.Parameter(value.detach().clone()) for name, value in adapter.items()}
        self._optimizer = None

    def shrink(self, smaller: Callable[[Adapter], Adapter]) -> None:
        """Cuts values and moments alike: AdamW goes on with what is left as if there had never been more.

        Args:
          smaller: Of tensors by name, what is left of each; moments come as `<name>#<key>`.
        """
        moments = self.moments()
        counts = {name: value for name, value in moments.items() if value.ndim == 0}
        left = smaller(self.values())
        self.parameters = {name: nn.Parameter(value.clone()) for name, value in left.items()}
        self._moments = counts | smaller({name: value for name, value in moments.items() if name not in counts})
        self._optimizer = None

    def step(self, learning_rate: float) -> None:
        """One AdamW step on the gradients that have arrived; then there are none."""
        if not self.parameters:
            return
        if self._settings.clip > 0:
            nn.utils.clip_grad_norm_(self.parameters.values(), self._settings.clip)
        optimizer = self._adamw()
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def adapter(self) -> Adapter:
        """A copy of the values."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def values(self) -> Adapter:
        """The values themselves, not copied: they change with the next step or load."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def moments(self) -> Adapter:
        """AdamW's state as tensors: `<name>#step`, `<name>#exp_avg`, `<name>#exp_avg_sq`."""
        if self._optimizer is None:
            return dict(self._moments)
        return {
            f"{name}#{key}": value
            for name, parameter in self.parameters.items()
            for key, value in self._optimizer.state[parameter].items()
        }

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Takes a state that `moments` gave; none at all begins anew."""
        self._moments = dict(moments)
        self._optimizer = None

    def _adamw(self) -> torch.optim.AdamW:
        if self._optimizer is None:
            s = self._settings
            self._optimizer = torch.optim.AdamW(
                self.parameters.values(),
                lr=0.0,  # set before every step
                betas=(s.beta1, s.beta2),
                eps=s.epsilon,
                weight_decay=s.weight_decay,
                fused=True,
            )
            for name, parameter in self.parameters.items():
                state = {
                    key: self._moments[f"{name}#{key}"].clone().to(parameter.device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"{name}#{key}" in self._moments
                }
                if state and state["exp_avg"].shape == parameter.shape:
                    self._optimizer.state[parameter] = state
            self._moments = {}
        return self._optimizer


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
