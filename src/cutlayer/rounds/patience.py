"""A round that waits no longer than its policy says (`policies/stragglers.py`), whatever the shape of the round.

Rounds know nothing of time. They talk through links that this file lays around those of the devices:

    what happens                              what the round sees
    ----------------------------------------  ------------------------------------------------------------------
    the round is closed, `late: drop`         `DeviceGone`, at once; the device is sent a `Close` and answers nothing
    the round is closed, `late: use`          `receive` gives it a `Close`, which it sends on when no step of the
                                              device is under way; then it waits for the `Update` of what was done
    as long again has passed                  `DeviceGone`
    what a device sent has diverged           `DeviceGone`, at once; it is refused and counted (`Server.blame`)
    a message of an earlier round arrives     nothing: it is counted and dropped

    the round is closed, `late: keep`         `DeviceGone`, at once; the device hears nothing and works on
    a device at work is assigned something    nothing is sent: the device is at work on what it was assigned before
    its update arrives, in whatever round     the update; what it changed is added to what the adapter is by then,
                                              unless its values are wanted as they are

As long again: a device that has finished a step by the time the round is closed has shown that a step and its
transfers fit into that time, and what is left for it is at most a step and its update. One that has finished none has
nothing to give.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, TypeVar

from cutlayer.errors import DeviceGone, DivergedError, Refused, StragglersError
from cutlayer.fleet.clock import now
from cutlayer.model.sums import Sums
from cutlayer.packing import StartedFrom
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.stragglers import Stragglers
from cutlayer.rounds.round import Round
from cutlayer.server.server import Server
from cutlayer.server.tasks import Tasks
from cutlayer.types import RoundPlan
from cutlayer.wire.link import Around, Link, Refusing
from cutlayer.wire.messages import Assignment, Close, HeldOut, Judge, Judged, Message, Update

T = TypeVar("T")
_log = logging.getLogger("cutlayer.rounds")
Judging = Callable[[Mapping[str, Link]], Awaitable[dict[str, Sums]]]
"""Has devices judge, through these links (`rounds/judging.py`)."""

WRONG_NUMBERS = frozenset({"diverged", "not-finite"})
"""Words for why a device left, where training is to blame if it is so of all."""
WARMING_SECONDS = 120.0
"""Seconds by which a planned deadline is later in a real fleet's first round, in which devices read their weights."""


class Patience:
    """Holds the rounds of a run.

    Args:
      policy: How long a round waits.
      tasks: What devices are at work on, where late work is kept.
      warming_seconds: By which a deadline that is planned is later in the first round; one that the policy says stands.
      again: How many rounds in a row may be lost, because nobody has finished: each gives the next twice the time.
    """

    def __init__(
        self, policy: Stragglers, tasks: Tasks | None = None, *, warming_seconds: float = 0.0, again: int = 0
    ) -> None:
        self._again, self._lost = again, 0
        self._policy, self._tasks = policy, Tasks() if tasks is None else tasks
        self._warming_seconds = warming_seconds
        self._parting: set[asyncio.Task[None]] = set()  # of `Close`s, which no round waits for

    async def hold(
        self, round: Round, server: Server, links: Mapping[str, Link], plan: RoundPlan
    ) -> list[Contribution]:
        """Holds one round: what was trained in it; nothing where everybody left, and another round may make up for it.

        Raises:
          StragglersError: Everybody left, too often.
          DivergedError: Everybody left because what they trained is not finite; or too often, and somebody for that.
        """
        for task in [task for task in self._parting if task.done()]:
            self._parting.remove(task)
            task.result()  # an error of ours is nobody's lateness
        timed = plan
        if self._warming_seconds and plan.deadline_seconds is not None:
            timed = replace(plan, deadline_seconds=plan.deadline_seconds + self._warming_seconds)
        self._warming_seconds = 0.0
        policy, timed = self._stretched(timed)
        if self._policy.late == "keep":
            started_from = round.shape.started_from(server.base)
            hold: _Hold = _Keep(policy, server, links, timed, self._part, self._tasks, started_from)
        else:
            hold = _Hold(policy, server, links, timed, self._part)
        try:
            contributions = await round.server_end(server, hold.links, plan)
        finally:
            hold.end()
        if contributions:
            self._lost = 0
            return contributions
        self._lost += 1
        everybody = all(device.device in server.diverged for device in plan.devices)
        if everybody or self._lost > self._again:
            raise next(iter(server.diverged.values()), nobody(plan, server.left))
        _log.warning(
            "round %d: nobody has finished, and the adapter is what it was. The next round waits %d times as long",
            plan.round,
            2**self._lost,
        )
        return []

    def _stretched(self, plan: RoundPlan) -> tuple[Stragglers, RoundPlan]:
        """The policy and the plan with twice the time for each round before this one that was lost."""
        if not self._lost:
            return self._policy, plan
        times, planned, said = 2**self._lost, plan.deadline_seconds, self._policy.seconds
        policy = self._policy if said is None else replace(self._policy, seconds=said * times)
        return policy, plan if planned is None else replace(plan, deadline_seconds=planned * times)

    async def judge(
        self, judging: Judging, server: Server, links: Mapping[str, Link], plan: RoundPlan
    ) -> dict[str, Sums]:
        """Has the devices of a plan judge: what came in time, by device. Whoever is late is not waited for again.

        Args:
          judging: Talks with them through links of a round.
          server: Which has the adapter.
          links: Its ends, by device.
          plan: Of the round that comes next, with the devices that judge.
        """
        hold = _Hold(replace(self._policy, late="drop"), server, links, plan, self._part, judging=True)
        try:
            return await judging(hold.links)
        finally:
            hold.end()

    def _part(self, link: Link, close: Close) -> None:
        self._parting.add(asyncio.create_task(_send_if_there(link, close)))


