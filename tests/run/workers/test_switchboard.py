"""The workers that devices are sent to, and what the head knows of devices that others serve."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cutlayer.errors import WorkerLost
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.gate.refusals import Refusals
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.run.workers.switchboard import Switchboard
from cutlayer.run.workers.worker import Report
from cutlayer.testing.carrier import modelled_carriers
from cutlayer.transport.budget import Budget
from cutlayer.transport.handshake import hear, say
from cutlayer.transport.session import Session
from cutlayer.wire.link import Link
from cutlayer.wire.messages import FINISHED, Elsewhere, Finish, Handshake, Hello, Message, Refusal

PROFILE = {
    "flops_per_second": 1e9,
    "efficiency": 1.0,
    "memory_bytes": 2**30,
    "up_bits_per_second": 1e6,
    "down_bits_per_second": 1e6,
    "latency_seconds": 0.01,
}


class Host:
    """The part of `hub.Host` that a switchboard asks."""

    def session(self, device: str) -> tuple[Session, Link]:  # noqa: ARG002
        session = Session("life", limit_bytes=lambda: 0, incoming=Budget(1), outgoing=Budget(1))
        return session, session


class Worker:
    """A worker that is told what to report."""

    def __init__(self, port: int) -> None:
        self.port, self.expected, self.dismissed = port, list[tuple[str, int]](), list[Finish]()
        self.farewells: list[str] = []
        self.reports = asyncio.Queue[Report | WorkerLost]()

    async def expect(self, device: str, index: int) -> str:
        self.expected.append((device, index))
        return f":{self.port}"

    async def report(self, seen: int) -> Report:  # noqa: ARG002
        report = await self.reports.get()
        if isinstance(report, WorkerLost):
            raise report
        return report

    async def dismiss(self, finish: Finish) -> None:
        self.dismissed.append(finish)

    async def farewell(self, reason: str) -> None:
        self.farewells.append(reason)
        await asyncio.sleep(1e9)  # it hangs


def report(
    *names: str,
    here: Sequence[str] = (),
    up: int = 0,
    refused: Mapping[str, str] | None = None,
    life: str = "first",
    made: int = 0,
) -> Report:
    """A worker's report of devices, whose places are the numbers in their names."""
    members = [
        {
            "name": name,
            "index": int(name[1:]),
            "profile": {"name": name, **PROFILE},
            "num_samples": 5,
            "label_counts": [2, 3],
            "refused": (refused or {}).get(name),
        }
        for name in names
    ]
    rows = [DeviceNow(name, "ready" if name in here else "away", bytes_up=up) for name in names]
    counts = {name: {reason: 1} for name, reason in (refused or {}).items()}
    return Report(life, made, 0, members, frozenset(here), rows, counts)


class Stage:
    """A switchboard of two workers."""

    def __init__(self) -> None:
        self.news: list[str] = []
        self.board = Switchboard("life", Host(), {"d0": 0, "d1": 1}, Refusals(now), self.news.append, 2)
        self.board.workers = self.workers = [Worker(7071), Worker(7072)]

    async def hello(self, name: str) -> Message | Handshake:
        mine, theirs = modelled_carriers(0.01)
        attending = asyncio.ensure_future(self.board.attend(theirs, name))
        await say(mine, Hello(name, "0"))
        answer = await hear(mine)
        await attending
        return answer


def test_devices_are_dealt_out_by_their_places_for_good() -> None:
    async def play() -> None:
        stage = Stage()
        answers = {name: await stage.hello(name) for name in ("d1", "d0", "new", "d1")}
        assert answers == {"d1": Elsewhere(":7072"), "d0": Elsewhere(":7071"), "new": Elsewhere(":7071")}
        assert stage.workers[0].expected == [("d0", 0), ("new", 2)]
        assert stage.workers[1].expected == [("d1", 1), ("d1", 1)]

    run_virtual(play())


def test_who_is_here_is_what_the_workers_say() -> None:
    async def play() -> None:
        stage = Stage()
        board = stage.board
        board.mirror(0, report("d0", "d2", here=["d0"], up=10))
        board.mirror(1, report("d1", here=["d1"], up=5))
        assert [member.name for member in board.here] == ["d0", "d1"]
        assert [row["name"] for row in board.rows()] == ["d0", "d1", "d2"]
        assert board.members["d1"].label_counts == (2, 3)
        assert stage.news == [
            "d0 has come: 1 of 2 devices are here",
            "d1 has come: 2 of 3 devices are here",
        ]
        board.mirror(0, report("d0", "d2", here=["d0", "d2"], up=30, refused={"d0": "not-finite"}))
        assert [member.name for member in board.fleet] == ["d1", "d2"]
        assert board.refused() == {"d0": {"not-finite": 1}}
        assert [(row.name, row.bytes_up) for row in board.roll_call(["d1", "other"])] == [
            ("d0", 30),
            ("d1", 5),
            ("d2", 30),
            ("other", 0),
        ]

    run_virtual(play())


def test_a_worker_that_was_begun_again_knows_nobody_and_its_devices_stay_members() -> None:
    async def play() -> None:
        stage = Stage()
        board = stage.board
        board.mirror(0, report("d0", "d2", here=["d0", "d2"], up=100))
        board.mirror(1, report("d1", here=["d1"]))
        board.mirror(0, report(life="second"))
        assert stage.news.count("worker 0 died and was begun again") == 1
        assert [member.name for member in board.here] == ["d1"]
        assert [member.name for member in board.fleet] == ["d0", "d1", "d2"]
        assert [row.state for row in board.roll_call([])] == ["away", "ready", "away"]
        board.mirror(0, report("d0", here=["d0"], up=7, life="second"))
        assert board.members["d0"].session.bytes_received == 107
        board.mirror(0, report("d0", here=["d0"], up=109, life="third"))
        board.mirror(0, report("d0", here=["d0"], up=110, life="third"))
        assert board.members["d0"].session.bytes_received == 217
        assert stage.news.count("worker 0 died and was begun again") == 2
        board.mirror(0, report("d0", here=["d0"], up=130, life="third", made=5))
        board.mirror(0, report("d0", up=120, life="third", made=4))  # overtaken
        assert board.members["d0"].session.bytes_received == 237
        assert board.members["d0"].here

    run_virtual(play())


def test_the_end_is_told_to_workers_and_to_who_comes_late_and_none_that_hangs_is_waited_for() -> None:
    async def play() -> None:
        stage, finish = Stage(), Finish("run", 3, "all rounds are done")
        await stage.board.dismiss(finish)
        assert [worker.dismissed for worker in stage.workers] == [[finish], [finish]]
        assert await stage.hello("d1") == Refusal(FINISHED, "all rounds are done", final=True)
        start = now()
        await stage.board.farewell("the end")
        assert now() - start < 60
        assert [worker.farewells for worker in stage.workers] == [["the end"], ["the end"]]

    run_virtual(play())


def test_a_worker_that_is_lost_for_good_ends_the_run() -> None:
    async def play() -> None:
        stage = Stage()

        @asynccontextmanager
        async def team() -> Any:
            yield stage.workers

        async def run() -> None:
            async with stage.board.staffed(team()):
                stage.workers[1].reports.put_nowait(report("d1", here=["d1"]))
                await stage.board.wait_for(lambda: len(stage.board.here) == 1)
                stage.workers[0].reports.put_nowait(WorkerLost("worker 0: expected it to live, got a death."))
                await asyncio.sleep(1e9)

        with pytest.raises(BaseExceptionGroup) as caught:
            await run()
        assert caught.group_contains(WorkerLost)

    run_virtual(play())
