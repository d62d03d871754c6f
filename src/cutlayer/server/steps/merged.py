"""The merged server step: the features of all devices make one batch, one loss, one step of one server adapter.

MergeSFL: Split Federated Learning with Feature Merging and Batch Size Regulation
    Yunming Liao, Yang Xu, Hongli Xu, Lun Wang, Zhiwei Yao, Chunming Qiao. ICDE 2024.
    https://arxiv.org/abs/2311.13348

A local step of the round is a barrier: the server waits for everybody. In the authors' code the loss is the mean over
the D = sum of d_i samples, and a device gets its rows of the gradient times D / d_i, which makes the mean over all
samples the mean over its own. Here samples are target tokens for causal LM, the normaliser of its loss.

A device's tally is the loss of the whole batch, counted by the device's weight: its own rows' loss would need a second
pass over the logits. Summed over devices it is the same.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from cutlayer.model.loss import MASKED
from cutlayer.server.arrivals import Arrivals
from cutlayer.server.concat import concat
from cutlayer.server.engine import Span
from cutlayer.server.owners import SHARED, Owner, one_for_all
from cutlayer.server.server import Server
from cutlayer.server.steps.apart import train_apart
from cutlayer.server.steps.step import Reply, ServerStep
from cutlayer.server.steps.train import answer, train
from cutlayer.state import Stateless
from cutlayer.types import Costs, RoundPlan
from cutlayer.wire.messages import Activations


def merged() -> ServerStep:
    """Waits for everybody's activations, trains the shared adapter on all of them at once, and sends each its rows.

    Example:
      >>> from cutlayer import merged
      >>> step = merged()
      >>> step.equal_cuts, step.together
      (True, True)
    """
    return _Merged()


class _Merged(Stateless):
    owner: Owner = staticmethod(one_for_all)

    equal_cuts = together = True
    cuts_batches = False

    async def __call__(self, server: Server, arrivals: Arrivals, reply: Reply) -> None:
        while arrived := await arrivals.everybody():
            trained, came = await train_apart(
                server, arrived, span_of(server, arrived), lambda parts: _train(server, parts)
            )
            for left in {part.device for part in arrived} - {part.device for part in trained}:
                arrivals.answer(left)
            if came is None:
                continue
            loss, grad_BTD = came
            for activations, rows_BTD in zip(trained, dispatch(grad_BTD, trained), strict=True):
                await reply(answer(server, activations, loss, rows_BTD))

    def server_bytes(self, plan: RoundPlan, costs: Costs, num_tokens: int) -> int:
        """One model and one step on the merged batch, and the activations that it is made of."""
        num_samples = sum(device.batch_size for device in plan.devices)
        step = costs.server(plan.devices[0], num_samples, num_tokens)
        return step.memory_bytes + costs.activation_bytes(num_samples, num_tokens)


async def _train(server: Server, arrived: Sequence[Activations]) -> tuple[float, Tensor | None]:
    return await train(server, merge(arrived), server.ledger.device(arrived[0].device))


def span_of(server: Server, arrived: Sequence[Activations]) -> Span:
    """The span on the server that the activations of all devices pass through; their cuts are alike."""
    device = server.ledger.device(arrived[0].device)
    return server.engine.span(device.cut, device.blocks)


def merge(arrived: Sequence[Activations]) -> Activations:
    """The activations of one local step as one message, as if one device had sent them all."""
    return replace(
        arrived[0],
        device=SHARED,
        h_BTD=concat([part.h_BTD for part in arrived]),
        mask_BT=concat([part.mask_BT for part in arrived]),
        labels=concat([part.targets for part in arrived], fill=MASKED),
        weight=sum(part.weight for part in arrived),
    )


def dispatch(grad_BTD: Tensor | None, arrived: Sequence[Activations]) -> list[Tensor | None]:
    """Each device's rows of the gradient of the merged loss, at its own length, as the gradient of its own loss."""
    if grad_BTD is None:
        return [None] * len(arrived)
    weight = sum(part.weight for part in arrived)
    rows = grad_BTD.split([part.h_BTD.shape[0] for part in arrived])
    return [
        rows_BTD[:, : part.h_BTD.shape[1]] * (weight / part.weight)
        for rows_BTD, part in zip(rows, arrived, strict=True)
    ]
