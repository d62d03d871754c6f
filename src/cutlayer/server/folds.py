"""The folds of a run on its server: what was added to the base's weights, and how much of that each device has."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from cutlayer.model.base import Base
from cutlayer.model.folds import by_number, numbered, taken_back
from cutlayer.state import State
from cutlayer.types import Adapter


class Folds:
    """All folds, kept for devices that have yet to have them, and for the export.

    Args:
      base: The model; what an earlier run of this process has folded is taken back.

    Attributes:
      all: by `<number>/<name>` (`model/folds.py`).
      held: by device, how many it has of each block: a device may have held fewer blocks once.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self.all: Adapter = {}
        self.held: dict[str, list[int]] = {}
        base.unfold()

    def add(self, stack: Mapping[str, Tensor]) -> None:
        """Adds the product of a stack to the base: here now, on each device with its next assignment."""
        new = numbered(self._number, stack)
        self.all |= new
        self._base.fold(new)

    def missed(self, device: str, names: Iterable[str]) -> Adapter:
        """The folds of these tensors that a device has not had with its last update, or with one when it held them."""
        if not self.all:
            return {}
        held = self.held.get(device, [0] * self._base.num_blocks)
        since = {name: 0 if (block := self._base.block_of(name)) is None else held[block] for name in names}
        return {
            key: value
            for number, stack in by_number(self.all)
            for key, value in numbered(
                number, {name: stack[name] for name in stack if since.get(name, number + 1) <= number}
            ).items()
        }

    def has_all(self, device: str, num_blocks: int) -> None:
        """A device has folded all that there are of its lowest blocks."""
        before = self.held.get(device, [0] * self._base.num_blocks)
        self.held[device] = [self._number] * num_blocks + before[num_blocks:]

    def taken_back(self, adapter: Mapping[str, Tensor]) -> Adapter:
        """The adapter as it is on the base as stored, which folds have not changed."""
        return taken_back(adapter, self.all)

    @property
    def num_bytes(self) -> int:
        """The memory that all folds so far take."""
        return sum(value.nbytes for value in self.all.values())

    def state(self, devices: Collection[str] | None = None) -> State:
        """All folds, and how many of them these devices have, or all devices, of each block."""
        return State({"held": {n: h for n, h in self.held.items() if devices is None or n in devices}}, dict(self.all))

    def load(self, state: State) -> None:
        """Goes on from a `state`: folds what was folded before a stop, and not yet here."""
        self.all |= state.tensors
        self.held |= state.facts["held"]
        self._base.fold(state.tensors)

    @property
    def _number(self) -> int:
        return len(by_number(self.all))
