"""The guard of a site: what it reports is held to the part of the round that it was given, before anybody believes it.

A site vouches for its devices: what they trained, the server never sees. What can be held against a plan is: which
devices there are, how many samples they can have had, how much more was trained there than before, the names, shapes
and sizes of the mean. A site that lies within these moves the mean as far as its devices could together.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import torch
from pydantic import ValidationError

from cutlayer.errors import Refused
from cutlayer.gate.forms import LOUDEST, MOST_EVENTS, MOST_FLOPS, MOST_SECONDS, WORDS, refusal
from cutlayer.model.base import Base
from cutlayer.model.finite import finite, within
from cutlayer.server.sites import DEVICE_ROWS, DeviceRow
from cutlayer.types import DevicePlan
from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import Message, SiteReport, SiteRound

ROW_BYTES = 2**12
"""The most bytes that a site may say of one device, in JSON."""
HEADER_BYTES = 2**16


class SiteGuard:
    """Holds one site to its part of a round.

    Args:
      site: The name that it has proved.
      run: The run's identifier.
      base: The model.
      longest_tokens: The longest batch there can be.
    """

    def __init__(self, site: str, run: str, base: Base, longest_tokens: int) -> None:
        self._site, self._run, self._base, self._longest = site, run, base, longest_tokens
        self._told: SiteRound | None = None
        self._limit = 0

    def open(self, told: SiteRound) -> None:
        """A round begins for this site."""
        self._told = told
        events = sum(map(_most_events, told.plans)) * 7 * 8
        shapes = self._base.shapes_of(told.ranks)
        names = sum(len(name) + 64 for name in shapes)
        adapter = sum(8 * math.prod(shape) + 16 for shape in shapes.values())
        self._limit = max(self._limit, HEADER_BYTES + ROW_BYTES * len(told.plans) + events + names + adapter)

    def frame_limit(self) -> int:
        """The longest frame that this round or an earlier one allows the site; 0 before its first."""
        return self._limit

    def check(self, message: Message) -> SiteReport:
        """The report, if it can be one of this round.

        Raises:
          Refused: It cannot.
        """
        told = self._told
        if told is None or not isinstance(message, SiteReport):
            raise self._refused("wrong-kind", "the report of a round that was opened", type(message).__name__)
        for reason, what, expected, got in (
            ("wrong-run", "run", self._run, message.run),
            ("wrong-device", "sender", self._site, message.device),
            ("wrong-round", "round", told.round, message.round),
        ):
            if got != expected:
                raise self._refused(reason, f"{what} {expected}", got)
        trained = self._check_rows(message, told)
        if message.weight != told.weight + trained:
            raise self._refused("wrong-weight", f"{told.weight + trained} that its devices trained", message.weight)
        reports = told.reports and message.weight > 0
        self._check_adapter(message, self._base.shapes_of(told.ranks) if reports else {})
        self._check_events(message, told)
        return message

    def _check_rows(self, message: SiteReport, told: SiteRound) -> int:
        """Checks each device against its plan; the weight of what those whose updates counted trained in the round."""
        plans = {plan.device: plan for plan in told.plans}
        if len(message.rows) > ROW_BYTES * (1 + len(plans)):
            raise self._refused("wrong-counts", f"{ROW_BYTES} bytes for each device", len(message.rows))
        rows = rows_of(message.rows, self._site)
        if sorted(row.name for row in rows) != sorted(plans):
            raise self._refused("wrong-counts", "each of its devices once", [row.name for row in rows])
        for row in rows:
            plan = plans[row.name]
            samples = plan.local_steps * plan.batch_size
            if row.steps > plan.local_steps or row.samples > samples or row.weight > samples * self._longest:
                raise self._refused("wrong-counts", f"at most {samples} samples of {row.name}", row.samples)
        return sum(row.weight for row in rows if row.stayed)

    def _check_adapter(self, message: SiteReport, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if message.adapter.keys() != shapes.keys():
            raise self._refused(
                "wrong-tensors", f"{len(shapes)} tensors of the adapter", f"{len(message.adapter)}, or others"
            )
        for name, value in message.adapter.items():
            if tuple(value.shape) != tuple(shapes[name]):
                raise self._refused("wrong-shape", f"{name} of {tuple(shapes[name])}", tuple(value.shape))
            if value.dtype is not torch.float64:
                raise self._refused("wrong-dtype", f"{name} in fp64", str(value.dtype))
            if not within(value, LOUDEST["update"]):
                raise self._refused("not-finite", f"finite numbers up to {LOUDEST['update']:g} in {name}", "others")

    def _check_events(self, message: SiteReport, told: SiteRound) -> None:
        events_E7, devices = message.events_E7, {plan.device for plan in told.plans}
        most = sum(map(_most_events, told.plans))
        fits = events_E7.dtype is torch.float64 and events_E7.ndim == 2 and events_E7.shape[1] == 7
        if not fits or len(events_E7) > most or not {*message.names} <= devices or not {*message.whats} <= WORDS:
            raise self._refused("wrong-events", f"at most {most} events of its devices", tuple(events_E7.shape))
        if not finite(events_E7) or not 0 <= message.seconds <= MOST_SECONDS:
            raise self._refused("not-finite", "finite numbers in events_E7", "others")
        start_E, end_E, step_E, bytes_E, flops_E, name_E, word_E = events_E7.unbind(1)
        whole = torch.stack([step_E, bytes_E, name_E, word_E])
        could = (step_E >= -1) & (bytes_E >= 0) & (bytes_E <= MOST_FLOPS) & (flops_E >= 0) & (flops_E <= MOST_FLOPS)
        known = (name_E >= 0) & (name_E < len(message.names)) & (word_E >= 0) & (word_E < len(message.whats))
        timely = (start_E >= 0) & (end_E >= start_E) & (end_E <= MOST_SECONDS)
        if not bool((could & known & timely).all()) or not torch.equal(whole, whole.floor()):
            raise self._refused("wrong-events", "events of this round, in order of time", "others")

    def _refused(self, reason: str, expected: str, got: object) -> Refused:
        return refusal(reason, f"site {self._site}", expected, got)


class GuardedSite(Around):
    """The server's end of a link to a site: its guard knows what it was told, and sees what it says first.

    Args:
      link: The transport's end.
      guard: Of the site.
    """

    def __init__(self, link: Link, guard: SiteGuard) -> None:
        super().__init__(link)
        self._guard = guard

    async def send(self, message: Message) -> None:
        """See `Link.send`."""
        if isinstance(message, SiteRound):
            self._guard.open(message)
        await self._link.send(message)

    async def receive(self) -> Message:
        """See `Link.receive`.

        Raises:
          Refused: What came may not be believed.
        """
        return self._guard.check(await self._link.receive())


def rows_of(text: str, site: str) -> list[DeviceRow]:
    """The rows that a site says of its devices.

    Raises:
      Refused: It is none of that.
    """
    try:
        rows = DEVICE_ROWS.validate_json(text)
        json.dumps([row.facts for row in rows], allow_nan=False)
    except (ValidationError, ValueError, RecursionError):
        raise Refused(
            "wrong-counts", f"site {site}: expected what it saw of each device, got something else. Start it anew."
        ) from None
    return rows


def _most_events(plan: DevicePlan) -> int:
    """The most events that a device may tell of in a round, as its own guard has it."""
    once, each_step = MOST_EVENTS
    return once + (each_step + plan.cut) * plan.local_steps * plan.micro_batches
