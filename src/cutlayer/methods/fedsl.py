"""FedSL: split federated learning on thin devices: pruned below the cut, channels dropped at it, gradients in few bits.

Federated Split Learning with Model Pruning and Gradient Quantization in Wireless Networks
    Junhe Zhang, Wanli Ni, Dongyu Wang. 2024. https://arxiv.org/abs/2412.06414

    the paper                                         here
    ---------------------------------------------     ------------------------------------------
    the device-side model is pruned, dynamically;     pruning_below(prune, refresh), thinned()
      what is pruned stays at the server
    random dropout of activations at the cut          dropping_channels(dropout): the seed is sent
    stochastic quantisation of gradients, b bits      rounding_to(bits): before the step, and on the wire
    devices in parallel, a server part each           a_copy_each()
    aggregation of device parts every I rounds        aggregating_every(interval)
    each coordinate over those who kept it            scatter(weighted=False)

Certain (abstract): the device part pruned dynamically, activations dropped at random, gradients quantised. From reviews
alone: an aggregation every I rounds, CIFAR-10 on VGG-19, best at moderate pruning, 8 bits and a shallow cut. Our
reading: whole heads and channels go, by the size of W + s B A, with LoRA on what is left; whole channels of the hidden
width are dropped; the rule by which device parts, and the server's copies with them, are averaged is SFL-V1's; all
defaults. I rounds of the paper are one round here. At the end the adapter is on the whole model: what was pruned is
there again.

Neutral: prune=0.0, dropout=0.0, bits=null.

Evidence: abstract and reviews; formulas in their usual form, all constants are our choice.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.channels import dropping_channels
from cutlayer.policies.cut_by_name import cut_by_name
from cutlayer.policies.few_bits import rounding_to
from cutlayer.policies.interval import aggregating_every
from cutlayer.policies.prune_below import pruning_below
from cutlayer.policies.scatter import scatter
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.thinned import thinned
from cutlayer.server.steps.one_at_a_time import a_copy_each


def fedsl(
    *,
    cut: int | str = 1,
    prune: float = 0.3,
    refresh: int = 10,
    dropout: float = 0.1,
    bits: int | None = 8,
    interval: int = 1,
    fraction: float = 1.0,
    seed: int = 0,
) -> Method:
    """Builds FedSL. It needs LoRA on every matrix that it prunes: lora.targets=[all-linear].

    Args:
      cut: Blocks on every device; or memory, as many as each holds, or latency, as many as make the round short.
      prune: The share of heads and FFN channels that is left out of each block below the cut; 0 prunes nothing.
      refresh: Rounds for which what is left stays, until it is chosen anew.
      dropout: The share of the channels that does not cross the cut, others in each message.
      bits: Of one number of a device's gradients and of its update, 2 to 16; null leaves them as they are.
      interval: I, the rounds of train.local_steps steps between two aggregations.
      fraction: Of the fleet, drawn anew every round.
      seed: Of what is dropped and rounded.
    """
    return Method(
        plan=(
            everyone(),
            random_fraction(fraction),
            aggregating_every(interval),
            pruning_below(prune, refresh),
            cut_by_name(cut),
            dropping_channels(dropout, seed=seed),
            rounding_to(bits, seed=seed),
        ),
        round=thinned(server_step=a_copy_each()),
        aggregate=scatter(weighted=False),
    )
