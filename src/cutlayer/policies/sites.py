"""The site of each device, and the rounds in which sites report to the server."""

from __future__ import annotations

from dataclasses import dataclass

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import Clause, RoundPlan


@dataclass(frozen=True, slots=True)
class AtSite(Clause):
    """The site of a device.

    Attributes:
      site: the name of its site.
      reports: whether its site reports to the server at the end of this round.
    """

    site: str
    reports: bool


def at_sites(every: int) -> Planner:
    """Tells each device its site, and lets sites report in every so many rounds, and in the last.

    A fleet without sites is one site, where the server is.

    Args:
      every: Rounds.

    Raises:
      ConfigError: A number below 1.

    Example:
      >>> from cutlayer import at_sites, everyone
      >>> from cutlayer.testing.playground import planned
      >>> [planned(everyone(), at_sites(2), round=n, rounds=5).devices[0].clauses[0].reports for n in range(5)]
      [False, True, False, True, True]
    """
    if every < 1:
        raise ConfigError(f"method.cloud_every: expected at least 1 round, got {every}. Change method.cloud_every.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        number, fleet = plan.round + 1, situation.fleet
        reports = number % every == 0 or number == situation.rounds
        names = {
            device.device: site.name if (site := fleet.site_of(device.device)) else fleet.server.name
            for device in plan.devices
        }
        return plan.with_each(lambda device: device.having(AtSite(names[device.device], reports)))

    return planner
