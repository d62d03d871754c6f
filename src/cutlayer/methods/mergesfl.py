"""MergeSFL: the features of all devices in one batch, one server adapter; batch sizes by speed, cohorts by labels.

MergeSFL: Split Federated Learning with Feature Merging and Batch Size Regulation
    Yunming Liao, Yang Xu, Hongli Xu, Lun Wang, Zhiwei Yao, Chunming Qiao. ICDE 2024.
    https://arxiv.org/abs/2311.13348

    the paper, and its code (training only)              here
    -------------------------------------------------    ----------------------------------------
    mu_i, beta_i: moving averages of what is measured    batch.seconds_per_sample
    d_i by speed, the fastest gets d_max                 speed_proportional(d_max)
    genetic search on KL under the ingress budget        kl_cohort(fraction, ingress_mbit)
    d_i tuned to lower the KL, then scaled to B          regulate_kl(max_kl), fill_ingress(ingress_mbit, d_max)
    concatenate, one loss, one step of the top model     merged()
    rows of the gradient times D / d_i                   merged.dispatch
    bottoms averaged by d_i (code: plain mean)           mean_per_block(weighted=weighted)

Certain, from the code: the training loop, tau iterations a round (42 there; here train.local_steps), labels with the
features. The control module is not in the public code, which draws devices at random and gives each 64 samples
(select=random, batch=fixed): its formulas are recalled, and where they are not known (weight of the priority, tuning
of d_i, a second's worth of ingress as the budget) ours (docs/decisions/0012-merged-batches.md). The code trains all
weights by SGD and makes a new optimizer every round; here it is LoRA and AdamW, whose steps the factor D / d_i hardly
changes, and train.keep_moments=false begins anew. For causal LM a device counts by its target tokens. Features are
joined along the batch, padded to the longest text.

Evidence: training from the authors' code; control recalled.
"""

from __future__ import annotations

from cutlayer.errors import ConfigError
from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.batch import fill_ingress, fixed, regulate_kl, speed_proportional
from cutlayer.policies.cohort import kl_cohort
from cutlayer.policies.cut import cut_at
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.split import split
from cutlayer.server.steps.merged import merged


def mergesfl(
    *,
    cut: int = 1,
    batch: str = "speed",
    d_max: int | None = None,
    select: str = "kl",
    fraction: float = 1.0,
    ingress_mbit: float | None = None,
    max_kl: float | None = None,
    weighted: bool = True,
) -> Method:
    """Builds MergeSFL.

    Args:
      cut: Blocks on every device.
      batch: Samples of a device in a step: speed (by what was measured of it) or fixed (d_max for everyone).
      d_max: Samples of the fastest device in a step; None is train.batch_size.
      select: How a part of the fleet is chosen: kl (by its labels; classification only) or random.
      fraction: Of the fleet, chosen anew every round; 1 is everyone.
      ingress_mbit: With select kl, what the server can take in, in Mbit/s: the activations of one local step must need
        at most one second. None for no limit.
      max_kl: Batch sizes are lowered until the merged labels are as near as this to the fleet's, in nats; None leaves
        them. Classification only.
      weighted: Whether devices count by what they trained in the mean (the paper); False counts them alike (its code).
    """
    if batch not in ("speed", "fixed"):
        raise ConfigError(f"method.batch: expected speed or fixed, got {batch!r}. Change method.batch.")
    if select not in ("kl", "random"):
        raise ConfigError(f"method.select: expected kl or random, got {select!r}. Change method.select.")
    if select == "random" and ingress_mbit is not None:
        raise ConfigError(
            f"method.ingress_mbit: expected null with select random, got {ingress_mbit}. Set method.select=kl."
        )
    sized = (cut_at(cut), speed_proportional(d_max)) if batch == "speed" else (fixed(d_max), cut_at(cut))
    return Method(
        plan=(
            everyone(),
            *sized,
            kl_cohort(fraction, ingress_mbit) if select == "kl" else random_fraction(fraction),
            regulate_kl(max_kl),
            fill_ingress(ingress_mbit, d_max),
        ),
        round=split(server_step=merged()),
        aggregate=mean_per_block(weighted=weighted),
    )
