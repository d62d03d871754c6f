"""The pooled server step: all devices' samples of a local step in one pool, shuffled, trained on in mixed mini-batches.

Federated Split Learning with Only Positive Labels for resource-constrained IoT environment
    Praveen Joshi, Chandra Thapa, Mohammed Hasanuzzaman, Ted Scully, Haithem Afli. 2023.
    https://arxiv.org/abs/2307.13266

    paper                                          here
    ------------------------------------------     ------------------------------------------
    the collector pools the activations of all     Arrivals.everybody(), Pool
    a random permutation                           mini_batches(num_samples, size, seed)
    the server on mini-batches of b                merged, train: one optimizer step for each
    gradients back in the order of the owners      Pool.put, Pool.answers

The paper's collector stands between devices and server, and it alone knows the permutation. Here both are in one
process, so nothing is hidden from whoever runs it; but what trains is handed samples without names, and no message
says where a sample was. The permutation is a function of seed, round, and local step: nothing outlives a step.

Mini-batches are as alike in size as they can be, at most b: no step is left to a few samples. Within one, samples keep
the order of the pool (devices by name), which a mean does not see: so a single mini-batch is the merged batch
(`merged.py`), and a pool of one device its own batch, bit for bit.

A mini-batch's loss L_m is the mean over what its samples weigh (1 each, target tokens for causal LM): sample i, of loss
l_i and weight w_i, has w_i / W_m of it. In the mean over its own device's batch it has w_i / W_k. So its row of L_m's
gradient goes back times W_m / W_k: the gradient of its device's own mean loss, each sample's at the server adapter as
its mini-batch found it. With one mini-batch that is the factor of `merged.dispatch`.

Every mini-batch of a local step has that step's learning rate: a place of the schedule lasts as many server steps as
there are mini-batches, as it lasts one step per device where devices are served in turn.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from cutlayer.errors import ConfigError
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.owners import Owner, one_for_all
from cutlayer.server.samples import one_by_one
from cutlayer.server.server import Server
from cutlayer.server.steps.apart import train_apart
from cutlayer.server.steps.merged import merge, span_of
from cutlayer.server.steps.step import Reply, ServerStep
from cutlayer.server.steps.train import answer, train
from cutlayer.state import Stateless
from cutlayer.types import Costs, RoundPlan
from cutlayer.wire.messages import Activations


def pooled(*, server_batch: int | None = None, seed: int = 0) -> ServerStep:
    """Waits for everybody's activations, trains the shared adapter on mini-batches mixed from them, and answers all.

    Args:
      server_batch: The most samples in a mini-batch; None for the largest batch that the plan gives a device.
      seed: Of the permutations.

    Raises:
      ConfigError: A mini-batch without a sample.

    Example:
      >>> from cutlayer import pooled
      >>> step = pooled(server_batch=16)
      >>> step.equal_cuts, step.together
      (True, True)
    """
    if server_batch is not None and server_batch < 1:
        raise ConfigError(
            f"method.server_batch: expected at least 1, or null, got {server_batch}. Change method.server_batch."
        )
    return _Pooled(server_batch, seed)


class _Pooled(Stateless):
    owner: Owner = staticmethod(one_for_all)

    equal_cuts = together = True
    cuts_batches = False

    def __init__(self, server_batch: int | None, seed: int) -> None:
        self._server_batch, self._seed = server_batch, seed

    async def __call__(self, server: Server, arrivals: Arrivals, reply: Reply) -> None:
        plan = server.ledger.plan
        while arrived := await arrivals.everybody():
            pool = Pool(arrived)
            mixed = mini_batches(len(pool), self._size(plan), (self._seed, plan.round, arrived[0].step))
            for number, drawn in enumerate(mixed):
                places = pool.without({*server.ledger.gone, *server.diverged}, drawn)
                if not places:
                    continue
                # each is the last part of its step, so that the adapter moves, and a part of a number of its own
                trained, came = await train_apart(
                    server, pool.samples(places), span_of(server, arrived), partial(_train, server, number)
                )
                if came is not None:
                    own = {sample.device for sample in trained}
                    pool.put([place for place in places if pool.owner(place) in own], *came)
            blamed = set(server.diverged)
            for device in {batch.device for batch in arrived} & blamed:
                arrivals.answer(device)
            for activations, loss, grad_BTD in pool.answers({*server.ledger.gone, *blamed}):
                await reply(answer(server, activations, loss, grad_BTD))

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """One model and one step on a mini-batch; the pool, and as much again for the gradients that wait in it."""
        num_samples = sum(device.batch_size for device in plan.devices)
        largest = math.ceil(num_samples / num_steps(num_samples, self._size(plan)))
        step = costs.server(plan.devices[0], largest, num_tokens)
        return step.memory_bytes + 2 * costs.activation_bytes(num_samples, num_tokens)

    def _size(self, plan: RoundPlan) -> int:
        return self._server_batch or max(device.batch_size for device in plan.devices)


async def _train(server: Server, number: int, samples: Sequence[Activations]) -> tuple[float, Tensor | None]:
    """A step on samples as one message of nobody's, padded to the longest of them."""
    return await train(
        server, replace(merge(samples), micro_batch=number, micro_batches=number + 1), server.ledger.plan.devices[0]
    )


