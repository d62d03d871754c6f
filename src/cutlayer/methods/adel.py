"""ADEL: SALF with a deadline for every round and batches by speed, both planned so that a bound on the loss is least.

Adaptive Deadline and Batch Layered Synchronized Federated Learning
    Asaf Goren, Natalie Lang, Nir Shlezinger, Alejandro Cohen. 2025. https://arxiv.org/abs/2505.23973

    the paper, and the authors' code                     here
    -------------------------------------------------    ------------------------------------------
    profiles P_u, B_u of the users                       pace_of: declared, or measured when devices join
    T_1..T_R and one m, a bound minimised by scipy       deadlines_and_batches(budget, noise, eta, rho, rates)
    S_u by m and T_1, the same in every round            policies.deadlines.batches
    backward from the output until T_t                   layers(), as in salf
    old values for layers that were not reached          mean_per_layer(aggregation): "code"

Certain, from the authors' code: the bound, its constraints, the batch rule, one m for all rounds and users, and that it
averages over all users without a correction. That the paper's text corrects as SALF does is not known; it builds on
SALF, and `aggregation=salf` is the default here. Our reading: what comes before the first block counts as blocks, and
the chance that nobody reaches a layer stays below 1/2 (`policies/deadline_plan.py`). sigma, G, eta and rho of a
language model are not known: the defaults are the authors', of which only ratios matter.

With a batch of its own for each device train.batch_size says only how long the default budget is.

The machine that plans needs scipy: `pip install "cutlayer[deadlines]"`. Devices do not.

Neutral: budget=1000000.0, aggregation=code.

Evidence: the authors' code; whether the paper corrects its means is unknown.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.cut import whole_model
from cutlayer.policies.deadline_plan import deadlines_and_batches
from cutlayer.policies.deadlines import PLANNED
from cutlayer.policies.layerwise import mean_per_layer, reached
from cutlayer.policies.select import everyone
from cutlayer.policies.trains import Trains
from cutlayer.rounds.layers import layers


def adel(
    *,
    budget: float | None = None,
    noise: float = 29.0,
    eta: float = 0.5,
    rho: float = 0.3,
    rates: str = "inverse",
    aggregation: str = "salf",
    momentum: float | None = None,
) -> Method:
    """Builds ADEL-FL.

    Args:
      budget: Seconds of all rounds together; None for as long as those of salf would be.
      noise: Standard deviation of a sample's gradient, in norms of a gradient: with more, batches are larger.
      eta: The first learning rate in the bound; not of the run.
      rho: The strong convexity in the bound; 0 lets rounds count alike where rates are constant.
      rates: How the bound's rates go: inverse (over the number of the round) or constant.
      aggregation: How a block is averaged: salf, ipw or code, as of salf.
      momentum: Of descent in place of AdamW; None leaves AdamW.
    """
    return Method(
        plan=(everyone(), whole_model(), deadlines_and_batches(budget, noise=noise, eta=eta, rho=rho, rates=rates)),
        round=layers(),
        aggregate=mean_per_layer(aggregation),
        patience=PLANNED,
        trains=None if momentum is None else Trains(momentum),
        observe=reached,
    )
