"""A share of a round: what a server that holds it in another's place must know, and what comes of it.

    head                                       worker
    share_of(server, plan)        ->           take_share(server, share)
                                               the round, with the devices of `plan`
    take_yield(server, done)      <-           yield_of(server, contributions)

All that outlives a round goes back and forth, as the server's own state restricted to the worker's devices: a worker
that dies takes nothing with it. Tensors travel as copies in the CPU's memory, to processes that may compute elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cutlayer.policies.aggregate import Contribution
from cutlayer.server.ledger import Tally
from cutlayer.server.server import Server
from cutlayer.state import State
from cutlayer.types import Adapter, RoundPlan


@dataclass(frozen=True, slots=True)
class Share:
    """The plan and the state that a worker needs to hold its part of a round.

    Attributes:
      plan: the round's, of the worker's devices.
      state: the server's, as far as these devices need it.
    """

    plan: RoundPlan
    state: State


@dataclass(frozen=True, slots=True)
class Yield:
    """The outcome of a share.

    Attributes:
      contributions: by device, of those who did not leave.
      tallies: by device, what was seen of it; of what it sent at the end, all but the adapter.
      state: the worker's, of its devices.
    """

    contributions: Mapping[str, Contribution]
    tallies: Mapping[str, Tally]
    state: State


def share_of(server: Server, plan: RoundPlan) -> Share:
    """A round's part, of the devices in `plan`, from how `server` is before the round."""
    return Share(plan, server.state(_names(plan)).sent())


def take_share(server: Server, share: Share) -> None:
    """Makes `server` what the one is that gave the share, as far as its devices need it."""
    server.load(share.state)


def yield_of(server: Server, contributions: Sequence[Contribution]) -> Yield:
    """The outcome of the share that `server` has just held, where each device has a server adapter of its own."""
    return Yield(
        {
            one.device: replace(
                one,
                adapter=_copied(one.adapter),
                where={key: (axis, _copy(where)) for key, (axis, where) in one.where.items()},
                facts=_copied(one.facts),
            )
            for one in contributions
        },
        {name: _without_adapter(tally) for name, tally in server.ledger.take_tallies().items()},
        server.state(_names(server.ledger.plan)).sent(),
    )


def take_yield(server: Server, done: Yield) -> dict[str, Contribution]:
    """Takes in what came of a share, as if `server` had held that part of the round; the contributions by device."""
    device = server.base.device
    server.ledger.put_tallies(done.tallies)
    server.load(done.state)
    return {name: replace(one, adapter=_moved(one.adapter, device)) for name, one in done.contributions.items()}


def _without_adapter(tally: Tally) -> Tally:
    """The tally; the adapter is in the contribution."""
    update = tally.update
    return tally if update is None else replace(tally, update=replace(update, adapter={}, facts=_copied(update.facts)))


def _names(plan: RoundPlan) -> set[str]:
    return {device.device for device in plan.devices}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _copied(adapter: Mapping[str, Tensor]) -> Adapter:
    return {name: _copy(value) for name, value in adapter.items()}


def _moved(adapter: Mapping[str, Tensor], device: torch.device) -> Adapter:
    return {name: value.to(device) for name, value in adapter.items()}
