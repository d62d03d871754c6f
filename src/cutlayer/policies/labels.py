"""The place of the labels: with the server, which computes the loss, or with the devices, which hold the head too."""

from __future__ import annotations

from dataclasses import replace

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import RoundPlan


def labels_on_devices(*, tail: int = 0) -> Planner:
    """Every device holds the final norm and the head, and so the labels stay with it. Put it before what cuts.

    A device whose cut reaches the tail holds the whole model and trains alone.

    Args:
      tail: The last blocks, which a device holds too.

    Raises (when planning):
      ConfigError: The model has fewer blocks.

    Example:
      >>> from cutlayer import cut_at, everyone, labels_on_devices
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), labels_on_devices(tail=1), cut_at(1))
      >>> [(device.cut, device.top, device.alone) for device in plan.devices]
      [(1, 2, False), (1, 2, False), (1, 2, False)]
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        blocks = situation.costs.num_blocks
        if not 0 <= tail <= blocks:
            raise ConfigError(
                f"method.tail: expected 0 to {blocks}, the model's blocks, got {tail}. Change method.tail."
            )
        return plan.with_each(lambda device: replace(device, top=blocks - tail))

    return planner


def labels_stay(labels: str) -> bool:
    """Whether an option `labels` means that they stay on the devices.

    Args:
      labels: `server`: they go up with the activations; `device`: they stay, with the head.

    Raises:
      ConfigError: Another word.

    Example:
      >>> from cutlayer import labels_stay
      >>> [labels_stay(labels) for labels in ("server", "device")]
      [False, True]
    """
    if labels not in ("server", "device"):
        raise ConfigError(f"method.labels: expected server or device, got {labels!r}. Change method.labels.")
    return labels == "device"


def heads_for(labels: str) -> tuple[Planner, ...]:
    """The planners that an option `labels` stands for, to be put before those that cut. See `labels_stay`.

    Example:
      >>> from cutlayer import cut_at, everyone, heads_for
      >>> from cutlayer.testing.playground import planned
      >>> [planned(everyone(), *heads_for(labels), cut_at(1)).devices[0].top for labels in ("server", "device")]
      [None, 3]
    """
    return (labels_on_devices(),) if labels_stay(labels) else ()
