"""Scopes: who shares which part of the adapter. By default all devices share all of it.

A scope is a name. Devices whose tensors of a block have one scope are broadcast the same values there and are averaged
with each other, and with nobody else; evaluation and export see a device's own view.
"""

from __future__ import annotations

from collections.abc import Callable

from cutlayer.types import DevicePlan

EVERYONE = "*"
"""The scope that all devices share: a name that no device can have."""

Scope = Callable[[DevicePlan, int | None], str]
"""(A device's plan, a block, or None for the head) -> the scope of its adapter there."""


def shared(_device: DevicePlan, _block: int | None) -> str:
    """One adapter for all devices."""
    return EVERYONE


def personal(device: DevicePlan, _block: int | None) -> str:
    """Each device has an adapter of its own, which is never averaged with another's."""
    return device.device


def personal_below_the_cut(device: DevicePlan, block: int | None) -> str:
    """What a device holds is its own; what the server holds is shared."""
    return device.device if block is not None and block < device.cut else EVERYONE