def nobody(plan: RoundPlan, left: Mapping[str, str] = MappingProxyType({})) -> StragglersError:
    """The error of a round that every device left.

    Args:
      plan: Of the round.
      left: By device, the word for why it did, as far as that is known.
    """
    names = ", ".join(sorted(device.device for device in plan.devices))
    why = "; ".join(f"{device}: {word}" for device, word in sorted(left.items())) or "every device left or was late"
    what_to_do = "Look at the devices and their links, or give them longer (train.stragglers)."
    if left and WRONG_NUMBERS.issuperset(left.values()):
        what_to_do = "Lower the learning rate (--lr), or set train.clip."
    return StragglersError(f"round {plan.round}: expected an update from one of {names}, got none: {why}. {what_to_do}")


class _Hold:
    """One round under way: its links, and who has finished."""

    def __init__(
        self,
        policy: Stragglers,
        server: Server,
        links: Mapping[str, Link],
        plan: RoundPlan,
        part: Callable[[Link, Close], None],
        *,
        judging: bool = False,
    ) -> None:
        self._policy, self._part, self._start = policy, part, now()
        self._judging = judging
        self._run, self._round = server.run, plan.round
        self._timers: list[asyncio.TimerHandle] = []
        self._enough = policy.enough(len(plan.devices))
        self._finished = 0
        self._lasting = links  # which outlive the round
        self._server = server
        strangers = [device.device for device in plan.devices if isinstance(links[device.device], Refusing)]
        server.held_by(self._turn_out, strangers)
        self._links = {device.device: self._link(links[device.device], device.device) for device in plan.devices}
        seconds = policy.seconds if plan.deadline_seconds is None else plan.deadline_seconds
        if seconds is not None:
            self._after(seconds, self._close, "deadline")

    @property
    def links(self) -> Mapping[str, Link]:
        return self._links

    def _link(self, link: Link, device: str) -> PatientLink:
        return PatientLink(link, device, self._round, self._server, self._finish, judging=self._judging)

    def end(self) -> None:
        """Ends the hold: nobody is waited for any more."""
        self._server.held_by(None)
        for timer in self._timers:
            timer.cancel()

    def _after(self, seconds: float, call: Callable[[str], None], reason: str) -> asyncio.TimerHandle:
        self._timers.append(asyncio.get_running_loop().call_later(seconds, call, reason))
        return self._timers[-1]

    def _turn_out(self, error: DivergedError) -> None:
        """A device takes no further part, for what came of what it sent."""
        device, lasting = error.device, self._lasting[error.device]
        link = self._links[device]
        if link.depart(DeviceGone(str(error), device=device, reason="diverged")) and link.knows_no_better:
            self._part(lasting, Close(self._run, self._round, False, "diverged"))
        if isinstance(lasting, Refusing):
            lasting.refuse(Refused("diverged", str(error)))

    def _finish(self) -> None:
        """A device has sent its update."""
        self._finished += 1
        if self._policy.fraction is not None and self._finished == self._enough:
            self._close("quorum")

    def _close(self, reason: str) -> None:
        """Closes the round: whoever has not finished is late."""
        if self._policy.late == "drop":
            self._leave(reason)
            return
        for link in self._links.values():
            link.close(Close(self._run, self._round, True, reason))
        self._after(now() - self._start, self._leave, reason)

    def _leave(self, reason: str) -> None:
        """Takes whoever has not finished out of this round."""
        for device, link in self._links.items():
            if link.leave(reason) and link.knows_no_better:
                self._part(self._lasting[device], Close(self._run, self._round, False, reason))


