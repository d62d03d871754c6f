"""The state of whoever keeps something from round to round: facts that JSON can hold, and tensors by name.

A keeper has `state()` and `load(state)`, and nobody else writes what it keeps. States of several keepers join into one
tree: a checkpoint is {server, method, devices, run}, a device's commit point {device, packing}, a worker's share a tree
of the server's state, restricted to some devices. A new keeper is one more branch, and no file format changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from cutlayer.types import Adapter


@dataclass(frozen=True, slots=True)
class State:
    """The state that a keeper needs to go on as if it had never stopped.

    Attributes:
      facts: what JSON can hold; of a tree, the facts of each branch by its name.
      tensors: by name; of a tree, `<branch>/<name>`. A branch's own name has no slash.

    Example:
      >>> tree = joined({"phone": State({"rows": 3}), "tablet": State()})
      >>> tree.branch("phone").facts
      {'rows': 3}
      >>> sorted(tree.branches())
      ['phone', 'tablet']
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Adapter = field(default_factory=dict)

    def branches(self) -> dict[str, State]:
        """The tree's branches by name, in one pass: there may be a thousand of them."""
        tensors: dict[str, Adapter] = {name: {} for name in self.facts}
        for path, value in self.tensors.items():
            name, _, rest = path.partition("/")
            tensors[name][rest] = value
        return {name: State(facts, tensors[name]) for name, facts in self.facts.items()}

    def branch(self, name: str) -> State:
        """One branch of the tree."""
        prefix = f"{name}/"
        own = {path.removeprefix(prefix): value for path, value in self.tensors.items() if path.startswith(prefix)}
        return State(self.facts[name], own)

    def copied(self) -> State:
        """The same, which further training does not change."""
        return self._mapped(lambda value: value.detach().clone())

    def moved(self, device: torch.device | str) -> State:
        """The same with its tensors on another device; those that are there already are not copied."""
        return self._mapped(lambda value: value.detach().to(device))

    def sent(self) -> State:
        """A copy in the CPU's memory, for a process that may compute elsewhere."""
        return self._mapped(lambda value: value.detach().to("cpu", copy=True))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> State:
        return State(deepcopy(dict(self.facts)), {name: change(value) for name, value in self.tensors.items()})


def joined(branches: Mapping[str, State] | Iterable[tuple[str, State]]) -> State:
    """A tree of these branches, by their names."""
    named = dict(branches)
    return State(
        {name: state.facts for name, state in named.items()},
        {f"{name}/{key}": value for name, state in named.items() for key, value in state.tensors.items()},
    )


class Keeper(Protocol):
    """A keeper of something that outlives a round."""

    def state(self) -> State:
        """The state that the keeper needs to go on from here."""

    def load(self, state: State) -> None:
        """Goes on from a `state`."""


class Stateless:
    """A keeper of nothing: what it decides depends on its round alone."""

    def state(self) -> State:
        """Nothing."""
        return State()

    def load(self, state: State) -> None:
        """Goes on from nothing."""
