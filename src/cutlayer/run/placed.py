"""A plan for those for whom there is one: whoever cannot be placed is left out, and the others are planned for anew.

What a device says of itself decides what planners can give it: one with a byte of memory, or whose owner lends no
block, has no place in a plan. That is this device's matter and not the run's, wherever devices can be refused.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from cutlayer.errors import BudgetError, CutlayerError, UnplacedError
from cutlayer.fleet.machine import Machine
from cutlayer.policies.plan import Situation
from cutlayer.types import RoundPlan

Plan = Callable[[Situation], RoundPlan]

_log = logging.getLogger("cutlayer.refused")


async def placed(
    situation: Situation,
    plan: Plan,
    muster: Callable[[], Awaitable[Situation]],
    leave_out: Callable[[Mapping[str, Exception]], bool],
    machine: Machine,
) -> tuple[Situation, RoundPlan]:
    """The plan, and the situation that it is for.

    Args:
      situation: With the devices that are there.
      plan: What is planned.
      muster: The situation without those who were left out; waits until there is somebody.
      leave_out: Refuses devices; False where they must stay.
      machine: Plans where it holds up no link.

    Raises:
      UserError: Nothing can be planned, whoever is left out, or nobody may be.
    """
    while True:
        found, unplaced = await machine.aside(partial(_tried, plan, situation))
        if not isinstance(found, Exception):
            return situation, found
        if not unplaced or not leave_out(unplaced):
            raise found
        for name, why in unplaced.items():
            if not isinstance(why, CutlayerError):  # a planner's own fault, too, and to be seen as one
                _log.warning("device %s: planning failed with it", name, exc_info=why)
        situation = await muster()


def _tried(plan: Plan, situation: Situation) -> tuple[RoundPlan | Exception, dict[str, Exception]]:
    """The plan; or why there is none, and who is to blame."""
    try:
        return plan(situation), {}
    except Exception as error:
        return error, unplaced_by(plan, situation, error)


def unplaced_by(plan: Plan, situation: Situation, error: Exception) -> dict[str, Exception]:
    """The devices that are to blame for an error in planning, each with its own; none where it is nobody's.

    Args:
      plan: What was planned.
      situation: For whom.
      error: What came of it.

    Returns:
      The device that the error names; else those for whom nothing can be planned alone, where for others it can; else
      the one without whom something can be.
    """
    names = [device.name for device in situation.fleet.devices]
    if isinstance(error, BudgetError | UnplacedError):
        return {error.device: error} if error.device in names else {}
    alone = {name: _error(plan, _of(situation, [name])) for name in names}
    failed = {name: why for name, why in alone.items() if why is not None}
    if failed:
        return failed if len(failed) < len(names) else {}
    for name in names if len(names) > 1 else ():
        if _error(plan, _of(situation, [other for other in names if other != name])) is None:
            return {name: error}
    return {}


def _of(situation: Situation, names: list[str]) -> Situation:
    devices = tuple(device for device in situation.fleet.devices if device.name in names)
    return situation.of(situation.fleet.model_copy(update={"devices": devices}))


def _error(plan: Plan, situation: Situation) -> Exception | None:
    try:
        plan(situation)
    except Exception as error:
        return error
    return None
