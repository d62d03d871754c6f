"""Tasks: what devices are at work on. A task may outlive the round that it was begun in (`late: keep`).

    begun        its assignment leaves: its round is the task's stamp, its adapter the version that the task refers to
    in flight    rounds open and close meanwhile, and plan for the devices that are idle
    ended        its update is there, or the device is gone

A task in flight is a function of its assignment and of what the device is before it. So a checkpoint holds the
assignment and the time at which it left, and a run that goes on from there says it again: a simulated one at that same
time (`replay`), so that the device is, at the commit point, where it was; a real one when its next round begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from cutlayer.fleet.clock import now, until
from cutlayer.state import State
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.frames import decode, encode
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Assignment


@dataclass(slots=True)
class _Task:
    assignment: Assignment
    seconds: float  # at which it left, by the loop's clock
    sending: asyncio.Task[None] | None = None  # None until this process has said it


class Tasks:
    """The tasks in flight, by device.

    Attributes:
      waiting: devices of the round under way, or of the last one, that were to begin and whose turn has not come.
    """

    def __init__(self) -> None:
        self.waiting: set[str] = set()
        self._tasks: dict[str, _Task] = {}

    def __contains__(self, device: str) -> bool:
        return device in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def plans(self) -> tuple[DevicePlan, ...]:
        """The plans of the devices that are at work, in the order of their names."""
        return tuple(task.assignment.plan for _, task in sorted(self._tasks.items()))

    def assignment(self, device: str) -> Assignment:
        """The assignment with which a device's task was begun."""
        return self._tasks[device].assignment

    # ------------------------------------------------------------------ a round

    def joined(self, plan: RoundPlan) -> RoundPlan:
        """A round of those who are at work and of the devices of a plan for the others."""
        others = tuple(device for device in plan.devices if device.device not in self._tasks)
        return replace(plan, devices=(*self.plans, *others)) if self._tasks else plan

    def begun(self, plan: RoundPlan) -> RoundPlan:
        """The plan of a round that is over without the devices whose turn to begin has not come."""
        if not self.waiting:
            return plan
        return replace(plan, devices=tuple(device for device in plan.devices if device.device not in self.waiting))

    def begin(self, assignment: Assignment) -> None:
        """A device is given a task: `sent` says it."""
        self._tasks[assignment.device] = _Task(assignment, now())

    async def sent(self, device: str, link: Link) -> None:
        """Returns when the assignment has left. Whoever gives up waiting for that does not keep it from leaving.

        Raises:
          DeviceGone: The device takes no part any more.
        """
        await asyncio.shield(self._said(self._tasks[device], link))

    def end(self, device: str) -> Assignment:
        """The task is done, or never will be; with what it was begun."""
        return self._tasks.pop(device).assignment

    def forget_all_but(self, devices: Collection[str]) -> None:
        """Ends the tasks of devices that are of the fleet no more."""
        self._tasks = {device: task for device, task in self._tasks.items() if device in devices}

    def _said(self, task: _Task, link: Link) -> asyncio.Task[None]:
        if task.sending is None:
            task.sending = asyncio.create_task(link.send(task.assignment))
        return task.sending

    # ------------------------------------------------------------------ state

    def state(self) -> State:
        """The devices at work and since when, in the order of their beginnings, and each assignment as its frame."""
        return State(
            {"begun": [[device, task.seconds] for device, task in self._tasks.items()]},
            {
                device: torch.from_numpy(np.frombuffer(encode(task.assignment), np.uint8).copy())
                for device, task in self._tasks.items()
            },
        )

    def load(self, state: State) -> None:
        """Goes on from a `state`."""
        for device, seconds in state.facts["begun"]:
            frame = state.tensors[device]
            assignment = decode(bytearray(frame.cpu().numpy().tobytes()), max_bytes=frame.numel())
            assert isinstance(assignment, Assignment), "as `state` gave it"
            there = {name: value.to(frame.device) for name, value in assignment.adapter.items()}
            self._tasks[device] = _Task(replace(assignment, adapter=there), seconds)

    async def replay(self, links: Mapping[str, Link], end_seconds: float) -> None:
        """Says every assignment at the time at which it left, then waits for the time at which the run goes on.

        Args:
          links: The server's ends, by device.
          end_seconds: That time, by the loop's clock.
        """
        for device, task in sorted(self._tasks.items(), key=lambda item: item[1].seconds):
            await until(task.seconds)
            self._said(task, links[device])
        await until(end_seconds)


def first_seconds(state: State, otherwise: float) -> float:
    """The time at which the first of the tasks in a `state` was begun; `otherwise` where there are none."""
    return min((seconds for _, seconds in state.facts["begun"]), default=otherwise)
