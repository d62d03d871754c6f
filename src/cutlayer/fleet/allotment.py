"""The part of its clock and of a shared connection that a device is given for a round; and the energy that it takes.

Energy is that of the usual model of a processor whose voltage follows its clock, whose power is the clock to the third:

    joules = watts f^3 (seconds of computing at f) + radio_watts (seconds of sending and being sent)
           = watts f^2 (seconds of computing at full clock) + ...

with f the clock as a part of the highest, and `watts` the power at that.
"""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.fleet.profile import DeviceProfile
from cutlayer.types import Clause, DevicePlan


@dataclass(frozen=True, slots=True)
class Allotment(Clause):
    """The part of its clock and of a shared connection that a device is given in a round.

    Attributes:
      frequency: its clock, as a part of the highest, above 0 and up to 1.
      bandwidth: its share of the connection of the server, where the fleet declares one that is shared; above 0.
    """

    frequency: float = 1.0
    bandwidth: float = 1.0


def frequency_of(plan: DevicePlan) -> float:
    """The part of its speed at which a device works under a plan; 1 where nobody says anything.

    Example:
      >>> frequency_of(DevicePlan("pi-1")), frequency_of(DevicePlan("pi-1").having(Allotment(0.5)))
      (1.0, 0.5)
    """
    allotted = plan.clause(Allotment)
    return 1.0 if allotted is None else allotted.frequency


def joules(profile: DeviceProfile, busy_seconds: float, network_seconds: float, frequency: float = 1.0) -> float:
    """The energy of a device's round.

    Args:
      profile: Says its power.
      busy_seconds: In which it computed, at this clock.
      network_seconds: In which it sent or was sent something.
      frequency: Its clock, as a part of the highest.

    Example:
      >>> from cutlayer.testing.playground import fleet_of
      >>> phone = fleet_of(1).devices[0].model_copy(update={"watts": 8.0, "radio_watts": 1.0})
      >>> joules(phone, 10.0, 2.0), joules(phone, 20.0, 2.0, frequency=0.5)
      (82.0, 22.0)
    """
    return profile.watts * frequency**3 * busy_seconds + profile.radio_watts * network_seconds
