"""An adapter whose gradients are applied some steps late: a forward pass uses the values that it had some steps ago.

    w(t+1) = w(t) - eta g(w(t - d))         d the delay; in the first d steps of a round, g(w(0))

The forward pass of step t uses the values after exactly max(0, t - d) steps, which are kept (stashed) until its
backward pass: the gradient is that of one point, however many steps are made meanwhile. Without a delay these are the
adapter's own tensors, and nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from cutlayer.model.optimizers import Rule
from cutlayer.model.trainable import Trainable
from cutlayer.types import Adapter


class Versions:
    """The values of an adapter as they were up to so many steps ago, in one round.

    Args:
      trainable: The adapter, as the round begins.
      delay: d.
    """

    def __init__(self, trainable: Trainable, delay: int = 0) -> None:
        self._trainable, self._delay = trainable, delay
        self._values: dict[int, Adapter] = {0: trainable.adapter()} if delay else {}  # by the steps that made them
        self._leaves: dict[int, dict[str, nn.Parameter]] = {}  # of the steps under way, for their gradients

    def of(self, step: int) -> Mapping[str, Tensor]:
        """The tensors with which a step runs, above and below a cut alike: they gather its gradients.

        Args:
          step: At most d steps ahead of those that are done.
        """
        if not self._delay:
            return self._trainable.parameters
        if step not in self._leaves:
            values = self._values[max(0, step - self._delay)]
            self._leaves[step] = {name: nn.Parameter(value) for name, value in values.items()}
        return self._leaves[step]

    def step(self, step: int, learning_rate: float, rule: Rule | None = None) -> None:
        """Moves the adapter by the gradients of a step: the next in order.

        Args:
          step: Whose gradients.
          learning_rate: Of the step.
          rule: See `Trainable.step`.
        """
        if self._delay:
            for name, leaf in self._leaves.pop(step).items():
                self._trainable.parameters[name].grad = leaf.grad
        self._trainable.step(learning_rate, rule)
        if self._delay:
            self._values[step + 1] = self._trainable.adapter()
            self._values = {made: values for made, values in self._values.items() if made > step - self._delay}
