"""A shape of a round, as its two ends share it: the device's talk, what a step runs, what an update differs from.

The server's end of the shape NAME is `rounds/NAME.py`, the device's is `device/talks/NAME.py`, which defines `SHAPE`.
On a real fleet the server tells the device the name. A device finds it among its own talks, or among the entry points
in the group `cutlayer.shapes` of what is installed on it: a server never names code that a device then imports.
"""

from __future__ import annotations

import pkgutil
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Literal, Protocol

from cutlayer.errors import JoinError
from cutlayer.model.base import Base
from cutlayer.packing import StartedFrom, all_of_it
from cutlayer.state import Keeper
from cutlayer.types import DevicePlan, Flow
from cutlayer.wire.link import Link

if TYPE_CHECKING:
    from cutlayer.device.device import Device

ENTRY_POINTS = "cutlayer.shapes"

Devices = Literal["any", "alone", "frozen", "training"]
"""The state that devices must be in under a plan: see `Shape`."""


class Talk(Keeper, Protocol):
    """The device's end of a shape: in which order the device does what it can, and what the talk itself keeps."""

    async def converse(self, link: Link) -> None:
        """Takes part in rounds until the server says that the run is over."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape of a round.

    Attributes:
      name: small letters, digits and hyphens.
      talk: makes the device's end for a device.
      flow: what a local step runs under a plan, for the cost model.
      started_from: of a model, what of a broadcast an update is the difference to.
      prepare: raises ConfigError where a model cannot serve under a plan; builds what must be built before a round.
      reads: of a plan, how many of the lowest blocks a device reads from the model's files, and the first block of the
        tail that it reads too (`DevicePlan.top`).
      at_sites: whether devices talk with their site, and what goes on from there to the server is the round's matter.
      copies_weights: whether devices may hold copies of frozen weights, which a fold does not reach.
      labels_stay: whether nothing of a device's labels is said, not even how many samples it has of each class.
      keeps_labels: whether labels of samples stay with the device, though it says how many it has of each class.
      devices: what devices must be under a plan: `alone` with the whole model, `frozen` (nothing on them trains),
        `training` (something does), or `any`.
    """

    name: str
    talk: Callable[[Device], Talk]
    flow: Callable[[DevicePlan], Flow] = lambda _plan: Flow()
    started_from: Callable[[Base], StartedFrom] = lambda _base: all_of_it
    prepare: Callable[[Base, DevicePlan], None] = lambda _base, _plan: None
    reads: Callable[[DevicePlan], tuple[int, int | None]] = lambda plan: (plan.cut, plan.top)
    at_sites: bool = False
    copies_weights: bool = False
    labels_stay: bool = False
    keeps_labels: bool = False
    devices: Devices = "any"

    @property
    def splits(self) -> bool:
        """Whether hidden states may leave a device."""
        return self.devices != "alone"

    @property
    def sends_labels(self) -> bool:
        """Whether labels of samples may leave a device."""
        return self.splits and not (self.labels_stay or self.keeps_labels)


@cache
def shape_by_name(name: str) -> Shape:
    """The shape that the server asks for.

    Raises:
      JoinError: There is none of that name here.
    """
    own = _own()
    if name in own:
        return _defined_in(own[name])
    installed = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in installed:
        found = installed[name].load()
        if isinstance(found, Shape) and found.name == name:
            return found
    raise JoinError(
        f"join: expected one of the shapes {', '.join(sorted({*own, *installed}))}, got {reprlib.repr(name)}. "
        "Install the server's version of cutlayer, and the package that the shape belongs to."
    )


def _own() -> dict[str, str]:
    """The modules of this package's talks, by the name of their shape."""
    package = import_module("cutlayer.device.talks")
    modules = (module.name for module in pkgutil.iter_modules(package.__path__))
    return {module.replace("_", "-"): f"{package.__name__}.{module}" for module in modules}


def _defined_in(module: str) -> Shape:
    shape: Shape = import_module(module).SHAPE
    return shape
