"""SFPL: all devices' samples pooled and shuffled, one server adapter stepped on mixed mini-batches.

Federated Split Learning with Only Positive Labels for resource-constrained IoT environment
    Praveen Joshi, Chandra Thapa, Mohammed Hasanuzzaman, Ted Scully, Haithem Afli. 2023.
    https://arxiv.org/abs/2307.13266

    the paper                                       here
    -------------------------------------------     ------------------------------------------
    each client forwards b samples                  DevicePlan.batch_size
    a collector pools and shuffles what they send   pooled(): Arrivals.everybody(), mini_batches
    the server on mini-batches of b, one step each  pooled(server_batch)
    gradients un-shuffled, back to their owners     Pool.answers
    client sides averaged, all but the norms        mean_per_block(), lowest_blocks_personal(personal_blocks)
    inference with each client's own norms          metrics are means over the devices' own adapters

Certain (abstract): what clients send is shuffled at random before the server trains on it, and client sides have their
own batch normalisation at inference. Recalled: a pool of all clients, mini-batches of b, one step for each, averaging
every epoch (here a round, of train.local_steps), of all but the norms. Our reading: samples are shuffled within a
local step, not across several, whose gradients would be stale; each has the learning rate of its local step; the mean
is by what devices trained on. No code is public.

Transformers have no batch normalisation, and no norm is trained here: adapters are LoRA factors, and the head's
weights. What stays local in its place is an option of ours, off by default: the LoRA of the lowest blocks. Then
there are as many models as devices, an evaluation costs as much, and a run ends with an adapter for each.

Evidence: abstract; pool and mini-batches recalled, schedule and averaging are our reading.
"""

from __future__ import annotations

from cutlayer.errors import ConfigError
from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.scope import lowest_blocks_personal
from cutlayer.policies.select import everyone
from cutlayer.rounds.split import split
from cutlayer.server.steps.pooled import pooled


def sfpl(*, cut: int = 1, server_batch: int | None = None, personal_blocks: int = 0, seed: int = 0) -> Method:
    """Builds SFPL.

    Args:
      cut: Blocks on every device.
      server_batch: The most samples in a mini-batch of the server; None is as many as in a device's batch.
      personal_blocks: How many of the lowest blocks have a LoRA of each device's own, which is never averaged; at most
        as many as devices hold. An extension of ours.
      seed: Of the shuffling.
    """
    if not 0 <= personal_blocks <= cut:
        raise ConfigError(
            f"method.personal_blocks: expected 0 to method.cut, {cut}, got {personal_blocks}. Change one of the two: "
            "what the server holds is trained on all devices' samples."
        )
    return Method(
        plan=(everyone(), cut_at(cut)),
        round=split(server_step=pooled(server_batch=server_batch, seed=seed)),
        aggregate=mean_per_block(),
        scope=lowest_blocks_personal(personal_blocks),
    )
