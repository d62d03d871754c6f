"""SALF: a hard deadline; stragglers send the last blocks, as far down as they got, and each block is averaged apart.

Stragglers-Aware Low-Latency Synchronous Federated Learning via Layer-Wise Model Updates
    Natalie Lang, Alejandro Cohen, Nir Shlezinger. 2024. https://arxiv.org/abs/2403.18375

    the paper, and the authors' code                     here
    -------------------------------------------------    ------------------------------------------
    every user holds the whole model, one local step     whole_model(); train.local_steps=1
    backward from the output, until the deadline         layers(): block by block, a look at the clock between two
    users upload the layers they finished                the update has the blocks that were reached
    deadline, the same in every round                    layer_deadline(deadline)
    layer-wise mean, corrected by p_l                    mean_per_layer("salf"); as the code does it: "code"
    p_l of uniformly drawn depths                        odds=uniform; measured, or by a model of times

Certain: layers, their order, the hard deadline (abstract); the code averages over all users with old weights in place
of layers that were not reached, has no p_l, and draws depths instead of keeping time. The correction is recalled and
was checked by simulation. Our reading: a layer is a transformer block, the head is reached first; with several local
steps each has its part of the time; where the chances come from; weights by inverse chances, for devices that are
unequal (`aggregation=ipw`); below a cut, where the walk begins with the gradient that comes down (`cut`).

AdamW trains unless `momentum` says otherwise; the authors have descent with a momentum of 0.5.

Neutral: reach=1.0.

Evidence: abstract and the authors' code; the correction recalled, its chances ours.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.cut import cut_at, whole_model
from cutlayer.policies.deadlines import PLANNED, layer_deadline
from cutlayer.policies.layerwise import mean_per_layer, reached
from cutlayer.policies.order import fifo
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.policies.trains import Trains
from cutlayer.rounds.layers import layers
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time


def salf(
    *,
    deadline: float | None = None,
    reach: float = 0.5,
    aggregation: str = "salf",
    odds: str = "measured",
    cut: int | None = None,
    momentum: float | None = None,
    fraction: float = 1.0,
) -> Method:
    """Builds SALF.

    Args:
      deadline: Seconds of a round; None for what the slowest device needs to go back through the part `reach`.
      reach: With deadline None, of the blocks that a device holds; 1.0 is no deadline, and federated averaging.
      aggregation: How a block is averaged: salf (over those who reached it, corrected by the chance that nobody does),
        ipw (by each one's own chance) or code (over all, old values where a block was not reached).
      odds: Where those chances come from: measured, model (exponential times) or uniform (every depth alike).
      cut: Blocks on every device, whose part of the model is then trained so; None for all of it.
      momentum: Of descent in place of AdamW; None leaves AdamW.
      fraction: Of the fleet, drawn anew every round.
    """
    timed = layer_deadline(deadline, reach=reach, odds=odds)
    return Method(
        plan=(everyone(), random_fraction(fraction), whole_model() if cut is None else cut_at(cut), timed),
        round=layers(server_step=None if cut is None else one_device_at_a_time(fifo())),
        aggregate=mean_per_layer(aggregation),
        patience=None if deadline is None and reach == 1 else PLANNED,
        trains=None if momentum is None else Trains(momentum),
        observe=reached,
    )
