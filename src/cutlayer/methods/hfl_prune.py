"""HFL-prune: devices, sites and a cloud; slow devices prune their model so that their round ends in time.

Adaptive Federated Pruning in Hierarchical Wireless Networks
    Xiaonan Liu, Shiqiang Wang, Yansha Deng, Arumugam Nallanathan. 2023. https://arxiv.org/abs/2305.09042

    the paper                                             here
    -------------------------------------------------     -------------------------------------------------
    cloud -> edge servers -> devices                      rounds.sited.Sited; rows `sites` of the fleet
    each device prunes as much as its latency asks        policies.deadline_prune.pruned_in_time
    local training on what is left                        pruned()
    the edge averages its devices, coordinate by          Sited._learn: the mean over those who have an entry
    coordinate
    every so many rounds the cloud averages the edges     at_sites(cloud_every), mean_per_block()

Certain (abstract): device, edge and cloud; pruning under a latency threshold; closed forms of ratio and bandwidth by
KKT; about half of the communication at like accuracy. Our reading: the form of the ratio; the mean by coordinate, where
the edge keeps its old value if nobody has an entry; that what matters least is what is small; every 5 rounds. Left out:
bandwidth shares, every device has its own link. Pruned are heads and FFN channels of the frozen model, by the size of
its weights, which never change: so a device prunes the same units in every round, and one that prunes more prunes those
of one that prunes less too. A fleet without sites is one site. On a real fleet a site is a process of its own
(`cutlayer serve --site-of`), to which its devices' adapters go, and only means go on; with none, all devices are at one
site, the server.

Neutral: prune=0.0.

Evidence: the abstract; formulas are ours, from the stated model.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import whole_model
from cutlayer.policies.deadline_prune import pruned_in_time
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.policies.sites import at_sites
from cutlayer.rounds.pruned import pruned
from cutlayer.rounds.sited import sited


def hfl_prune(
    *, cloud_every: int = 5, threshold: float | None = None, prune: float = 0.7, fraction: float = 1.0
) -> Method:
    """Builds hierarchical federated pruning. It needs LoRA on every matrix that it prunes: lora.targets=[all-linear].

    Args:
      cloud_every: Rounds from one report of the sites to the next.
      threshold: Seconds that a device's round may take; None for the median of rounds with nothing pruned.
      prune: The most that a device prunes of each block's heads and FFN channels; 0 for nothing.
      fraction: Of the fleet, drawn anew every round.
    """
    round = sited(pruned())
    return Method(
        plan=(
            everyone(),
            random_fraction(fraction),
            whole_model(),
            pruned_in_time(threshold, prune),
            at_sites(cloud_every),
        ),
        round=round,
        aggregate=mean_per_block(),
        broadcast=round.broadcast,
    )
