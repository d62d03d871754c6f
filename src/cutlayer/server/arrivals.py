"""The server's queue: who has arrived, who is on the way, who is served next."""

from __future__ import annotations

import asyncio
import contextlib
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
    num_samples: int
    num_tokens: int
    due_seconds: float
    waiting: Activations | None = None
    here: bool = True
    answered: asyncio.Event = field(default_factory=asyncio.Event)

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
            device.device: _Guest(device, device.local_steps, device.batch_size, num_tokens, due_seconds=0.0)
            for device in plan.devices
        }
        for guest in self._guests.values():
            guest.answered.set()
            guest.due_seconds = now() + self._times(guest).head

    def put(self, activations: Activations) -> None:
        """A device's activations have arrived."""
        guest = self._guests[activations.device]
        assert guest.here, "who has left sends nothing"
        guest.waiting = activations
        guest.num_samples, guest.num_tokens = activations.h_BTD.shape[:2]
        guest.due_seconds = now()
        self._news.set()

    def leave(self, device: str) -> None:
        """A device takes no further part: what waits of it is not served, and nobody waits for more."""
        guest = self._guests[device]
        guest.here, guest.waiting = False, None
        self._news.set()

    def answer(self, device: str) -> None:
        """The step of a device that was served has been answered, or needs no answer any more."""
        self._guests[device].answered.set()

    async def settled(self, device: str) -> None:
        """Waits until no step of a device is under way: it was served and not answered."""
        await self._guests[device].answered.wait()

    async def pick(self, order: Order) -> Activations | None:
        """Who is served next; waits until somebody is. None when every step of those who are here has been served."""
        while any(guest.awaited for guest in self._guests.values()):
            arrived = [self._job(guest) for guest in self._guests.values() if guest.waiting is not None]
            expected = [self._job(guest) for guest in self._guests.values() if guest.waiting is None and guest.awaited]
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
        while any(guest.waiting is None and guest.here for guest in guests):
            self._news.clear()
            await self._news.wait()
        return [self._serve(guest) for guest in guests if guest.here]

    async def _wait(self, expected: list[Job]) -> None:
        """Until somebody arrives, or until somebody who was expected has not: the order may then decide anew."""
        self._news.clear()
        due = [job.release_seconds - now() for job in expected if job.release_seconds > now()]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._news.wait(), min(due, default=None))

    def _serve(self, guest: _Guest) -> Activations:
        served = guest.waiting
        assert served is not None, "an order picks among those who have arrived"
        times = self._times(guest)
        guest.waiting = None
        guest.answered.clear()
        guest.steps_left -= 1
        guest.due_seconds = now() + times.server + times.tail + times.head
        return served

    def _times(self, guest: _Guest) -> StepTimes:
        return self._forecast.step(guest.plan, guest.num_samples, guest.num_tokens)

    def _job(self, guest: _Guest) -> Job:
        return self._forecast.job(guest.plan, guest.num_samples, guest.num_tokens, guest.due_seconds)
