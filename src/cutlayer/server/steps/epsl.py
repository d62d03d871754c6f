"""EPSL's server step: of a share phi of the samples, the gradients of all devices are averaged before they go back.

Efficient Parallel Split Learning over Resource-constrained Wireless Edge Networks
    Zheng Lin, Guangyu Zhu, Yiqin Deng, Xianhao Chen, Yue Gao, Kaibin Huang, Yuguang Fang. IEEE TMC 2024.
    https://arxiv.org/abs/2303.15991

C devices have sent b_i samples each. The m = ceil(phi min b_i) first of every device are shared: the j-th of all
devices stand together, and of their gradients z_ij at the last layer the server goes on with one, sum_i lambda_i z_ij,
which counts for C samples. The others go on alone, so m + sum (b_i - m) gradients pass back through the model and not
sum b_i. At the cut the m go to everybody.

The paper leaves open (what could be read of it) at which activations the mean gradient passes back. Three answers, all
of them ours:

    mean     at the mean of the C activations at the cut
    sample   at those of one of the C, drawn anew for every j
    wire     nowhere: the backward pass is exact, and gradients are averaged at the cut, for the way down alone

The others' loss is one mean, followed back as `merged` does; with nothing shared, this step is that one.

Ours as well: lambda_i is what a device's batch weighs among those of the step (samples, or target tokens). The j-th of
all devices have one label where that can be; where the labels are texts, those of like length stand together. Texts of
unequal length are laid over each other at their first tokens in an encoder and at their last ones in a decoder, whose
head looks there. A mean of activations is over the devices that have a token at a place; in a mean of gradients, a
device without one counts as zero. In `sample`, gradients of places where the one drawn has no token are lost.

Links are a device's own, so a device gets the m as well as its own b_i - m, and its frames are as long as ever:
nothing is saved there. Where the medium can broadcast, the server sends the m once. The bytes that it would not have
to send again are noted as the fact `repeated_bytes` of the devices that get them, and `server_backward_flops` is a
device's even part of the backward pass. With unequal batches (W the weight of all, w_i of one) what is broadcast would
be scaled by W / (C w_i) at device i; our frames hold the scaled ones.

Shapes: B batch, m samples of it that are shared, T tokens, D hidden size, K classes, or tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from cutlayer.errors import DivergedError
from cutlayer.model.loss import token_loss
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.engine import Engine, Span
from cutlayer.server.owners import SHARED, Owner, one_for_all
from cutlayer.server.samples import weight_of
from cutlayer.server.server import Server
from cutlayer.server.steps.apart import train_apart
from cutlayer.server.steps.merged import dispatch, merge, span_of
from cutlayer.server.steps.step import Reply, ServerStep
from cutlayer.server.steps.train import answer
from cutlayer.state import Stateless
from cutlayer.types import Costs, RoundPlan
from cutlayer.wire.messages import Activations

VARIANTS = ("auto", "mean", "sample", "wire")
"""Answers to where the mean gradient passes back; auto is mean where labels are classes, and wire where they are
texts, whose gradients do not align."""


def epsl(phi: float, *, variant: str = "auto", pairing: bool = True, seed: int = 0) -> ServerStep:
    """Waits for everybody's activations and trains the shared adapter on them, with a share of gradients averaged.

    Args:
      phi: The share of the samples whose gradients are averaged over devices, from 0 to 1.
      variant: One of `VARIANTS`.
      pairing: Whether those that are averaged are chosen by their labels; False takes the first ones as they came.
      seed: Of who stands with whom among equals, and of what `sample` draws.

    Example:
      >>> from cutlayer import epsl
      >>> step = epsl(0.5)
      >>> step.equal_cuts, step.together
      (True, True)
    """
    return _Epsl(phi, variant, seed, pairing=pairing)


class _Epsl(Stateless):
    owner: Owner = staticmethod(one_for_all)

    equal_cuts = together = True
    cuts_batches = False

    def __init__(self, phi: float, variant: str, seed: int, *, pairing: bool) -> None:
        assert variant in VARIANTS, "the method checks its options"
        self._phi, self._variant, self._seed, self._pairing = phi, variant, seed, pairing

    async def __call__(self, server: Server, arrivals: Arrivals, reply: Reply) -> None:
        while arrived := await arrivals.everybody():
            trained, came = await train_apart(
                server, arrived, span_of(server, arrived), lambda parts: self._train(server, parts)
            )
            for left in {part.device for part in arrived} - {part.device for part in trained}:
                arrivals.answer(left)
            if came is None:
                continue
            loss, rows = came
            for activations, rows_BTD in zip(trained, rows, strict=True):
                await reply(answer(server, activations, loss, rows_BTD))

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """One model, all activations, and the larger of the steps that are taken one after the other.

        These are on the shared samples of one device, and on everybody's others. An exact backward pass (`wire`, and
        `auto`, of which the plan does not know the task) is one step on all.
        """
        sizes = [device.batch_size for device in plan.devices]
        shared = 0 if self._variant in ("auto", "wire") else num_shared(self._phi, sizes)
        steps = (shared, sum(sizes) - shared * len(sizes))
        most = max(costs.server(plan.devices[0], size, num_tokens).memory_bytes for size in steps)
        return most + costs.activation_bytes(sum(sizes), num_tokens)

    async def _train(self, server: Server, arrived: Sequence[Activations]) -> tuple[float, list[Tensor | None]]:
        """The loss of the whole batch; by device, what it gets. The shared adapter has moved."""
        first = arrived[0]
        plan, engine = server.ledger.device(first.device), server.engine
        span = engine.span(plan.cut, plan.blocks)
        rng = np.random.default_rng((self._seed, first.round, first.step))
        chosen = self._choose(arrived, rng)
        num_samples, longest = sum(len(part.h_BTD) for part in arrived), max(part.h_BTD.shape[1] for part in arrived)
        exact = not chosen[0] or self._wire_only(server)
        shared = len(chosen[0])
        passes = [(num_samples, longest)] if exact else [(shared, longest), *_others_shape(arrived, shared)]

        def compute() -> tuple[float, list[Tensor | None]]:
            step = _Step(engine, span, arrived, chosen, ends=server.base.family.poolings[0] == "last")
            held = server.adapters.trainable(SHARED).parameters
            try:
                loss, rows = step.exact() if exact else step.averaged(rng if self._variant == "sample" else None)
                engine.check_finite(loss, SHARED, first.round, first.step)
                for rows_BTD in rows:
                    engine.check_gradients(held, rows_BTD, SHARED, first.round, first.step)
            except DivergedError:
                for parameter in held.values():
                    parameter.grad = None
                raise
            engine.step(SHARED, server.learning_rate(first.round, first.step))
            return loss, rows

        def like() -> tuple[float, list[Tensor | None]]:
            return 0.0, [torch.empty_like(part.h_BTD) if span.trains_below else None for part in arrived]

        costs = [server.costs.server(plan, *shape) for shape in passes]
        forward_flops, backward_flops = sum(cost.forward_flops for cost in costs), sum(c.backward_flops for c in costs)
        if not exact:
            sent = [server.costs.server(plan, shared, part.h_BTD.shape[1]) for part in arrived]
            forward_flops += sum(cost.forward_flops for cost in sent)
        result = await server.machine.run(
            compute,
            like=like,
            what="step",
            flops=forward_flops + backward_flops,
            round=first.round,
            step=first.step,
        )
        self._note(server, arrived, shared, backward_flops / len(arrived))
        return result

    def _wire_only(self, server: Server) -> bool:
        return self._variant == "wire" or (self._variant == "auto" and server.base.settings.task == "causal-lm")

    def _choose(self, arrived: Sequence[Activations], rng: np.random.Generator) -> list[list[int]]:
        """Chooses the samples of each device that are shared, in their order: the j-th of all stand together."""
        sizes = [len(part.h_BTD) for part in arrived]
        shared = num_shared(self._phi, sizes) if len(arrived) > 1 else 0  # with oneself there is nothing to share
        if not shared or not self._pairing:
            return [list(range(shared)) for _ in arrived]
        if arrived[0].targets.dim() == 1:
            return pair_labels([part.targets.tolist() for part in arrived], shared, rng)
        return pair_lengths([part.mask_BT.sum(1).tolist() for part in arrived], shared, rng)

    def _note(self, server: Server, arrived: Sequence[Activations], shared: int, backward_flops: float) -> None:
        """Notes bytes that a broadcast need not repeat (packed shared rows but the longest), and backward FLOPs."""
        sent = []
        for part in arrived:
            device = server.ledger.device(part.device)
            sent.append(server.forecast.crossing_bytes(device, shared, part.h_BTD.shape[1])[1] if shared else 0)
        longest = sent.index(max(sent))
        for index, part in enumerate(arrived):
            repeated = 0 if index == longest else sent[index]
            server.ledger.note(part.device, repeated_bytes=repeated, server_backward_flops=backward_flops)


# ------------------------------------------------------------------ who stands with whom


def num_shared(phi: float, sizes: Sequence[int]) -> int:
    """Number of samples of each device that are shared: m = ceil(phi min b_i).

    Example:
      >>> num_shared(0.25, [16, 9]), num_shared(0.7, [10]), num_shared(0.0, [4])
      (3, 7, 0)
    """
    return math.ceil(phi * min(sizes) - 1e-9)


def pair_labels(labels: Sequence[Sequence[int]], num: int, rng: np.random.Generator) -> list[list[int]]:
    """Chooses `num` samples of each device: the j-th have one label on as many as can be, best agreed ones first.

    Args:
      labels: By device, its samples' classes.
      num: At most the samples of the smallest batch.
      rng: Decides between equals.

    Example:
      >>> pairs = pair_labels([[0, 1, 2, 2], [2, 1, 1]], 2, np.random.default_rng(0))
      >>> sorted(([0, 1, 2, 2][i], [2, 1, 1][j]) for i, j in zip(*pairs, strict=True))
      [(1, 1), (2, 2)]
    """
    classes = sorted({label for own in labels for label in own})
    shuffled = [rng.permutation(len(own)).tolist() for own in labels]
    left: list[dict[int, list[int]]] = [
        {label: [index for index in order if own[index] == label] for label in classes}
        for own, order in zip(labels, shuffled, strict=True)
    ]
    chosen: list[list[int]] = [[] for _ in labels]
    for _ in range(num):
        holders = {label: [len(samples[label]) for samples in left if samples[label]] for label in classes}
        most = max(len(counts) for counts in holders.values())
        best = [label for label in classes if len(holders[label]) == most]
        weights = np.array([min(holders[label]) for label in best], dtype=float)  # as if a matching row were drawn
        label = best[int(rng.choice(len(best), p=weights / weights.sum()))]
        for samples, mine in zip(left, chosen, strict=True):
            most_left = max(samples.values(), key=len)
            mine.append((samples[label] or most_left).pop())
    return chosen


def pair_lengths(lengths: Sequence[Sequence[int]], num: int, rng: np.random.Generator) -> list[list[int]]:
    """Chooses `num` samples of each device: the j-th are equally far down a list of the device's texts by length.

    Args:
      lengths: By device, the tokens of its samples.
      num: At most the samples of the smallest batch.
      rng: Decides between texts of one length, and which places of the list are taken.
    """
    places = rng.permutation(min(len(own) for own in lengths))[:num]
    shuffled = [torch.from_numpy(rng.permutation(len(own))) for own in lengths]
    by_length = [
        order[torch.tensor(own)[order].argsort(descending=True, stable=True)]
        for own, order in zip(lengths, shuffled, strict=True)
    ]
    return [order[torch.from_numpy(places)].tolist() for order in by_length]


# ------------------------------------------------------------------ a step of the server


def _others_shape(arrived: Sequence[Activations], shared: int) -> list[tuple[int, int]]:
    """Samples and tokens of the batch of those that are not shared; nothing where all are."""
    others = [part.h_BTD.shape for part in arrived if len(part.h_BTD) > shared]
    return [(sum(shape[0] - shared for shape in others), max(shape[1] for shape in others))] if others else []


@dataclass(frozen=True, slots=True)
class _Place:
    """The places of a device's texts on the common ones, token by token.

    Attributes:
      first_m: the common token at which each text begins.
      length_m: how many tokens each has.
    """

    first_m: Tensor
    length_m: Tensor

    def put(self, own_mT: Tensor, num_tokens: int) -> Tensor:
        """Puts texts in their places: (m, T, ...) to (m, num_tokens, ...), zero where there is no token."""
        index_mT = torch.arange(num_tokens, device=own_mT.device) - self.first_m[:, None]
        return _gathered(own_mT, index_mT, (index_mT >= 0) & (index_mT < self.length_m[:, None]))

    def take(self, common_mT: Tensor, num_tokens: int) -> Tensor:
        """Takes texts from their places: (m, T, ...) to (m, num_tokens, ...), zero where there is no token."""
        index_mT = torch.arange(num_tokens, device=common_mT.device).expand(len(common_mT), -1)
        return _gathered(common_mT, index_mT + self.first_m[:, None], index_mT < self.length_m[:, None])


def _gathered(values_mT: Tensor, index_mT: Tensor, there_mT: Tensor) -> Tensor:
    row_m1 = torch.arange(len(values_mT), device=values_mT.device)[:, None]
    found_mT = values_mT[row_m1, index_mT.clamp(0, values_mT.shape[1] - 1)]
    return found_mT.masked_fill(~there_mT.view(*there_mT.shape, *[1] * (found_mT.dim() - 2)), 0)


def _places(shared: Sequence[Activations], *, ends: bool) -> list[_Place]:
    """The places of each device's shared texts; at `ends`, each ends with the longest of those that it stands with."""
    lengths = [part.mask_BT.sum(1).to(part.h_BTD.device) for part in shared]
    longest_m = torch.stack(lengths).amax(0)
    return [_Place(longest_m - own if ends else torch.zeros_like(own), own) for own in lengths]


