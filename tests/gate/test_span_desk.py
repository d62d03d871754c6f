"""The desk of a machine that runs blocks, and a device that dials it: answers, refusals, connections that end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
import torch

from carriers import MemoryCarrier, pipe
from cutlayer.device.dialled import DialledSpans
from cutlayer.errors import Refused, SpanLost
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.gate.span_desk import SpanDesk
from cutlayer.packing import CompressedLink, compression
from cutlayer.server.span import SpanServer
from cutlayer.testing.playground import FlatCosts, tiny_base
from cutlayer.transport.handshake import hear, say
from cutlayer.transport.packets import Kind, Packet, pack
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Ask, Hello, SpanCall, Update

CALL = SpanCall("run", 0, 1, "pi", 0, 2, torch.ones(1, 3, 16), torch.ones(1, 3) > 0, None, False, {})


class Place:
    """A desk without a network: `dial` makes connections in memory, as whoever it is told."""

    def __init__(self, codec: str = "none") -> None:
        self.codec, self.revoked = codec, set[str]()
        machine = ModelledMachine("gpu", 1e15, lambda _: None)
        server = SpanServer("gpu", tiny_base(), machine, FlatCosts(3), (0, 2), 12)
        self.desk = SpanDesk(server, "run", "fingerprint", self.packed, 2**20, self._standing)
        self.attending: list[asyncio.Task[None]] = []

    def _standing(self, device: str) -> None:
        if device in self.revoked:
            raise Refused("revoked", f"device {device}: expected one of the fleet, got one that was taken out.")

    def packed(self, link: Link) -> CompressedLink:
        codecs = compression(activations=self.codec, gradients=self.codec)
        return CompressedLink(link, codecs, hidden_size=16, dtype=torch.float32)

    async def dial(self, address: str = "", *, name: str = "pi") -> MemoryCarrier:
        assert address in ("", "gpu:1")
        mine, theirs = pipe()
        self.attending.append(asyncio.create_task(self.desk.attend(theirs, name)))
        return mine

    def spans(self, **changes: Any) -> DialledSpans:
        values = {"name": "pi", "run": "run", "fingerprint": "fingerprint", "dial": self.dial, "packed": self.packed}
        return DialledSpans(**{**values, **changes})

    @property
    def refused(self) -> dict[str, dict[str, int]]:
        return self.desk.refusals.as_dict()


def run(work: Coroutine[Any, Any, None]) -> None:
    async def in_time() -> None:
        async with asyncio.timeout(20):
            await work

    asyncio.run(in_time())


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_calls_are_answered_over_one_connection(codec: str) -> None:
    async def work() -> None:
        place = Place(codec)
        spans = place.spans()
        forward = await spans.ask("gpu", "gpu:1", CALL)
        back = await spans.ask("gpu", "gpu:1", replace(CALL, grad_BTD=torch.ones(1, 3, 16), below=True))
        assert forward.h_BTD is not None
        assert forward.h_BTD.shape == (1, 3, 16)
        assert back.grad_BTD is not None
        assert back.grad_BTD.abs().max() > 0
        assert len(place.attending) == 1
        before = spans.bytes_sent, spans.bytes_received
        assert min(before) > 0
        spans.close()
        assert (spans.bytes_sent, spans.bytes_received) == before, "what has passed is not forgotten"

    run(work())


def test_a_connection_that_ends_is_lost_and_the_next_call_makes_another() -> None:
    async def work() -> None:
        place = Place()
        spans = place.spans()
        await spans.ask("gpu", "gpu:1", CALL)
        place.attending[0].cancel()
        await asyncio.gather(*place.attending, return_exceptions=True)
        with pytest.raises(SpanLost, match="Another is asked"):
            await spans.ask("gpu", "gpu:1", CALL)
        await spans.ask("gpu", "gpu:1", CALL)
        assert len(place.attending) == 2

    run(work())


def test_whoever_is_given_up_answers_no_other_call() -> None:
    """A call that is cancelled ends its connection: its answer would be taken for that of the next."""

    async def work() -> None:
        place = Place()
        spans = place.spans()
        asking = asyncio.create_task(spans.ask("gpu", "gpu:1", CALL))
        for _ in range(6):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        answer = await spans.ask("gpu", "gpu:1", replace(CALL, step=7))
        assert answer.step == 7
        assert len(place.attending) == 2

    run(work())


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"run": "other"}, "expected run other"), ({"fingerprint": "other"}, "expected run run and its model")],
)
def test_another_run_or_model_is_not_asked(changes: dict[str, str], match: str) -> None:
    async def work() -> None:
        with pytest.raises(SpanLost, match=match):
            await Place().spans(**changes).ask("gpu", "gpu:1", CALL)

    run(work())


def test_who_is_revoked_is_refused_at_its_next_call() -> None:
    async def work() -> None:
        place = Place()
        spans = place.spans()
        await spans.ask("gpu", "gpu:1", CALL)
        place.revoked.add("pi")
        with pytest.raises(SpanLost, match="taken out"):
            await spans.ask("gpu", "gpu:1", CALL)
        assert place.refused == {"pi": {"revoked": 1}}

    run(work())


WRONG: dict[str, tuple[Any, str]] = {
    "of another run": (replace(CALL, run="other"), "wrong-run"),
    "in another's name": (replace(CALL, device="other"), "wrong-device"),
    "for other blocks": (replace(CALL, end=3), "wrong-blocks"),
    "of another width": (replace(CALL, grad_BTD=torch.ones(1, 4, 16)), "wrong-shape"),
    "no call": (Update("run", 0, "pi", {}, 0, 1, 1, 0.0, 0.0), "wrong-kind"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_refused_and_counted(what: str) -> None:
    message, reason = WRONG[what]

    async def work() -> None:
        place = Place()
        with pytest.raises(SpanLost, match="expected"):
            await place.spans().ask("gpu", "gpu:1", message)
        assert place.refused == {"pi": {reason: 1}}

    run(work())


def test_an_answer_that_cannot_be_packed_is_refused() -> None:
    """Adapters travel as they are: a number that is none in one of them spoils what comes out."""

    async def work() -> None:
        place, base = Place("int8"), tiny_base()
        tensors = {name: torch.full(base.shapes[name], torch.nan) for name in base.device_names(2)}
        with pytest.raises(SpanLost, match="expected finite numbers"):
            await place.spans().ask("gpu", "gpu:1", replace(CALL, tensors=tensors))
        assert place.refused == {"pi": {"not-finite": 1}}

    run(work())


@pytest.mark.parametrize(
    ("hello", "reason"),
    [(Hello("other", "1"), "wrong-name"), (Ask("echo"), "wrong-kind")],
    ids=["another name", "no hello"],
)
def test_a_connection_begins_with_a_hello_in_its_own_name(hello: Any, reason: str) -> None:
    async def work() -> None:
        place = Place()
        carrier = await place.dial()
        await say(carrier, hello)
        with pytest.raises(Exception, match="expected"):
            await hear(carrier)
        await asyncio.gather(*place.attending)
        assert place.refused == {"pi": {reason: 1}}

    run(work())


def test_frames_that_are_too_long_are_not_taken() -> None:
    async def work() -> None:
        place = Place()
        carrier = await place.dial()
        await say(carrier, Hello("pi", "1"))
        await hear(carrier)
        await carrier.send(pack(Packet(Kind.DATA, total=2**40, body=b"x" * 64), check=True))
        await asyncio.gather(*place.attending)
        assert place.refused == {"pi": {"malformed": 1}}

    run(work())