class _Keep(_Hold):
    """One round under way in which nothing is lost: whoever has not finished when it ends goes on.

    Whoever finishes at the very moment at which a round ends is in it, whatever the order in which the loop hears of
    them: so a run that is resumed, with its tasks begun anew, is the one that never stopped.
    """

    def __init__(
        self,
        policy: Stragglers,
        server: Server,
        links: Mapping[str, Link],
        plan: RoundPlan,
        part: Callable[[Link, Close], None],
        tasks: Tasks,
        started_from: StartedFrom,
    ) -> None:
        tasks.waiting.clear()
        self._tasks, self._started_from, self._rebased = tasks, started_from, policy.rebased
        self._slots = _Slots(policy.at_once(len(plan.devices)) - len(tasks))
        self._ending: asyncio.TimerHandle | None = None  # once enough have finished
        super().__init__(policy, server, links, plan, part)

    def _link(self, link: Link, device: str) -> PatientLink:
        return TaskLink(
            link,
            device,
            self._round,
            self._server,
            self._finish,
            self._tasks,
            self._slots,
            self._started_from if self._rebased else None,
        )

    def _after(self, seconds: float, call: Callable[[str], None], reason: str) -> asyncio.TimerHandle:
        at = math.nextafter(now() + seconds, math.inf)
        self._timers.append(asyncio.get_running_loop().call_at(at, call, reason))
        return self._timers[-1]

    def _finish(self) -> None:
        self._finished += 1
        if self._finished < self._enough:
            self._slots.give_back()
        elif self._finished == self._enough:
            self._ending = self._after(0.0, self._leave, "quorum")

    def _turn_out(self, error: DivergedError) -> None:
        """The round waits for another in the place of a device that had finished."""
        super()._turn_out(error)
        if self._links[error.device].finished:
            self._finished -= 1
            if self._ending is not None and self._finished < self._enough:
                self._ending.cancel()
                self._ending = None
                self._slots.give_back()

    def _close(self, reason: str) -> None:
        if self._finished:
            self._leave(reason)
        else:
            self._enough = 1  # whoever is the first


class _Slots:
    """Slots for the devices that may still begin, in the order in which they ask.

    Args:
      free: So many; below 0 where more are at work than may be.
    """

    def __init__(self, free: int) -> None:
        self._owed, self._free = max(0, -free), asyncio.Semaphore(max(0, free))

    async def take(self) -> None:
        await self._free.acquire()

    def give_back(self) -> None:
        if self._owed:
            self._owed -= 1
        else:
            self._free.release()


class PatientLink(Around):
    """The server's end of a link in one round.

    Args:
      link: The end that outlives the round.
      device: Whose it is.
      round: The round.
      server: Told of messages that are dropped.
      finished: Called when the device's update has come, or what it judged.
      judging: Whether the device judges before the round.
    """

    def __init__(
        self,
        link: Link,
        device: str,
        round: int,
        server: Server,
        finished: Callable[[], None],
        *,
        judging: bool = False,
    ) -> None:
        super().__init__(link)
        self._judging = judging
        self._device, self._round, self._server, self._finished = device, round, server, finished
        self._begun = self._told = self._done = False
        self._close: Close | None = None
        self._announced = False  # to the round
        self._gone: DeviceGone | None = None
        self._receiving: set[asyncio.Timeout] = set()
        self._sending: set[asyncio.Timeout] = set()

    @property
    def finished(self) -> bool:
        """Whether the device's update has come, or what it judged."""
        return self._done

    @property
    def knows_no_better(self) -> bool:
        """Whether the device may be at work on this round, and has not been told that it ends."""
        return self._begun and not self._told

    def close(self, close: Close) -> None:
        """Makes the device late unless it has finished: the round is given `close`, and an update is waited for."""
        if not self._done and self._gone is None:
            self._close = close
            _interrupt(self._receiving)

    def leave(self, reason: str) -> bool:
        """Takes the device out of this round unless it has finished or is out already; returns whether it did."""
        gone = DeviceGone(
            f"device {self._device}, round {self._round}: expected it to finish in time, got {reason}. Nothing need be "
            "done: the round goes on without it.",
            device=self._device,
            reason=reason,
        )
        return self.depart(gone)

    def depart(self, gone: DeviceGone) -> bool:
        """Takes the device out as `leave` does, for a reason of which more is to be said."""
        if self._done or self._gone is not None:
            return False
        self._gone = gone
        self._server.left[self._device] = gone.reason
        _interrupt(self._receiving)
        _interrupt(self._sending)
        return True

    async def send(self, message: Message) -> None:
        """See `Link.send`.

        Raises:
          DeviceGone: The device takes no further part in the round.
        """
        if isinstance(message, Assignment | Judge):
            if self._close is not None:
                self.leave(self._close.reason)  # its turn comes when the round is over
            self._begun = self._gone is None
        await self._unless_interrupted(super().send(message), self._sending)
        self._told = self._told or isinstance(message, Close)

    async def receive(self) -> Message:
        """See `Link.receive`; a `Close` comes from no device: it is to be sent to this one.

        Raises:
          DeviceGone: The device takes no further part in the round.
        """
        while True:
            if self._close is not None and not self._announced and self._gone is None:
                self._announced = True
                return self._close
            with contextlib.suppress(_Interrupted):
                message = await self._unless_interrupted(super().receive(), self._receiving)
                if message.round < self._round or isinstance(message, HeldOut | Judged) is not self._judging:
                    self._server.ledger.drop(self._device)
                    continue
                if isinstance(message, Update | Judged):
                    self._done = True
                    self._finished()
                return message

    async def _unless_interrupted(self, wait: Coroutine[Any, Any, T], scopes: set[asyncio.Timeout]) -> T:
        """Returns the result of `wait`: it is cancelled when the device leaves, and a receiver also when it is late."""
        if self._gone is not None:
            wait.close()
            raise self._gone
        scope = asyncio.timeout(None)
        try:
            async with scope:
                scopes.add(scope)
                return await wait
        except DeviceGone as gone:
            self._server.left[self._device] = gone.reason
            raise
        except TimeoutError:
            if not scope.expired():
                raise
            raise self._gone or _Interrupted from None
        finally:
            scopes.discard(scope)