def _rows(arrived: Activations, rows: Tensor, micro_batch: int = 0) -> Activations:
    """Some samples of a batch as a batch, with dropout that is drawn for them alone where `micro_batch` is not 0."""
    labels = arrived.targets[rows]
    return replace(
        arrived,
        h_BTD=arrived.h_BTD[rows.to(arrived.h_BTD.device)],
        mask_BT=arrived.mask_BT[rows],
        labels=labels,
        weight=sum(weight_of(label) for label in labels),
        micro_batch=micro_batch,
    )


class _Step:
    """The arithmetic of one step. Gradients are those of the mean loss over all that arrived, but for what is returned.

    Args:
      engine: Computes.
      span: All that is above the cut.
      arrived: What everybody sent.
      chosen: By device, which of its samples are shared.
      ends: Whether texts are laid over each other at their ends.
    """

    def __init__(
        self, engine: Engine, span: Span, arrived: Sequence[Activations], chosen: Sequence[Sequence[int]], *, ends: bool
    ) -> None:
        self._engine, self._span, self._arrived = engine, span, arrived
        self._weight = sum(part.weight for part in arrived)
        self._lambdas = [part.weight / self._weight for part in arrived]
        self._longest = max(part.h_BTD.shape[1] for part in arrived)
        self._chosen = [torch.tensor(rows, dtype=torch.long) for rows in chosen]
        self._rest = [
            torch.tensor(sorted({*range(len(part.h_BTD))} - {*rows}), dtype=torch.long)
            for part, rows in zip(arrived, chosen, strict=True)
        ]
        self._shared = [_rows(part, rows, 1) for part, rows in zip(arrived, self._chosen, strict=True)]
        self._places = _places(self._shared, ends=ends)

    def exact(self) -> tuple[float, list[Tensor | None]]:
        """One step on everything; the loss, and by device what it gets: at the cut, shared gradients are averaged."""
        loss, grad_BTD = self._followed_back(merge(self._arrived))
        answers = dispatch(grad_BTD, self._arrived)
        if grad_BTD is None or not len(self._chosen[0]):
            return loss, answers
        everyones = grad_BTD.split([len(part.h_BTD) for part in self._arrived])
        shared = [rows_BTD[rows] for rows_BTD, rows in zip(everyones, self._chosen, strict=True)]
        mean_mTD = self._mean(shared).to(grad_BTD.dtype)
        return loss, [
            None if answer_BTD is None else self._with_shared(i, answer_BTD, mean_mTD, 1)
            for i, answer_BTD in enumerate(answers)
        ]

    def averaged(self, rng: np.random.Generator | None) -> tuple[float, list[Tensor | None]]:
        """A step in which the gradients of the samples that stand together pass back as one; see `exact`.

        Args:
          rng: Draws at whose activations; None is at their mean.
        """
        loss, z_mK = self._last_layer()
        at, place = self._at_mean() if rng is None else self._at_one(rng)
        self._engine.check_finite(loss, SHARED, at.round, at.step)
        graph = self._engine.logits(SHARED, self._span, at)
        z_mK = place.take(z_mK, self._longest) if z_mK.dim() == 3 else z_mK
        back_mTD = graph.back(z_mK.to(graph.output.dtype))
        others_loss, others = self._others()
        if back_mTD is None:
            return loss + others_loss, [None] * len(others)
        common_mTD = place.put(back_mTD, self._longest)
        count = len(self._arrived)
        return loss + others_loss, [
            self._with_shared(i, answer_BTD, common_mTD, count) for i, answer_BTD in enumerate(others)
        ]

    def _followed_back(self, batch: Activations) -> tuple[float, Tensor | None]:
        """A batch's part in the mean loss over all, and its gradient."""
        share = batch.weight / self._weight
        graph = self._engine.loss(SHARED, self._span, batch)
        loss = graph.value * share
        self._engine.check_finite(loss, SHARED, batch.round, batch.step)
        return loss, graph.back(share)

    def _last_layer(self) -> tuple[float, Tensor]:
        """The part of the shared samples in the loss; by the logits, the one gradient that counts for all of them.

        Samples of one device at a time pass forward, and no graph is kept.
        """
        losses, gradients = list[float](), list[Tensor]()
        for part, place, weight in zip(self._shared, self._places, self._lambdas, strict=True):
            with torch.no_grad():
                logits = self._engine.logits(SHARED, self._span, part).output
            loss, z_mK = last_layer_gradient(logits, part, part.weight / self._weight)
            losses.append(loss)
            z_mK = place.put(z_mK, self._longest) if z_mK.dim() == 3 else z_mK
            z_mK *= len(self._arrived) * weight
            gradients = [gradients[0].add_(z_mK)] if gradients else [z_mK]
        return sum(losses), gradients[0]

    def _at_mean(self) -> tuple[Activations, _Place]:
        """The mean of the activations that stand together, over those that have a token there; where its texts lie."""
        there = [
            place.put(torch.ones_like(part.mask_BT, dtype=torch.float64, device=part.h_BTD.device), self._longest)
            for part, place in zip(self._shared, self._places, strict=True)
        ]
        weight_mT = torch.stack([own * weight for own, weight in zip(there, self._lambdas, strict=True)]).sum(0)
        mask_mT = weight_mT > 0
        mean_mTD = self._mean([part.h_BTD for part in self._shared]) / weight_mT.masked_fill(~mask_mT, 1)[:, :, None]
        length_m = mask_mT.sum(1)
        return self._as_batch(mean_mTD, mask_mT), _Place(torch.zeros_like(length_m), length_m)

    def _at_one(self, rng: np.random.Generator) -> tuple[Activations, _Place]:
        """One sample of those that stand together, drawn alike; where its text lies."""
        row_m = torch.arange(len(self._chosen[0]))
        drawn_m = torch.from_numpy(rng.integers(len(self._arrived), size=len(row_m)))

        def of_the_drawn(values: Sequence[Tensor]) -> Tensor:
            return torch.stack(list(values))[drawn_m, row_m]

        length_m = of_the_drawn([place.length_m for place in self._places])
        place = _Place(of_the_drawn([place.first_m for place in self._places]), length_m)
        own = (_Place(torch.zeros_like(place.length_m), place.length_m) for place in self._places)
        h_mTD = of_the_drawn([at.put(part.h_BTD, self._longest) for at, part in zip(own, self._shared, strict=True)])
        mask_mT = torch.arange(self._longest, device=h_mTD.device) < length_m[:, None]
        return self._as_batch(h_mTD, mask_mT), place

    def _as_batch(self, h_mTD: Tensor, mask_mT: Tensor) -> Activations:
        """Activations of nobody's; dropout is drawn for them alone."""
        one = self._shared[0]
        return replace(one, device=SHARED, h_BTD=h_mTD.to(one.h_BTD.dtype), mask_BT=mask_mT, micro_batch=2)

    def _others(self) -> tuple[float, list[Tensor]]:
        """The others' part in the loss, and by device what it gets, zero for its shared samples."""
        answers = [torch.zeros_like(part.h_BTD) for part in self._arrived]
        alone = [(i, _rows(self._arrived[i], rows)) for i, rows in enumerate(self._rest) if len(rows)]
        if not any(part.weight for _, part in alone):
            return 0.0, answers
        loss, grad_BTD = self._followed_back(merge([part for _, part in alone]))
        if grad_BTD is not None:
            split = grad_BTD.split([len(part.h_BTD) for _, part in alone])
            for (i, part), rows_BTD in zip(alone, split, strict=True):
                scale = self._weight / self._arrived[i].weight
                answers[i][self._rest[i]] = rows_BTD[:, : part.h_BTD.shape[1]] * scale
        return loss, answers

    def _mean(self, values: Sequence[Tensor]) -> Tensor:
        """The weighted sum of what lies in one place, (m, longest, D) in 64 bits: of equal values, the value itself."""
        placed = (place.put(own.double(), self._longest) for place, own in zip(self._places, values, strict=True))
        return torch.stack([own_mTD * weight for own_mTD, weight in zip(placed, self._lambdas, strict=True)]).sum(0)

    def _with_shared(self, i: int, answer_BTD: Tensor, common_mTD: Tensor, count: int) -> Tensor:
        """A device's answer with the gradient of its shared samples in it.

        Args:
          i: Which device.
          answer_BTD: The gradient of its own mean loss by its activations.
          common_mTD: By the shared ones', of the loss over all.
          count: For how many samples each counts there.
        """
        part = self._arrived[i]
        result_BTD = answer_BTD.clone(memory_format=torch.contiguous_format)
        own_mTD = self._places[i].take(common_mTD, part.h_BTD.shape[1])
        result_BTD[self._chosen[i]] = own_mTD * (self._weight / (count * part.weight))
        return result_BTD


def last_layer_gradient(logits_BK: Tensor, batch: Activations, share: float) -> tuple[float, Tensor]:
    """A batch's part in a loss and its gradient by the logits, in their shape, in 32 bits.

    Args:
      logits_BK: (B, K) for classes or (B, T, K) for tokens; used up.
      batch: Whose labels count.
      share: How much its mean loss counts; 0 where nothing of it does.
    """
    if not batch.weight:
        return 0.0, torch.zeros_like(logits_BK, dtype=torch.float32)
    leaf_BK = logits_BK.detach().float().requires_grad_()
    labels = batch.targets.long().to(leaf_BK.device)
    loss = token_loss(leaf_BK, labels) if labels.dim() == 2 else cross_entropy(leaf_BK, labels)
    [z_BK] = torch.autograd.grad(loss, leaf_BK, torch.full_like(loss, share))
    return float(loss.detach()) * share, z_BK
