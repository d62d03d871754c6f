"""A round that several workers hold, each with its own devices; the head takes in what came of it.

    head: plan -> a share for each worker       (server/share.py)
    workers: hold their shares, at the same time
    head: what came of them -> contributions, in the order of the devices' names

That is the round of one server, byte for byte, where nothing that is trained depends on two devices
(`Round.divisible`): everything else happens before and after, on the head.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace

from cutlayer.methods.table import TABLE, build_method
from cutlayer.policies.aggregate import Contribution
from cutlayer.rounds.patience import nobody
from cutlayer.rounds.round import Round
from cutlayer.run.loop import Hold
from cutlayer.run.workers.switchboard import Switchboard
from cutlayer.run.workers.worker import Held
from cutlayer.server.server import Server
from cutlayer.server.share import Share, share_of, take_yield
from cutlayer.types import DevicePlan, Event, Recorder, RoundPlan
from cutlayer.wire.link import Link


def divisible_methods() -> list[str]:
    """The methods of the table whose rounds several workers can hold."""
    return [name for name in TABLE if build_method(name, {}, 0).round.divisible]


def divided(plan: RoundPlan, worker_of: Callable[[str], int]) -> dict[int, RoundPlan]:
    """The plan of each worker that has a device in it, by its number."""
    parts: dict[int, list[DevicePlan]] = {}
    for device in plan.devices:
        parts.setdefault(worker_of(device.device), []).append(device)
    return {number: replace(plan, devices=tuple(devices)) for number, devices in sorted(parts.items())}


def holding(switchboard: Switchboard, clock: Callable[[], float], record: Recorder) -> Hold:
    """Holds rounds by workers.

    Args:
      switchboard: Knows the workers.
      clock: Seconds since the run began.
      record: Gets what machines and links did.
    """

    async def hold(_round: Round, server: Server, _links: Mapping[str, Link], plan: RoundPlan) -> list[Contribution]:
        parts = divided(plan, switchboard.worker_of)
        shares = await server.machine.aside(lambda: {n: share_of(server, part) for n, part in parts.items()})
        members = {row["name"]: row for row in switchboard.rows()}

        async def one(number: int, share: Share) -> Held:
            rows = [members[device.device] for device in share.plan.devices]
            held = await switchboard.workers[number].hold(share, rows)
            began = clock() - held.seconds
            for event in held.events:
                record(_later(event, began))
            switchboard.mirror(number, held.report)
            return held

        async with asyncio.TaskGroup() as tasks:
            holding = [tasks.create_task(one(number, share)) for number, share in shares.items()]
        contributions: dict[str, Contribution] = {}
        for held in holding:
            contributions |= take_yield(server, held.result().done)
        if not contributions:
            raise nobody(plan)
        return [contribution for _, contribution in sorted(contributions.items())]

    return hold


def _later(event: Event, seconds: float) -> Event:
    return replace(event, start_seconds=event.start_seconds + seconds, end_seconds=event.end_seconds + seconds)
