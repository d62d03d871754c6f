"""Devices that are connected and those that belong to the fleet, as the hub sees them, over modelled connections.

Whole runs with it are in `run/test_served.py`, `test_hostile.py` and `benchmarks/test_fault_simulation.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
import torch

from cutlayer.device.agent import LONGEST_WAIT_SECONDS
from cutlayer.errors import DeviceGone, Refused
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.profile import DeviceProfile
from cutlayer.gate import hub
from cutlayer.gate.allowance import HELLO_SECONDS
from cutlayer.gate.hub import FAREWELL_SECONDS, LINGER_SECONDS, Hub
from cutlayer.gate.refusals import Refusals
from cutlayer.testing.carrier import modelled_carriers
from cutlayer.transport.budget import Budget
from cutlayer.transport.carrier import Carrier, CarrierLost
from cutlayer.transport.handshake import hear, say, say_goodbye
from cutlayer.transport.packets import Kind, unpack
from cutlayer.transport.session import Session
from cutlayer.wire.link import Link
from cutlayer.wire.messages import (
    FINISHED,
    Answer,
    Ask,
    Finish,
    Handshake,
    Hello,
    Message,
    Ready,
    Refusal,
    Stand,
    Welcome,
)

READY = Ready("pi", "", 0, 0, 1e9, 2**30, 1e6, 1e6, 0.01, 6, (), ())


class Host:
    """A run that takes in everybody (`hub.Host`)."""

    def __init__(self) -> None:
        self.revoked: set[str] = set()

    def welcome(self, device: str, index: int) -> Welcome:
        return Welcome("run", "life-1", device, index, "{}", (), "", "alone")

    def profile(self, ready: Ready) -> DeviceProfile:
        return DeviceProfile(
            name=ready.device,
            flops_per_second=ready.flops_per_second,
            efficiency=1.0,
            memory_bytes=ready.memory_bytes,
            up_bits_per_second=ready.up_bits_per_second,
            down_bits_per_second=ready.down_bits_per_second,
            latency_seconds=ready.latency_seconds,
        )

    async def answer(self, device: str, ask: Ask) -> Answer:  # noqa: ARG002
        return Answer(torch.zeros(ask.length, dtype=torch.uint8))

    def session(self, device: str) -> tuple[Session, Link]:  # noqa: ARG002
        session = Session("life-1", limit_bytes=lambda: 1000, incoming=Budget(1000), outgoing=Budget(1000))
        return session, session

    def standing(self, device: str) -> None:
        if device in self.revoked:
            raise Refused("revoked", f"device {device}: expected one that may come in, got one that was revoked.")


class Stage:
    """A hub, and connections to it."""

    def __init__(self) -> None:
        self.host = Host()
        self.hub = Hub("life-1", self.host, {"second": 1}, Refusals(now))
        self._attending = set[asyncio.Task[None]]()

    def dial(self, name: str = "pi") -> Carrier:
        mine, theirs = modelled_carriers(0.01)
        self._attending.add(asyncio.ensure_future(self.hub.attend(theirs, name)))
        return mine

    async def come(self, *messages: Handshake, name: str = "pi") -> tuple[Carrier, list[Message | Handshake]]:
        """Says these, and what the hub answers, one for each."""
        carrier, heard = self.dial(name), list[Message | Handshake]()
        for message in messages:
            await say(carrier, message)
            heard.append(await hear(carrier))
        return carrier, heard

    @property
    def refused(self) -> dict[str, dict[str, int]]:
        return self.hub.refusals.as_dict()


def on_a_stage(play: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await play(Stage())

    run_virtual(run())


def test_a_device_comes_and_goes_and_keeps_its_place() -> None:
    async def play(stage: Stage) -> None:
        carrier, (welcome, answer, stand) = await stage.come(Hello("pi", "0"), Ask("echo", length=3), READY)
        assert isinstance(welcome, Welcome)
        assert welcome.index == 2, "the second place is another's"
        assert isinstance(answer, Answer)
        assert stand == Stand("life-1", 0, 0)
        await stage.hub.wait_for(lambda: len(stage.hub.here) == 1)
        carrier.close()
        await stage.hub.wait_for(lambda: not stage.hub.here)
        assert [member.name for member in stage.hub.fleet] == ["pi"]
        _, (welcome, _) = await stage.come(Hello("pi", "0"), READY)
        assert isinstance(welcome, Welcome)
        assert welcome.index == 2
        assert stage.hub.members["pi"].connections == 2

    on_a_stage(play)


def test_a_hello_that_arrives_twice() -> None:
    """Found by a simulated fault: a device whose hello was repeated was thrown out of its round."""

    async def play(stage: Stage) -> None:
        carrier = stage.dial()
        for message in (Hello("pi", "0"), Hello("pi", "0"), READY):
            await say(carrier, message)
        assert isinstance(await hear(carrier), Welcome)
        assert isinstance(await hear(carrier), Stand)
        assert not stage.refused

    on_a_stage(play)


def test_a_hello_that_gets_lost_is_no_fault_of_its_device() -> None:
    """Found by a simulated fault: a device that is away between two connections is waited for, whoever else calls in
    its name and says nothing."""

    async def play(stage: Stage) -> None:
        carrier, _ = await stage.come(Hello("pi", "0"), READY)
        carrier.close()
        await stage.hub.wait_for(lambda: not stage.hub.here)
        with pytest.raises(CarrierLost, match="expected the next message within"):
            await hear(stage.dial())
        assert stage.refused == {"pi": {"too-slow": 1}}
        assert [member.name for member in stage.hub.fleet] == ["pi"]

    on_a_stage(play)


def test_what_is_no_handshake_ends_the_round_for_its_device() -> None:
    async def play(stage: Stage) -> None:
        carrier, _ = await stage.come(Hello("pi", "0"), READY)
        carrier.close()
        await stage.hub.wait_for(lambda: not stage.hub.here)
        with pytest.raises(CarrierLost, match="expected its hello"):
            await stage.come(READY)
        assert stage.refused == {"pi": {"wrong-kind": 1}}
        assert not stage.hub.fleet
        with pytest.raises(DeviceGone):
            await stage.hub.members["pi"].link.receive()
        await stage.come(Hello("pi", "0"), READY)
        assert [member.name for member in stage.hub.fleet] == ["pi"], "it has come again"

    on_a_stage(play)


def test_another_name_than_its_own() -> None:
    async def play(stage: Stage) -> None:
        carrier, (answer,) = await stage.come(Hello("another", "0"))
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.final) == ("wrong-name", True)
        with pytest.raises(CarrierLost):
            await carrier.receive()

    on_a_stage(play)


def test_a_device_that_is_revoked_while_it_is_here() -> None:
    async def play(stage: Stage) -> None:
        await stage.come(Hello("pi", "0"), READY)
        await stage.hub.wait_for(lambda: len(stage.hub.here) == 1)
        stage.host.revoked.add("pi")
        before = now()
        await stage.hub.wait_for(lambda: not stage.hub.fleet)
        assert now() - before <= 1.0
        assert stage.refused == {"pi": {"revoked": 1}}

    on_a_stage(play)


def test_the_newest_connection_of_a_device_counts() -> None:
    async def play(stage: Stage) -> None:
        first, _ = await stage.come(Hello("pi", "0"), READY)
        await stage.come(Hello("pi", "0"), READY)
        await asyncio.sleep(1.0)
        with pytest.raises(CarrierLost):
            await first.send(b"more")
        assert [member.name for member in stage.hub.here] == ["pi"]

    on_a_stage(play)


def test_who_is_not_ready_yet_belongs_to_no_fleet() -> None:
    async def play(stage: Stage) -> None:
        carrier, _ = await stage.come(Hello("pi", "0"))
        assert stage.hub.members["pi"].connecting == 1
        assert not stage.hub.everybody
        carrier.close()
        await asyncio.sleep(1.0)
        assert stage.hub.members["pi"].connecting == 0

    on_a_stage(play)


def test_an_earlier_connection_that_ends_later_takes_nobody_away() -> None:
    async def play(stage: Stage) -> None:
        first, _ = await stage.come(Hello("pi", "0"), READY)
        await stage.come(Hello("pi", "0"), READY)
        first.close()
        await asyncio.sleep(5.0)
        assert [member.name for member in stage.hub.here] == ["pi"]
        assert stage.hub.members["pi"].connections == 2

    on_a_stage(play)


def test_what_a_round_refuses_ends_the_connection_until_it_comes_again() -> None:
    async def play(stage: Stage) -> None:
        carrier, _ = await stage.come(Hello("pi", "0"), READY)
        await stage.hub.wait_for(lambda: len(stage.hub.here) == 1)
        stage.hub.eject("pi", Refused("not-finite", "device pi: expected finite numbers."))
        assert stage.refused == {"pi": {"not-finite": 1}}
        assert not stage.hub.fleet
        await asyncio.sleep(1.0)
        assert not stage.hub.members["pi"].here
        with pytest.raises(CarrierLost):
            await carrier.send(b"more")
        await stage.come(Hello("pi", "0"), READY)
        assert [member.name for member in stage.hub.fleet] == ["pi"]

    on_a_stage(play)


def test_who_can_be_given_no_part_is_told_so_for_good_unless_it_offers_more() -> None:
    """It is refused at the door as long as it says what it said."""

    async def play(stage: Stage) -> None:
        carrier, _ = await stage.come(Hello("pi", "0"), READY)
        await stage.hub.wait_for(lambda: len(stage.hub.here) == 1)
        stage.hub.turn_away("pi", Refused("unplaced", "device pi: expected room for a block, got none."))
        assert not stage.hub.fleet
        await asyncio.sleep(1.0)
        with pytest.raises(CarrierLost):
            await carrier.send(b"more")
        for memory in (READY.memory_bytes, READY.memory_bytes * 21 // 20):
            _, (_, refusal) = await stage.come(Hello("pi", "0"), replace(READY, memory_bytes=memory))
            assert isinstance(refusal, Refusal)
            assert (refusal.reason, refusal.final) == ("unplaced", True)
        assert not stage.hub.fleet
        await stage.come(Hello("pi", "0"), replace(READY, memory_bytes=2 * READY.memory_bytes))
        assert [member.name for member in stage.hub.fleet] == ["pi"]
        assert stage.refused == {"pi": {"unplaced": 3}}

    on_a_stage(play)


def test_a_device_that_is_revoked_while_it_prepares() -> None:
    async def play(stage: Stage) -> None:
        carrier, _ = await stage.come(Hello("pi", "0"), Ask("echo", length=3))
        stage.host.revoked.add("pi")
        await say(carrier, Ask("echo", length=3))
        refusal = await hear(carrier)
        assert isinstance(refusal, Refusal)
        assert (refusal.reason, refusal.final) == ("revoked", True)
        assert stage.refused == {"pi": {"revoked": 1}}

    on_a_stage(play)


@pytest.mark.parametrize("when", ["at the door", "in a round"])
def test_a_device_whose_owner_declines_is_counted_and_gone_and_its_words_are_shown_as_they_are(when: str) -> None:
    news = list[str]()

    async def play(stage: Stage) -> None:
        stage.hub = Hub("life-1", stage.host, {}, Refusals(now), news.append)
        said = (Hello("pi", "0"),) if when == "at the door" else (Hello("pi", "0"), READY)
        carrier, _ = await stage.come(*said)
        await say_goodbye(carrier, "expected columns that are lent\n\x1b[2J, got one.", declined=True)
        with contextlib.suppress(CarrierLost):
            while True:  # until the hub has heard it, and ends the connection
                await carrier.receive()
        assert stage.refused == {"pi": {"declined": 1}}
        assert stage.hub.fleet == []
        member = stage.hub.members["pi"]
        assert not member.here
        with pytest.raises(DeviceGone, match="it declines: expected columns that are lent"):
            await member.session.receive()

    on_a_stage(play)
    (line,) = [line for line in news if "declines" in line]
    assert line.startswith(r"pi: it declines: expected columns that are lent\n\x1b[2J, got one.")
    assert all(line.isprintable() for line in news)


def test_a_device_that_stays_away_is_named_after_a_minute_and_given_up_after_its_time() -> None:
    async def play(stage: Stage) -> None:
        lines: list[str] = []
        stage.hub._notice = lines.append
        carrier, _ = await stage.come(Hello("pi", "0"), READY)
        await stage.hub.wait_for(lambda: len(stage.hub.here) == 1)
        watching = asyncio.create_task(stage.hub.watch_absent(lambda device: device == "pi", 90.0))
        await asyncio.sleep(20.0)
        assert not any("waits" in line for line in lines), "it is here"
        carrier.close()
        await asyncio.sleep(59.0)
        assert not any("waits" in line for line in lines)
        await asyncio.sleep(10.0)
        [line] = [line for line in lines if "waits" in line]
        assert line.startswith("the round waits for pi, away for 6")
        assert stage.hub.fleet
        await asyncio.sleep(30.0)
        assert not stage.hub.fleet
        assert stage.hub.members["pi"].refused is not None
        await stage.come(Hello("pi", "0"), READY)
        assert [member.name for member in stage.hub.fleet] == ["pi"], "and it is back when it comes"
        watching.cancel()

    on_a_stage(play)


def test_without_a_time_a_device_that_stays_away_is_waited_for() -> None:
    async def play(stage: Stage) -> None:
        carrier, _ = await stage.come(Hello("pi", "0"), READY)
        await stage.hub.wait_for(lambda: len(stage.hub.here) == 1)
        watching = asyncio.create_task(stage.hub.watch_absent(lambda _: True, None))
        carrier.close()
        await asyncio.sleep(5_000.0)
        assert [member.name for member in stage.hub.fleet] == ["pi"]
        watching.cancel()

    on_a_stage(play)


def test_a_fleet_outlives_the_server() -> None:
    async def play(stage: Stage) -> None:
        for name in ("pi", "jetson"):
            await stage.come(Hello(name, "0"), replace(READY, device=name), name=name)
        stage.hub.eject("jetson", Refused("not-finite", "device jetson: expected finite numbers."))
        again = Stage()
        again.hub.load(stage.hub.state())
        assert [member.name for member in again.hub.everybody] == ["pi", "jetson"]
        assert [member.name for member in again.hub.fleet] == ["pi"], "it has not come again since it was refused"
        assert not again.hub.here
        assert again.hub.state() == stage.hub.state()
        _, (welcome, _) = await again.come(Hello("jetson", "0"), replace(READY, device="jetson"), name="jetson")
        assert isinstance(welcome, Welcome)
        assert welcome.index == 3
        _, (welcome,) = await again.come(Hello("third", "0"), name="third")
        assert isinstance(welcome, Welcome)
        assert welcome.index == 4, "no place is given twice"

    on_a_stage(play)


def test_when_the_run_is_over_everybody_is_told_so() -> None:
    async def play(stage: Stage) -> None:
        carrier, _ = await stage.come(Hello("pi", "0"), READY)
        await stage.hub.wait_for(lambda: len(stage.hub.here) == 1)
        dismissing = asyncio.ensure_future(stage.hub.dismiss(Finish("run", 3, "all rounds are done")))
        await asyncio.sleep(1.0)
        assert not dismissing.done(), "it waits until the device has gone"
        carrier.close()
        await dismissing
        assert now() < FAREWELL_SECONDS
        _, (answer,) = await stage.come(Hello("late", "0"), name="late")
        assert answer == Refusal(FINISHED, "all rounds are done", final=True)

    on_a_stage(play)


def test_a_server_lingers_for_whoever_was_away_when_the_run_ended() -> None:
    async def play(stage: Stage) -> None:
        carrier, _ = await stage.come(Hello("pi", "0"), READY)
        await stage.hub.wait_for(lambda: len(stage.hub.here) == 1)
        carrier.close()
        await stage.hub.wait_for(lambda: not stage.hub.here)
        await stage.hub.dismiss(Finish("run", 3, "all rounds are done"))
        lingering = asyncio.ensure_future(stage.hub.linger())
        await asyncio.sleep(LONGEST_WAIT_SECONDS)
        assert not lingering.done()
        _, (answer,) = await stage.come(Hello("pi", "0"))
        assert isinstance(answer, Refusal)
        assert answer.reason == FINISHED
        came = now()
        await lingering
        assert now() == came, "everybody knows"
        await stage.hub.linger()
        assert now() == came

    on_a_stage(play)


def test_a_server_does_not_linger_for_ever_and_not_for_whom_it_refused() -> None:
    async def play(stage: Stage) -> None:
        for name in ("gone", "refused"):
            carrier, _ = await stage.come(Hello(name, "0"), replace(READY, device=name), name=name)
            await asyncio.sleep(1.0)
            if name == "gone":
                carrier.close()
        stage.hub.eject("refused", Refused("not-finite", "device refused: expected finite numbers."))
        await asyncio.sleep(1.0)
        await stage.hub.dismiss(Finish("run", 3, "all rounds are done"))
        begun = now()
        await stage.hub.linger()
        assert now() == begun + LINGER_SECONDS
        stage.hub.members["gone"].refused = stage.hub.members["refused"].refused
        await stage.hub.linger()
        assert now() == begun + LINGER_SECONDS

    on_a_stage(play)


def test_a_server_that_stops_says_why() -> None:
    async def play(stage: Stage) -> None:
        carrier, _ = await stage.come(Hello("pi", "0"), READY)
        await stage.hub.wait_for(lambda: len(stage.hub.here) == 1)
        await stage.hub.farewell("it may come back")
        packets = []
        with contextlib.suppress(CarrierLost):
            while True:
                packets.append(unpack(await carrier.receive(), check=True))
        assert (packets[-1].kind, bytes(packets[-1].body)) == (Kind.GOODBYE, b"it may come back")
        await asyncio.sleep(1.0)
        assert not stage.hub.here

    on_a_stage(play)


def test_silent_strangers_are_let_in_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_STRANGERS", 3)

    async def play(stage: Stage) -> None:
        silent = [stage.dial(f"silent-{number}") for number in range(3)]
        await asyncio.sleep(1.0)
        _, (answer,) = await stage.come(Hello("pi", "0"))
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.final) == ("too-many", False)
        silent[0].close()
        await asyncio.sleep(1.0)
        await stage.come(Hello("pi", "0"), READY)
        assert len(stage.hub.fleet) == 1
        await asyncio.sleep(HELLO_SECONDS)
        await stage.come(Hello("pi", "0"), READY)

    on_a_stage(play)
