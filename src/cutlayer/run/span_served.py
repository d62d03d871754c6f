"""A real machine that runs blocks of the model for the devices of a run: `cutlayer serve RUN.yaml --span 4:8`."""

from __future__ import annotations

import asyncio
from typing import Protocol

import torch

from cutlayer.errors import ConfigError
from cutlayer.fleet.machine import Machines, RealMachine
from cutlayer.gate.door import Desk
from cutlayer.gate.span_desk import SpanDesk
from cutlayer.model.fingerprint import fingerprint
from cutlayer.run.inputs import ServerInputs
from cutlayer.server.span import SpanServer
from cutlayer.types import Event
from cutlayer.wire.codecs import packed_form
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import SpanCall

HEADER_BYTES = 2**12
"""Bytes for names and numbers that are longer than those with which the longest call is measured."""


class Door(Protocol):
    """The door through which devices come in: that of `served.Door`, for any desk."""

    async def open(self, hub: Desk) -> None:
        """Lets devices in from now on."""

    async def close(self) -> None:
        """Lets nobody in any more, and ends what is left."""

    def standing(self, device: str) -> None:
        """Whether a device may still be here. Raises Refused."""


async def serve_span(
    inputs: ServerInputs, blocks: tuple[int, int], door: Door, *, machines: Machines = RealMachine
) -> None:
    """Runs blocks for whoever comes through the door, until it is cancelled.

    Args:
      inputs: What the run is made of: the same run file as the server's.
      blocks: Those that it holds, [first, end).
      door: How devices come in.
      machines: Makes what it computes on.

    Raises:
      ConfigError: The model has no such blocks, or the address cannot be had.
    """
    first, end = blocks
    if end > inputs.base.num_blocks:
        raise ConfigError(
            f"--span: expected blocks up to {inputs.base.num_blocks}, the model's, got {first}:{end}. Correct it."
        )
    name = f"span-{first}-{end}"
    machine = machines(name, _ignore)
    server = SpanServer(name, inputs.base, machine, inputs.costs, blocks, inputs.config.data.max_length)
    try:
        await machine.aside(lambda: _load(inputs, blocks))
        desk = SpanDesk(
            server,
            inputs.run_id,
            fingerprint(inputs.base.files).text,
            inputs.compressed,
            longest_call(inputs, blocks),
            door.standing,
        )
        await door.open(desk)
        try:
            await asyncio.Event().wait()
        finally:
            await door.close()
    finally:
        machine.close()


def longest_call(inputs: ServerInputs, blocks: tuple[int, int]) -> int:
    """The longest frame that a device of the run may send: its batch through all of the blocks, back.

    Args:
      inputs: What the run is made of.
      blocks: [first, end).
    """
    base, (first, end) = inputs.base, blocks
    shape_BT = (inputs.config.train.batch_size, inputs.config.data.max_length)
    shape_BTD = (*shape_BT, inputs.costs.hidden_size)
    below, shapes = set(base.device_names(first)), base.shapes_of()
    tensors = {name: torch.empty(shapes[name], device="meta") for name in base.device_names(end) if name not in below}
    hidden, back = (
        packed_form(codec, shape_BTD, base.dtype)
        for codec in (inputs.compression.activations, inputs.compression.gradients)
    )
    mask_BT = torch.empty(shape_BT, dtype=torch.bool, device="meta")
    return HEADER_BYTES + frame_bytes(
        SpanCall(inputs.run_id, 0, 0, "", first, end, hidden, mask_BT, back, True, tensors)
    )


def _load(inputs: ServerInputs, blocks: tuple[int, int]) -> None:
    """Reads the weights, and counts what the first call would otherwise wait for."""
    inputs.base.middle_part(*blocks)
    _ = inputs.costs.hidden_size


def _ignore(_event: Event) -> None:
    """Records nothing: devices say how long they waited."""
