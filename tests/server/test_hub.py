"""Who is connected and who belongs to the fleet, as the hub sees it, over modelled connections.

What whole runs do with it is tried in `test_serve.py`, `test_hostile.py` and `benchmarks/test_fault_simulation.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import torch

from cutlayer.errors import Refused
from cutlayer.fleet.carrier import modelled_carriers
from cutlayer.fleet.clock import now, run_virtual
from cutlayer.fleet.profile import DeviceProfile
from cutlayer.server.hub import Hub
from cutlayer.server.refusals import Refusals
from cutlayer.wire.budget import Budget
from cutlayer.wire.carrier import Carrier, CarrierLost
from cutlayer.wire.handshake import hear, say
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Answer, Ask, Handshake, Hello, Message, Ready, Refusal, Stand, Welcome
from cutlayer.wire.session import Session

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
        self.hub = Hub("life-1", self.host, {"first": 0}, Refusals(now))
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
        assert welcome.index == 1, "the first place is another's"
        assert isinstance(answer, Answer)
        assert stand == Stand("life-1", 0, 0)
        await stage.hub.wait_for(lambda: len(stage.hub.here) == 1)
        carrier.close()
        await stage.hub.wait_for(lambda: not stage.hub.here)
        assert [member.name for member in stage.hub.fleet] == ["pi"]
        _, (welcome, _) = await stage.come(Hello("pi", "0"), READY)
        assert isinstance(welcome, Welcome)
        assert welcome.index == 1
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
        await stage.come(Hello("pi", "0"), READY)
        assert [member.name for member in stage.hub.fleet] == ["pi"], "it has come again"

    on_a_stage(play)


def test_another_name_than_its_own() -> None:
    async def play(stage: Stage) -> None:
        _, (answer,) = await stage.come(Hello("another", "0"))
        assert isinstance(answer, Refusal)
        assert (answer.reason, answer.final) == ("wrong-name", True)

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
