"""Owners of the server adapters that devices' activations train."""

from __future__ import annotations

from collections.abc import Callable

SHARED = "*"
"""The owner of a server adapter that all devices train: a name that no device can have."""

Owner = Callable[[str], str]
"""Device name -> who owns the server adapter that its activations train."""


def one_per_device(device: str) -> str:
    """Each device has a server adapter of its own.

    Example:
      >>> from cutlayer import one_per_device
      >>> one_per_device("pi-1")
      'pi-1'
    """
    return device


def one_for_all(_device: str) -> str:
    """One server adapter, stepped by every device's activations.

    Example:
      >>> from cutlayer import one_for_all
      >>> one_for_all("pi-1") == one_for_all("pi-2")
      True
    """
    return SHARED
