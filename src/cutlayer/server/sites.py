"""Sites as the server talks with them: simulated ones (`run/sites.py`), or processes of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from cutlayer.server.ledger import Tally
from cutlayer.types import Adapter
from cutlayer.wire.messages import Assignment, SiteRound, Update

MOST_COUNT = 2**50
"""The most of anything that a site counts in a round: above what a round has, and far below what numbers hold."""


class DeviceRow(BaseModel):
    """A row of what a site saw of one of its devices in a round, as it tells the server.

    Attributes:
      name: the device.
      stayed: whether its update counted.
      steps, samples, weight, loss_sum, late, dropped_messages: see `ledger.Tally`.
      facts: what the shape of the round and the method observed of it, by name.
      bytes_up, bytes_down: between the device and its site.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: str
    stayed: bool
    steps: int = Field(ge=0, le=MOST_COUNT)
    samples: int = Field(ge=0, le=MOST_COUNT)
    weight: int = Field(ge=0, le=MOST_COUNT)
    loss_sum: float
    late: bool
    dropped_messages: int = Field(ge=0, le=MOST_COUNT)
    facts: dict[str, Any]
    bytes_up: int = Field(ge=0, le=MOST_COUNT)
    bytes_down: int = Field(ge=0, le=MOST_COUNT)

    @property
    def tally(self) -> Tally:
        """The row as a tally for the server's ledger."""
        return Tally(
            steps=self.steps,
            samples=self.samples,
            weight=self.weight,
            loss_sum=self.loss_sum,
            facts=dict(self.facts),
            late=self.late,
            dropped_messages=self.dropped_messages,
        )


DEVICE_ROWS = TypeAdapter(list[DeviceRow])
"""Reads and writes rows as JSON."""


@dataclass(frozen=True, slots=True)
class Held:
    """A site's part of a round, as the server takes it in.

    Attributes:
      adapter: what the site reports, fp64; none where it does not.
      weight: what was trained there since it was last given an adapter.
      rows: of its devices.
      bytes_up, bytes_down: of the frames between the site and the server.
    """

    adapter: Adapter
    weight: int
    rows: Sequence[DeviceRow]
    bytes_up: int
    bytes_down: int


class FarSite(Protocol):
    """A site that is a process of its own: it holds its part of a round with its devices."""

    async def hold(self, told: SiteRound) -> Held:
        """Has it hold its part of a round.

        Raises:
          DeviceGone: It takes no further part in the round, and nothing of its devices counts.
        """


class Sites(Protocol):
    """The connections of sites to the server. A site is to the server what a device is.

    Attributes:
      far: the sites that are processes of their own, by name; of all others this process holds the rounds.
    """

    @property
    def far(self) -> Mapping[str, FarSite]: ...

    async def report(self, update: Update) -> Update:
        """The update that the server gets of what a site (`update.device`) has made of its devices' work."""

    async def tell(self, assignment: Assignment) -> Assignment:
        """The assignment that a site (`assignment.device`) gets of what the server tells it."""


class SamePlace:
    """One site, and the server is there: nothing travels."""

    far: Mapping[str, FarSite] = MappingProxyType({})

    async def report(self, update: Update) -> Update:
        """See `Sites.report`."""
        return update

    async def tell(self, assignment: Assignment) -> Assignment:
        """See `Sites.tell`."""
        return assignment
