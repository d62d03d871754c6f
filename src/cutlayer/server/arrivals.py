"""The server's queue: who has arrived, who is on the way, who is served next."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field

from cutlayer.fleet.clock import now
from cutlayer.policies.order import Job, Order
from cutlayer.server.forecast import Forecast, StepTimes
from cutlayer.types import DevicePlan, RoundPlan
from cutlayer.wire.messages import Activations


@dataclass(slots=True)
class _Guest:
    """One device of the round, as the queue sees it."""

    plan: DevicePlan
    steps_left: int
    shape: tuple[int, int]  # samples and tokens of what it sent last
    due_seconds: float = 0.0  # when it will have sent more
    waiting: deque[tuple[Activations, float]] = field(default_factory=deque)  # with the time of arrival
    here: bool = True
    served_seconds: float = 0.0  # when what was served last is done
    unanswered: int = 0  # served, and the answer has not left
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def awaited(self) -> bool:
        """Whether steps of it are still to be served."""
        return self.here and self.steps_left > 0


class Arrivals:
    """The queue of one round.

    Args:
      plan: the round.
      forecast: predicts when a device that is on its way arrives.
      num_tokens: the longest batch, assumed of a device that has not shown one yet.
    """

    def __init__(self, plan: RoundPlan, forecast: Forecast, num_tokens: int) -> None:
        self._forecast = forecast
        self._news = asyncio.Event()
        self._guests = {
            device.device: _Guest(device, device.local_steps, (device.micro_batch_size, num_tokens))
            for device in plan.devices
        }
        for guest in self._guests.values():
            guest.settled.set()
            guest.due_seconds = now() + self._times(guest).head

    def put(self, activations: Activations) -> None:
        """A device's activations have arrived."""
        guest = self._guests[activations.device]
        assert guest.here, "who has left sends nothing"
        guest.waiting.append((activations, now()))
        self._news.set()

    def goes_on(self, device: str) -> None:
        """Notes that a step of a device, which was served and answered for a time, is being served again."""
        guest = self._guests[device]
        guest.unanswered += 1
        guest.settled.clear()

    def leave(self, device: str) -> None:
        """A device takes no further part: what waits of it is not served, and nobody waits for more."""
        guest = self._guests[device]
        guest.here = False
        guest.waiting.clear()
        self._news.set()

    def answer(self, device: str) -> None:
        """Notes that something of a device that was served has been answered, or needs no answer any more."""
        guest = self._guests[device]
        guest.unanswered -= 1
        if not guest.unanswered:
            guest.settled.set()

    async def settled(self, device: str) -> None:
        """Waits until nothing of a device is under way: was served and not answered."""
        await self._guests[device].settled.wait()

    async def pick(self, order: Order) -> Activations | None:
        """Picks the activations to serve next, and waits for some; None when all steps of devices here were served."""
        while any(guest.awaited for guest in self._guests.values()):
            arrived = [self._job(guest) for guest in self._guests.values() if guest.waiting]
            expected = [self._job(guest) for guest in self._guests.values() if not guest.waiting and guest.awaited]
            choice = order.pick(now(), arrived, expected) if arrived else None
            if choice is not None:
                return self._serve(self._guests[choice.device])
            await self._wait(expected)
        return None

    async def everybody(self) -> list[Activations]:
        """The next activations of every device that has steps left, by name; waits until all have come or have left.

        Empty when every step of those who are here has been served.
        """
        guests = [guest for _, guest in sorted(self._guests.items()) if guest.awaited]
        while any(guest.here and not guest.waiting for guest in guests):
            self._news.clear()
            await self._news.wait()
        return [self._serve(guest) for guest in guests if guest.here]

    async def _wait(self, expected: list[Job]) -> None:
        """Waits until somebody arrives, or until somebody who was expected has not: the order may then decide anew."""
        self._news.clear()
        due = [job.release_seconds - now() for job in expected if job.release_seconds > now()]
        with contextlib.suppress(TimeoutError):  # not `wait_for`, which forgets that it was cancelled if there is news
            async with asyncio.timeout(min(due, default=None)):
                await self._news.wait()

    def _serve(self, guest: _Guest) -> Activations:
        assert guest.waiting, "an order picks among those who have arrived"
        times = self._times(guest)
        served, arrived_seconds = guest.waiting.popleft()
        guest.shape = (served.h_BTD.shape[0], served.h_BTD.shape[1])
        guest.unanswered += 1
        guest.settled.clear()
        done_seconds = now() + times.server
        if served.ends_step or guest.plan.in_flight == 1:
            guest.due_seconds = done_seconds + times.tail + times.head
        else:  # the next was computed while this one was on its way, if the one before it had been answered by then
            follows = arrived_seconds + max(times.forward, times.upload)
            guest.due_seconds = max(follows, guest.served_seconds + times.tail + times.head)
        guest.served_seconds = done_seconds
        guest.steps_left -= served.ends_step
        return served

    def _times(self, guest: _Guest) -> StepTimes:
        return self._forecast.step(guest.plan, *self._next(guest)[0])

    def _job(self, guest: _Guest) -> Job:
        shape, release_seconds = self._next(guest)
        return self._forecast.job(guest.plan, *shape, release_seconds)

    def _next(self, guest: _Guest) -> tuple[tuple[int, int], float]:
        """The shape of what is to be served next of a device, and when it came or will come."""
        if not guest.waiting:
            return guest.shape, guest.due_seconds
        activations, arrived_seconds = guest.waiting[0]
        return (activations.h_BTD.shape[0], activations.h_BTD.shape[1]), arrived_seconds
