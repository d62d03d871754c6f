"""What sites say to the server, and what they are told: simulated (`run/sites.py`)."""

from __future__ import annotations

from typing import Protocol

from cutlayer.wire.messages import Assignment, Update


class Sites(Protocol):
    """The connections of sites to the server. A site is to the server what a device is."""

    async def report(self, update: Update) -> Update:
        """What the server gets of what a site (`update.device`) has made of its devices' work."""

    async def tell(self, assignment: Assignment) -> Assignment:
        """What a site (`assignment.device`) gets of what the server tells it."""


class SamePlace:
    """One site, and the server is there: nothing travels."""

    async def report(self, update: Update) -> Update:
        """See `Sites.report`."""
        return update

    async def tell(self, assignment: Assignment) -> Assignment:
        """See `Sites.tell`."""
        return assignment
