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
    """One adapter for all devices.

    Example:
      >>> from cutlayer import DevicePlan, shared
      >>> shared(DevicePlan("pi-1", cut=2), 0) == shared(DevicePlan("pi-2", cut=1), 0)
      True
    """
    return EVERYONE


def personal(device: DevicePlan, _block: int | None) -> str:
    """Each device has an adapter of its own, which is never averaged with another's.

    Example:
      >>> from cutlayer import DevicePlan, personal
      >>> personal(DevicePlan("pi-1", cut=2), 0), personal(DevicePlan("pi-1", cut=2), None)
      ('pi-1', 'pi-1')
    """
    return device.device


def personal_below_the_cut(device: DevicePlan, block: int | None) -> str:
    """The adapter below a device's cut is its own; the rest is shared.

    Example:
      >>> from cutlayer import DevicePlan, personal_below_the_cut
      >>> [personal_below_the_cut(DevicePlan("pi-1", cut=2), block) for block in (0, 1, 2, None)]
      ['pi-1', 'pi-1', '*', '*']
    """
    return device.device if block is not None and block < device.cut else EVERYONE


def lowest_blocks_personal(num_blocks: int) -> Scope:
    """The adapter on the lowest `num_blocks` blocks that a device holds is its own, the rest shared; 0 shares it all.

    Example:
      >>> from cutlayer import DevicePlan, lowest_blocks_personal
      >>> [lowest_blocks_personal(1)(DevicePlan("pi-1", cut=2), block) for block in (0, 1, 2, None)]
      ['pi-1', '*', '*', '*']
    """

    def scope(device: DevicePlan, block: int | None) -> str:
        return device.device if block is not None and block < min(num_blocks, device.cut) else EVERYONE

    return scope
