"""The roll call: how every device of a real fleet is at this moment, for whoever watches."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from cutlayer.gate.hub import Member
from cutlayer.report.fleet_view import DeviceNow, State
from cutlayer.server.server import Server


def roll_call(
    members: Sequence[Member],
    expected: Sequence[str],
    server: Server | None,
    *,
    round_seconds: float,
    now: float,
    done: Collection[str] = (),
    blocks: int | None = None,
    refusals: Mapping[str, int] = MappingProxyType({}),
) -> list[DeviceNow]:
    """The state of every device that has come, in the fleet's order, then of those that never have.

    Reads and changes nothing, so any thread may ask.

    Args:
      members: Who has come.
      expected: Names of devices that should come.
      server: Knows the round under way; None before the first.
      round_seconds: Since the round under way began.
      now: On the clock of `Session.last_seen`.
      done: Names of those who know that the run is over.
      blocks: Of the model; None where nobody knows.
      refusals: By device, how often something of it was refused.
    """
    rows = [
        replace(
            _device(member, server, round_seconds=round_seconds, now=now, done=member.name in done),
            blocks=blocks,
            refusals=refusals.get(member.name, 0),
        )
        for member in sorted(members, key=lambda member: member.index)
    ]
    come = {row.name for row in rows}
    away = [name for name in expected if name not in come]
    return rows + [DeviceNow(name, "away", refusals=refusals.get(name, 0)) for name in away]


def _device(member: Member, server: Server | None, *, round_seconds: float, now: float, done: bool) -> DeviceNow:
    session, silent = member.session, now - member.session.last_seen
    row = DeviceNow(
        member.name,
        "done" if done else "ready" if member.here else "preparing" if member.connecting else "away",
        bytes_up=session.bytes_received,
        bytes_down=session.bytes_sent,
        silent_seconds=max(0.0, silent) if silent < math.inf else None,
    )
    part = None if server is None else server.ledger.part(member.name)
    if part is None:
        return row
    row = replace(row, cut=part.plan.cut, local_steps=part.plan.local_steps)
    if part.done:
        return replace(row, step=part.plan.local_steps)
    samples = part.steps * part.plan.batch_size
    return replace(
        row,
        state=_state(row.state, late=part.gone),
        awaited=not part.gone,
        step=None if part.plan.alone else part.steps,  # the steps of who trains alone are not seen
        samples_per_second=samples / round_seconds if samples and round_seconds > 0 else None,
    )


def _state(state: State, *, late: bool) -> State:
    """The state of a device that has not finished its part."""
    if state != "ready":
        return state
    return "late" if late else "training"
