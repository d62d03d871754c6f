"""A device may have the pieces of the parts that it was given to hold, and of no others."""

from __future__ import annotations

import asyncio

import pytest

from cutlayer.errors import Refused
from cutlayer.gate.entitlement import Entitlement, Part
from cutlayer.types import DevicePlan
from cutlayer.wire.messages import Assignment, Finish, Judge, Message


class Below:
    """A link that anything can be said to."""

    bytes_sent = bytes_received = 0

    async def send(self, message: Message) -> None:
        pass

    async def receive(self) -> Message:
        return Finish("run", 1, "over")


def refused(entitlement: Entitlement, part: Part, *pieces: str, device: str = "pi") -> None:
    with pytest.raises(Refused, match="pieces of the parts") as error:
        entitlement.check_part(device, *part)
    assert error.value.reason == "not-planned"
    for piece in pieces:
        with pytest.raises(Refused, match=piece):
            entitlement.check_piece(device, piece)


def given(entitlement: Entitlement, part: Part, *pieces: str) -> None:
    entitlement.check_part("pi", *part)
    for piece in pieces:
        entitlement.check_piece("pi", piece)


def test_what_each_plan_adds() -> None:
    entitlement = Entitlement(lambda plan: (plan.cut, plan.top))
    link = entitlement.granting(Below(), "pi")
    given(entitlement, (0, None), "config.json", "tokenizer.json", "embeddings.safetensors")
    refused(entitlement, (1, None), "block-0.safetensors", "head.safetensors")
    refused(entitlement, (0, 3))

    asyncio.run(link.send(Assignment("run", 0, "pi", DevicePlan("pi", cut=2), (0.1,), {})))
    given(entitlement, (2, None), "block-0.safetensors", "block-1.safetensors")
    refused(entitlement, (3, None), "block-2.safetensors", "head.safetensors")
    refused(entitlement, (1, 3))
    refused(entitlement, (2, None), "block-0.safetensors", device="another")

    asyncio.run(link.send(Judge("run", 1, "pi", DevicePlan("pi", cut=1, top=3), {}, 0)))
    given(entitlement, (1, 3), "block-3.safetensors", "head.safetensors", "block-1.safetensors")
    refused(entitlement, (2, 3), "block-2.safetensors")
    asyncio.run(link.send(Finish("run", 1, "over")))
    refused(entitlement, (3, None))


def test_what_is_read_decides_where_a_shape_has_others_run_blocks() -> None:
    entitlement = Entitlement(lambda plan: (1, plan.top))
    link = entitlement.granting(Below(), "pi")
    asyncio.run(link.send(Assignment("run", 0, "pi", DevicePlan("pi", cut=4, top=4), (0.1,), {})))
    given(entitlement, (1, 4), "block-0.safetensors", "head.safetensors")
    refused(entitlement, (2, None), "block-1.safetensors")
