"""Devices whose speed changes every few rounds, as that of a Jetson whose owner sets another power mode.

Which mode a device is in is a function of its name and of the round: it depends on no run, so every method and every
seed meets the same fleet, and it leaves nothing for a checkpoint to keep. Modes move the clock alone. Planners and
forecasts know the declared speed and what earlier rounds measured; nothing of theirs imports this file (a test).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from cutlayer.fleet.profile import DeviceProfile


def always_fast(_round: int) -> float:
    """The mode of a machine that has one."""
    return 1.0


def speed_mode(device: DeviceProfile) -> Callable[[int], float]:
    """(round) -> the part of its speed that the device has in that round, above 0 and up to 1.

    Rounds fall into periods of `mode_rounds`; in each, one of `modes` is drawn, all alike.
    """
    if device.modes == (1.0,):
        return always_fast
    seed = int.from_bytes(hashlib.sha256(device.name.encode()).digest()[:8], "little")

    def mode(round: int) -> float:
        draw = np.random.default_rng([seed, round // device.mode_rounds])
        return device.modes[int(draw.integers(len(device.modes)))]

    return mode