class TaskLink(PatientLink):
    """The server's end of a link in one round, of a device whose task may outlive it.

    Args:
      link: The end that outlives the round.
      device: Whose it is.
      round: The round.
      server: Told of messages that are dropped, and of the age of what arrives.
      finished: Called when the device's update has come.
      tasks: What devices are at work on.
      slots: How many may begin.
      started_from: What of a broadcast an update is the difference to; None where its values stand as they are.
    """

    knows_no_better = False  # a device that is late is told nothing

    def __init__(
        self,
        link: Link,
        device: str,
        round: int,
        server: Server,
        finished: Callable[[], None],
        tasks: Tasks,
        slots: _Slots,
        started_from: StartedFrom | None,
    ) -> None:
        stamp = tasks.assignment(device).round if device in tasks else round
        super().__init__(link, device, stamp, server, finished)
        self._tasks, self._slots, self._started_from = tasks, slots, started_from
        self._opened: Assignment | None = None  # what the device would be told if it began now

    async def send(self, message: Message) -> None:
        """See `PatientLink.send`; of a device that is at work nothing is sent."""
        if not isinstance(message, Assignment):
            await super().send(message)
            return
        self._opened = message
        if self._device not in self._tasks:
            self._tasks.waiting.add(self._device)
            await self._unless_interrupted(self._slots.take(), self._sending)
            self._tasks.waiting.remove(self._device)
            self._tasks.begin(message)
        with self._gone_for_good():
            await self._unless_interrupted(self._tasks.sent(self._device, self._link), self._sending)

    async def receive(self) -> Message:
        """See `PatientLink.receive`; an update as it is to count in this round."""
        with self._gone_for_good():
            message = await super().receive()
        return self._aged(message, self._tasks.end(self._device)) if isinstance(message, Update) else message

    def _aged(self, update: Update, begun: Assignment) -> Update:
        """The update, of a task that was begun some rounds ago, with what it changed on what there is now."""
        now = self._opened
        assert now is not None, "a device is assigned something before it is heard"
        age = now.round - begun.round
        self._server.ledger.note(self._device, staleness=age)
        if not age or self._started_from is None:
            return update
        before, after = (self._started_from(one.adapter, update) for one in (begun, now))
        adapter = {name: after[name] + (value - before[name]) for name, value in update.adapter.items()}
        return replace(update, adapter=adapter)

    @contextlib.contextmanager
    def _gone_for_good(self) -> Iterator[None]:
        """Ends the task of a device that is gone for another reason than that its round is over."""
        try:
            yield
        except DeviceGone:
            if self._gone is None:
                self._tasks.end(self._device)
                self._slots.give_back()
            raise


class _Interrupted(Exception):
    """A wait was ended because something else has happened."""


def _interrupt(scopes: set[asyncio.Timeout]) -> None:
    for scope in scopes:
        scope.reschedule(now())


async def _send_if_there(link: Link, close: Close) -> None:
    with contextlib.suppress(DeviceGone):
        await link.send(close)
