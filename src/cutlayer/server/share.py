"""A share of a round: what a server that holds it in another's place must know, and what comes of it.

    head                                       worker
    share_of(server, plan)        ->           take_share(server, share)
                                               the round, with the devices of `plan`
    take_yield(server, done)      <-           yield_of(server, contributions)

All that outlives a round goes back and forth: a worker that dies takes nothing with it. Tensors travel as copies in the
CPU's memory, to processes that may compute elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from cutlayer.policies.aggregate import Contribution
from cutlayer.server.server import Server, Tally
from cutlayer.types import Adapter, RoundPlan

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Share:
    """What a worker must know to hold its part of a round.

    Attributes:
      plan: the round's, of the worker's devices.
      adapter: the full adapter, which is broadcast.
      folds: all that was added to the base's weights.
      folds_held, counted, personal, moments: see `Server`; of the worker's devices.
    """

    plan: RoundPlan
    adapter: Adapter
    folds: Adapter
    folds_held: Mapping[str, int]
    counted: Mapping[str, int]
    personal: Mapping[str, Adapter]
    moments: Mapping[str, Adapter]


@dataclass(frozen=True, slots=True)
class Yield:
    """What came of a share.

    Attributes:
      contributions: by device, of those who did not leave.
      tallies: by device, what was seen of it.
      folds_held, counted, personal, moments: as in `Share`.
    """

    contributions: Mapping[str, Contribution]
    tallies: Mapping[str, Tally]
    folds_held: Mapping[str, int]
    counted: Mapping[str, int]
    personal: Mapping[str, Adapter]
    moments: Mapping[str, Adapter]


def share_of(server: Server, plan: RoundPlan) -> Share:
    """A round's part, of the devices in `plan`, from how `server` is before the round."""
    names = _names(plan)
    return Share(
        plan,
        _copied(server.adapter),
        _copied(server.folds),
        _of(names, server.folds_held),
        _of(names, server.counted),
        {name: _copied(own) for name, own in _of(names, server.personal).items()},
        {name: _copied(own) for name, own in _of(names, server.moments()).items()},
    )


def take_share(server: Server, share: Share) -> None:
    """Makes `server` what the one is that gave the share, as far as its devices need it."""
    device = server.base.device
    server.adapter = _moved(share.adapter, device)
    server.load_folds(_moved(share.folds, device), share.folds_held)
    server.counted = dict(share.counted)
    server.personal = {name: _moved(own, device) for name, own in share.personal.items()}
    server.load_moments(share.moments)


def yield_of(server: Server, contributions: Sequence[Contribution]) -> Yield:
    """What came of the share that `server` has just held, where each device has a server adapter of its own."""
    names = _names(server.open.plan)
    stayed = sorted(names - server.open.gone)
    return Yield(
        {
            name: replace(
                one,
                adapter=_copied(one.adapter),
                where={key: (axis, _copy(where)) for key, (axis, where) in one.where.items()},
                importance=_copied(one.importance),
            )
            for name, one in zip(stayed, contributions, strict=True)
        },
        server.take_tallies(),
        dict(server.folds_held),
        dict(server.counted),
        {name: _copied(own) for name, own in server.personal.items()},
        {name: _copied(own) for name, own in _of(names, server.moments()).items()},
    )


def take_yield(server: Server, done: Yield) -> dict[str, Contribution]:
    """Takes in what came of a share, as if `server` had held that part of the round; the contributions by device."""
    device = server.base.device
    server.put_tallies(done.tallies)
    server.folds_held |= done.folds_held
    server.counted |= done.counted
    server.personal |= {name: _moved(own, device) for name, own in done.personal.items()}
    server.load_moments(done.moments)
    return {name: replace(one, adapter=_moved(one.adapter, device)) for name, one in done.contributions.items()}


def _names(plan: RoundPlan) -> set[str]:
    return {device.device for device in plan.devices}


def _of(names: set[str], by_device: Mapping[str, T]) -> dict[str, T]:
    return {name: value for name, value in by_device.items() if name in names}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _copied(adapter: Mapping[str, Tensor]) -> Adapter:
    return {name: _copy(value) for name, value in adapter.items()}


def _moved(adapter: Mapping[str, Tensor], device: torch.device) -> Adapter:
    return {name: value.to(device) for name, value in adapter.items()}
