"""Finds the devices whose part of a round makes an adapter that breaks the model.

What a device sends is bounded number by number (`gate/forms.py`), and an adapter that is within can be poison all the
same: with 4096 in every second place a tiny GPT-2 in 16 bits says nothing but NaN. It shows once the adapters are
averaged and the model runs with what came of it. Then the round is averaged anew without the devices that have moved
furthest, one more each time, until the model runs; and whoever was left out for nothing is taken in again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cutlayer.server.contributions import FAR

Sound = Callable[[Collection[str]], bool]
"""Whether the model runs with what a round comes to without these devices."""


def found_out(rows: Sequence[Mapping[str, Any]], sound: Sound, refusable: Callable[[str], bool]) -> list[str]:
    """The devices without which the model runs, and with any of which it does not; none where it is nobody's part.

    Where nobody has moved far more than the others, nothing is tried. And if everybody is to blame, nobody is: then it
    is the learning rate.

    Args:
      rows: Who has moved the adapter by how much (`server/contributions.py`).
      sound: Tries the round without some.
      refusable: Whether a device, by name, can be left out at all.

    Example:
      >>> rows = [{"device": name, "norm": norm, "times": norm} for name, norm in zip("abc", (1.0, 90.0, 70.0))]
      >>> found_out(rows, lambda without: "c" in without, lambda _: True)
      ['c']
    """
    furthest = sorted(rows, key=lambda row: (-row["norm"], row["device"]))
    suspects = [row["device"] for row in furthest if refusable(row["device"])]
    if not suspects or not any(row["times"] > FAR for row in rows) or sound(()):
        return []
    out = list[str]()
    for device in suspects:
        out.append(device)
        if sound(out):
            break
    else:
        return []
    for device in out[:-1]:
        others = [other for other in out if other != device]
        if sound(others):
            out = others
    return out if len(out) < len(rows) else []
