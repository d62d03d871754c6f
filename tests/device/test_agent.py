"""A device's connection: it comes again until the run is over, or until there is nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any

import pytest

from cutlayer.device.agent import Agent, Asking
from cutlayer.errors import JoinError, MalformedMessage
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.testing.carrier import modelled_carriers
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import Carrier, CarrierLost
from cutlayer.transport.handshake import hear, say
from cutlayer.transport.session import Session, Standing
from cutlayer.wire.messages import FINISHED, Handshake, Hello, Ready, Refusal, Stand, Welcome

PATIENCE_SECONDS = 60.0
READY = Ready("pi", "", 0, 0, 1e9, 2**30, 1e6, 1e6, 0.01, 6, (), ())
WELCOME = Welcome("run", "life-1", "pi", 0, "{}", (), "", "alone")
OVER = Refusal(FINISHED, "the run is over", final=True)

Converse = Callable[[], Coroutine[Any, Any, None]]


class Attendance:
    """A device that takes part in its own way (`agent.Attendance`)."""

    def __init__(self, converse: Converse) -> None:
        self.ready, self.converse = READY, converse
        self.session = Session(limit_bytes=lambda: 1000, incoming=Budget(1000), outgoing=Budget(1000))


class Stage:
    """A server that lets its device in and then keeps silent; and the device.

    Args:
      conversations: Of the device, one each time that it gets ready.
      welcomes: What the server says to a hello, one for each connection; then the last one for ever.
    """

    def __init__(self, *conversations: Converse, welcomes: tuple[Handshake, ...] = (WELCOME,)) -> None:
        self._conversations, self._welcomes = list(conversations), list(welcomes)
        self.dialled = self.prepared = 0
        self.reachable, self.notices, self.times = True, list[str](), list[float]()
        self.standings = list[tuple[str, int, int]]()
        self.carriers, self._serving = list[Carrier](), set[asyncio.Task[None]]()
        self.agent = Agent("pi", self.dial, self.prepare, Random(0), self.notices.append, PATIENCE_SECONDS)

    async def dial(self) -> Carrier:
        self.dialled += 1
        self.times.append(now())
        if not self.reachable:
            raise CarrierLost("connection: refused")
        mine, theirs = modelled_carriers(0.01)
        self.carriers.append(theirs)
        self._serving.add(asyncio.ensure_future(self._serve(theirs)))
        return mine

    async def prepare(self, _welcome: Welcome, _ask: Asking) -> Attendance:
        self.prepared += 1
        return Attendance(self._conversations.pop(0))

    async def _serve(self, carrier: Carrier) -> None:
        try:
            assert isinstance(await hear(carrier), Hello)
            welcome = self._welcomes[0] if len(self._welcomes) == 1 else self._welcomes.pop(0)
            await say(carrier, welcome)
            ready = await hear(carrier)
            assert isinstance(ready, Ready)
            self.standings.append((ready.session, ready.next_round, ready.received))
            await say(carrier, Stand("life-1", 9, 2))
            while True:
                await carrier.receive()
        except CarrierLost:
            carrier.close()


async def nothing_to_do() -> None:
    await asyncio.sleep(1.0)


def attended(stage_of: Callable[[], Stage]) -> Stage:
    """The stage when its device has left."""

    async def run() -> Stage:
        stage = stage_of()
        async with asyncio.timeout(1_000.0):
            await stage.agent.attend()
        return stage

    return run_virtual(run())


def test_it_comes_once_and_leaves() -> None:
    stage = attended(lambda: Stage(nothing_to_do))
    assert (stage.dialled, stage.prepared) == (1, 1)
    assert stage.standings == [("", 0, 0)]


def test_a_conversation_that_fails_over_the_wire_begins_again() -> None:
    """Found by a simulated fault: the second connection, for pieces of the model, was lost in the middle of a round,
    and from then on the device came again for ever and never took part."""

    async def fails() -> None:
        await asyncio.sleep(1.0)
        raise CarrierLost("connection: closed")

    async def is_sent_nonsense() -> None:
        raise MalformedMessage("piece: expected another offset.")

    stage = attended(lambda: Stage(fails, is_sent_nonsense, nothing_to_do))
    assert (stage.dialled, stage.prepared) == (3, 3)


def test_one_that_fails_each_time_gives_up() -> None:
    async def fails() -> None:
        raise CarrierLost("connection: closed")

    stages = []

    async def run() -> None:
        stages.append(Stage(*[fails] * 100))
        with pytest.raises(JoinError, match="expected an answer of the server within 60 s"):
            await stages[0].agent.attend()
        assert PATIENCE_SECONDS < now() < 2 * PATIENCE_SECONDS

    run_virtual(run())
    assert stages[0].prepared == stages[0].dialled < 20, "it waits longer each time"


def test_a_mistake_that_a_person_must_change_ends_it() -> None:
    async def fails() -> None:
        raise JoinError("join: expected another model.")

    with pytest.raises(JoinError, match="another model"):
        attended(lambda: Stage(fails))


def test_another_run_of_the_same_server_is_another_conversation() -> None:
    stopped = []

    async def goes_on() -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            stopped.append(now())

    async def run() -> None:
        stage = Stage(goes_on, nothing_to_do, welcomes=(WELCOME, replace(WELCOME, run="another")))
        attending = asyncio.ensure_future(stage.agent.attend())
        await asyncio.sleep(5.0)
        assert (stage.dialled, stage.prepared) == (1, 1)
        for carrier in stage.carriers:
            carrier.close()
        await attending
        assert (stage.dialled, stage.prepared) == (2, 2)
        assert stopped

    run_virtual(run())


def test_whoever_comes_when_all_is_over_leaves() -> None:
    stage = attended(lambda: Stage(nothing_to_do, welcomes=(OVER,)))
    assert (stage.dialled, stage.prepared) == (1, 0)


def test_whom_the_server_refuses_for_good_says_why() -> None:
    refusal = Refusal("revoked", "device pi: expected one that may come in.", final=True)
    with pytest.raises(JoinError, match="expected one that may come in"):
        attended(lambda: Stage(welcomes=(refusal,)))


def test_whom_the_server_refuses_for_now_comes_again() -> None:
    busy = Refusal("too-many", "connection: come again later.", final=False)
    stage = attended(lambda: Stage(nothing_to_do, welcomes=(busy, busy, WELCOME)))
    assert (stage.dialled, stage.prepared) == (3, 1)
    again = "connection: come again later. Trying again, for up to 60 s."
    assert (stage.notices[0], stage.notices.count(again)) == (again, 1), "once, and not at each try"


def test_where_nobody_answers_it_gives_up_after_its_patience() -> None:
    async def run() -> None:
        stage = Stage()
        stage.reachable = False
        with pytest.raises(JoinError, match="expected an answer of the server within 60 s, got connection: refused"):
            await stage.agent.attend()
        assert PATIENCE_SECONDS < now() < PATIENCE_SECONDS + 11.0
        assert 1 <= len(stage.notices) <= 2, "a line when it begins, and one a minute"
        waits = [after - before for before, after in pairwise(stage.times)]
        assert 0.5 <= waits[0] <= 1.0
        assert all(5.0 <= wait <= 10.0 for wait in waits[4:]), "not so often that it would cost anything"
        assert len(set(waits)) == len(waits), "with jitter: devices that lost one server do not come all at once"

    run_virtual(run())


def test_what_only_a_person_can_mend_is_told_when_it_was_found_twice() -> None:
    async def run() -> None:
        stage = Stage()
        stage.reachable = False
        found = iter(["join: it hung up", None, "join: it hung up", "join: another ca.crt", "join: another ca.crt"])

        async def wrong() -> str | None:
            return next(found)

        stage.agent = Agent("pi", stage.dial, stage.prepare, Random(0), stage.notices.append, PATIENCE_SECONDS, wrong)
        with pytest.raises(JoinError, match=r"another ca\.crt"):
            await stage.agent.attend()
        assert stage.dialled == 5

    run_virtual(run())


def test_after_a_break_it_says_how_it_stands() -> None:
    async def run() -> None:
        stage = Stage(lambda: asyncio.sleep(30.0))
        attending = asyncio.ensure_future(stage.agent.attend())
        await asyncio.sleep(5.0)
        session = stage.agent._attendance.session  # type: ignore[union-attr]
        session._name, session._round, session._received = "life-1", 4, 7
        assert session.standing == Standing("life-1", 4, 7)
        for carrier in stage.carriers:
            carrier.close()
        await attending
        assert stage.standings == [("", 0, 0), ("life-1", 5, 7)]
        assert session._peer == Standing("life-1", 8, 2), "and hears how the server does"

    run_virtual(run())