def num_steps(num_samples: int, size: int) -> int:
    """Number of mini-batches of at most `size` samples."""
    return math.ceil(num_samples / size)


def mini_batches(num_samples: int, size: int, seed: tuple[int, ...]) -> list[list[int]]:
    """Every place of a pool in one mini-batch, drawn at random; within a mini-batch in ascending order.

    Args:
      num_samples: In the pool, at least 1.
      size: The most samples in a mini-batch.
      seed: Of the permutation.

    Example:
      >>> mini_batches(7, 3, seed=(0, 0, 0))
      [[2, 3, 4], [5, 6], [0, 1]]
    """
    permutation = np.random.default_rng(seed).permutation(num_samples)
    return [sorted(part.tolist()) for part in np.array_split(permutation, num_steps(num_samples, size))]


class Pool:
    """The samples of one local step, each at its place, and what has come back for each.

    Args:
      arrived: The devices' batches; places are counted through them in this order.
    """

    def __init__(self, arrived: Sequence[Activations]) -> None:
        self._arrived = arrived
        self._samples = [sample for batch in arrived for sample in one_by_one(batch)]
        self._weights = {batch.device: batch.weight for batch in arrived}
        self._losses = dict.fromkeys(self._weights, 0.0)
        self._rows: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._samples)

    def without(self, gone: Collection[str], places: Sequence[int]) -> list[int]:
        """The given places whose owners have not left."""
        return [place for place in places if self._samples[place].device not in gone]

    def owner(self, place: int) -> str:
        """The device whose sample is at a place."""
        return self._samples[place].device

    def samples(self, places: Sequence[int]) -> list[Activations]:
        """The samples at these places, each a batch of one."""
        return [self._samples[place] for place in places]

    def put(self, places: Sequence[int], loss: float, grad_BTD: Tensor | None) -> None:
        """Takes in what the mean loss of the samples at these places was, and its gradient by them."""
        samples = [self._samples[place] for place in places]
        total = sum(sample.weight for sample in samples)
        for device in dict.fromkeys(sample.device for sample in samples):
            own = sum(sample.weight for sample in samples if sample.device == device)
            self._losses[device] += loss * (own / self._weights[device])
        if grad_BTD is None:
            return
        for place, sample, row_BTD in zip(places, samples, grad_BTD.split(1), strict=True):
            num_tokens = sample.h_BTD.shape[1]
            self._rows[place] = row_BTD[:, :num_tokens] * (total / self._weights[sample.device])

    def answers(self, gone: Collection[str]) -> Iterator[tuple[Activations, float, Tensor | None]]:
        """Each device's batch, its loss, and the loss's gradient by it in the batch's order; of those who are here.

        The loss is the mean, over what the device's samples weigh, of the losses of the mini-batches that they were
        in: weighed by device it sums up to the mean of all. The gradient is None where nothing below the cut trains.
        """
        first = 0
        for batch in self._arrived:
            places = range(first, first := first + len(batch.h_BTD))
            if batch.device in gone:
                continue
            rows = [self._rows[place] for place in places if self._rows]
            yield batch, self._losses[batch.device], torch.cat(rows) if rows else None
