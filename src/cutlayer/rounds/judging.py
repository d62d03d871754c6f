"""Judging: between two rounds, devices evaluate the adapter on rows that they hold out of their own.

    device                              wire                    server
                          <- Judge(plan, the whole adapter) <-
    who holds the whole model judges alone; else, batch after batch
                          -> HeldOut(h, mask, labels) ->        the blocks above the cut: losses, hits
                          or, of a device that has the head,
                          -> HeldOut(h, mask) ->                the blocks up to its tail
                          <- Hidden(h) <-                       losses and hits on the device
                          -> Judged(sums) ->                    added up

The sums of all devices are the metrics of `server/evaluate.py` on all their rows. Nothing trains: neither end keeps
anything of it. It belongs, on the wire, to the round that comes next, so that what is lost on the way is said again as
everything of that round is. The device's end is `device/judging.py`, what it may send `gate/judging.py`.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import torch

from cutlayer.errors import DeviceGone
from cutlayer.model.dropout import still
from cutlayer.model.sums import Sums
from cutlayer.server.server import Server
from cutlayer.types import DevicePlan, Kept
from cutlayer.wire.link import Link, unexpected
from cutlayer.wire.messages import HeldOut, Hidden, Judged


async def judging(
    server: Server,
    links: Mapping[str, Link],
    devices: Sequence[DevicePlan],
    round: int,
    *,
    classes: int,
    kept: Kept | None = None,
) -> dict[str, Sums]:
    """Has devices judge: what each came to, by name, of those who did not leave meanwhile.

    Args:
      server: Which has the adapter.
      links: Its ends, by device.
      devices: How each is cut; how many samples a batch is. No clauses.
      round: That comes next.
      classes: See `Judge`.
      kept: Of a pruned model, what is left.
    """
    turns = {device.device: _Turn(server, links[device.device], device, round, classes, kept) for device in devices}
    async with asyncio.TaskGroup() as tasks:
        held = {name: tasks.create_task(turn.hold()) for name, turn in turns.items()}
    return {name: sums for name, task in sorted(held.items()) if (sums := task.result()) is not None}


class _Turn:
    """One device's judging, as the server sees it."""

    def __init__(
        self, server: Server, link: Link, device: DevicePlan, round: int, classes: int, kept: Kept | None
    ) -> None:
        self._server, self._link, self._device, self._round = server, link, device, round
        self._classes, self._kept = classes, kept
        self._sums = Sums(classes)
        self._view = server.adapters.view(device.device)
        self._blocks = server.base.blocks_in(self._view)

    async def hold(self) -> Sums | None:
        """Has the device judge, and returns its sums; None where it has left.

        Raises:
          WireError: A message has no place here.
        """
        try:
            await self._link.send(self._server.judge(self._device, self._round, classes=self._classes, kept=self._kept))
            while not isinstance(message := await self._link.receive(), Judged):
                if not isinstance(message, HeldOut):
                    raise unexpected(self._device.device, "HeldOut or Judged", message)
                if self._device.head:
                    await self._through(message)
                else:
                    await self._above(message)
        except DeviceGone:
            return None
        if self._device.head:
            self._sums.note(message.samples, message.weight, message.loss)
            self._sums.counts_3C += message.counts_3C
        return self._sums

    async def _above(self, batch: HeldOut) -> None:
        """Judges a batch by the blocks above the cut."""
        base = self._server.base

        def work() -> None:
            part = base.server_part(self._device.cut, self._blocks)
            part.use(self._view)
            given, labels = (batch.h_BTD.to(base.device), batch.mask_BT.to(base.device)), batch.targets.long()
            self._sums.judge(part.model, lambda: part.logits(*given), labels.to(base.device), batch.weight)

        await self._server.machine.run(
            work,
            like=lambda: None,
            what="forward",
            flops=self._flops(batch),
            round=self._round,
            step=None,
            peer=batch.device,
        )

    async def _through(self, batch: HeldOut) -> None:
        """Runs a batch up to where the device's tail begins, and sends it back."""
        base, top = self._server.base, self._device.top
        assert top is not None, "a device with the head has a tail"

        def work() -> torch.Tensor:
            part = base.middle_part(self._device.cut, top, self._blocks)
            part.use(self._view)
            h_BTD = batch.h_BTD.to(base.device)
            with still(part.model):
                return part.forward(h_BTD, batch.mask_BT.to(base.device))

        h_BTD = await self._server.machine.run(
            work,
            like=lambda: torch.empty_like(batch.h_BTD),
            what="forward",
            flops=self._flops(batch),
            round=self._round,
            step=None,
            peer=batch.device,
        )
        await self._link.send(Hidden(self._server.run, self._round, batch.number, batch.device, h_BTD))

    def _flops(self, batch: HeldOut) -> float:
        return self._server.costs.server(self._device, *batch.mask_BT.shape).forward_flops


def judged_plan(device: DevicePlan, reads: tuple[int, int | None], ranks: tuple[int, ...]) -> DevicePlan:
    """The plan by which a device judges: with what it has read of the model, and at most as many samples at a time.

    Args:
      device: Its plan.
      reads: Of the shape of its rounds (`Shape.reads`): blocks at the bottom, and the first of the tail.
      ranks: Of the whole adapter, by block.
    """
    cut, top = reads
    return DevicePlan(device.device, cut=cut, top=top, ranks=ranks, batch_size=device.micro_batch_size)
