"""GAN-HFSL: labels and both ends of the model stay on the devices; gradients are applied late, so that nobody idles;
cut, bandwidth and clock by a Pareto front of time and energy.

Predictive GAN-powered Multi-Objective Optimization for Hybrid Federated Split Learning
    Benshun Yin, Zhiyong Chen, Meixia Tao. 2022. https://arxiv.org/abs/2209.02428

    the paper                                         here
    ---------------------------------------------     ------------------------------------------
    split without sharing labels                      labels_on_devices(tail), u_shape()
    parallel computing with delayed gradients         delayed(delay): w(t+1) = w(t) - eta g(w(t - delay))
    workers in parallel, as federated learning's      in_halves(fifo()), mean_per_block()
    time and energy over split, bandwidth, clock      pareto_plan(search, evaluations, weight)
    a predictive GAN that finds better fronts         search=gan; enumerate and nsga2 to hold it against

Certain (abstract): labels are not shared, workers compute in parallel with a flexible split, gradients are delayed so
that nobody idles, and time and energy are optimised by a predictive GAN. Our reading: that this is a U-shape (head and
last blocks on the device), a delay of one step, in all parts of the model alike and never over the end of a round,
gradients of the weights that a step ran with (they are kept), all parts averaged in every round, and all of the
planner's formulas, levels and nets. What a device is given of a shared connection and of its clock is kept to in
simulation; a real device rests after each piece of work in place of a lower clock, which saves little energy, and no
network is told of shares.

Measured: the GAN finds good fronts with fewest plans where devices share nothing; where they share a connection NSGA-II
finds better ones (docs/decisions/0032-labels-at-home.md).

That a label is not sent does not hide it: gradients tell of labels whoever knows the head.

Neutral: delay=0.

Evidence: abstract; U-shape, delay and planner are our reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cutlayer.fleet.allotment import frequency_of
from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.delay import delayed
from cutlayer.policies.labels import labels_on_devices
from cutlayer.policies.order import fifo
from cutlayer.policies.pareto import pareto_plan
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.u_shape import u_shape
from cutlayer.server.steps.halves import in_halves
from cutlayer.types import DevicePlan
from cutlayer.wire.messages import Update


def gan_hfsl(
    *,
    delay: int = 1,
    tail: int = 0,
    cut: int | None = None,
    least: int = 1,
    search: str = "gan",
    evaluations: int = 1024,
    weight: float = 0.5,
    fraction: float = 1.0,
) -> Method:
    """Builds GAN-HFSL.

    Args:
      delay: How many steps late gradients are applied; 0 waits for them.
      tail: The last blocks, which a device holds beside the head.
      cut: Blocks on every device, at full clock; None plans cuts, shares of the connection and clocks.
      least: With cut None, the fewest blocks that a device must be able to hold below its tail.
      search: With cut None, how plans are looked for: gan, nsga2 (needs the extra `pareto`) or enumerate.
      evaluations: With cut None, the most plans that are tried.
      weight: With cut None, of time against energy in the choice of a plan: 1 the fastest, 0 the most frugal.
      fraction: Of the fleet, drawn anew every round.
    """
    planned = pareto_plan(search=search, evaluations=evaluations, weight=weight, least=least)
    return Method(
        plan=(
            everyone(),
            random_fraction(fraction),
            labels_on_devices(tail=tail),
            delayed(delay),
            planned if cut is None else cut_at(cut),
        ),
        round=u_shape(server_step=in_halves(fifo())),
        aggregate=mean_per_block(),
        observe=_observed,
    )


def _observed(plan: DevicePlan, _update: Update) -> Mapping[str, Any]:
    """The clock, without which nobody knows what the seconds of a round cost."""
    return {"frequency": frequency_of(plan)}
