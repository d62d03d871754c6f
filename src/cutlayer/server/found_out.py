"""Finds the devices whose part of a round makes an adapter that breaks the model.

What a device sends is bounded number by number (`gate/forms.py`), and an adapter that is within can be poison all the
same: with 4096 in every second place a tiny GPT-2 in 16 bits says nothing but NaN. It shows once the adapters are
averaged and the model runs with what came of it. Then the round is averaged anew without the devices that have moved
furthest, one more each time, until the model runs; and whoever was left out for nothing is taken in again.

With 4096 everywhere the model runs on some rows and not on others, and what it is tried on are not a device's own. So a
round must leave room: the model runs also where the adapter has gone `ROOM` times as far.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from torch import Tensor

from cutlayer.errors import DivergedError
from cutlayer.server.contributions import FAR
from cutlayer.types import Adapter

ROOM = 4.0
"""The model must still run where a round goes so many times as far."""


class Sound(Protocol):
    """Whether the model runs with what a round comes to without some of its devices, gone so many times as far."""

    def __call__(self, without: Collection[str], /, times: float) -> bool: ...


def found_out(rows: Sequence[Mapping[str, Any]], sound: Sound, refusable: Callable[[str], bool]) -> list[str]:
    """The devices without which the model runs, and with any of which it does not; none where it is nobody's part.

    Where nobody has moved far more than the others, nothing is tried. And if everybody is to blame, nobody is: then it
    is the learning rate. A device that is alone has nobody to be held against: it is tried, and may be to blame.

    Args:
      rows: Who has moved the adapter by how much (`server/contributions.py`).
      sound: Tries the round without some. First as far as it goes: learning at a rate that leaves no room to anybody
        must not hide whose part breaks the model now.
      refusable: Whether a device, by name, can be left out at all.

    Example:
      >>> rows = [{"device": name, "norm": norm, "times": norm} for name, norm in zip("abc", (1.0, 90.0, 70.0))]
      >>> found_out(rows, lambda without, times: "c" in without, lambda _: True)
      ['c']
    """
    furthest = sorted(rows, key=lambda row: (-row["norm"], row["device"]))
    suspects = [row["device"] for row in furthest if refusable(row["device"])]
    alone = len(rows) == 1
    if not suspects or not (alone or any(row["times"] > FAR for row in rows)):
        return []
    guilty = list[str]()
    for times in (1.0, ROOM):
        found = _without_whom(suspects, guilty, partial(sound, times=times))
        if alone or len(guilty) + len(found) < len(rows):
            guilty += found
    return guilty


def further(began: Mapping[str, Tensor], after: Mapping[str, Tensor], times: float) -> Adapter:
    """The adapter that has gone so many times as far from where it began as `after` has; `after` itself for 1.

    Example:
      >>> import torch
      >>> further({"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}, ROOM)
      {'w': tensor([5.])}
    """
    return {name: value.lerp(began[name].to(value.dtype), 1 - times) for name, value in after.items()}


def poisoned(device: str, round: int) -> DivergedError:
    """The error of a device that was found out."""
    return DivergedError(
        f"device {device}, round {round}: expected an adapter with which the model's loss is finite, with room to "
        "spare, got another. Lower the learning rate (--lr), or set train.clip.",
        device=device,
        round=round,
        step=0,
    )


def _without_whom(
    suspects: Sequence[str], guilty: Sequence[str], sound: Callable[[Collection[str]], bool]
) -> list[str]:
    """The suspects, beside the guilty, whom a sound round must do without; none if nothing makes it sound."""
    if sound(guilty):
        return []
    out = list[str]()
    for device in (device for device in suspects if device not in guilty):
        out.append(device)
        if sound([*guilty, *out]):
            break
    else:
        return []
    for device in out[:-1]:
        others = [other for other in out if other != device]
        if sound([*guilty, *others]):
            out = others
    return out
