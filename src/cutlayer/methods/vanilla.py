"""Vanilla: split learning with LoRA, the devices in turn.

Distributed learning of deep neural network over multiple agents
    Otkrist Gupta, Ramesh Raskar. JNCA 2018. https://arxiv.org/abs/1810.06060
    The order of things follows public code of sequential split learning (SplitFed's SL baseline), here with LoRA.

    sequential split learning                    here
    ----------------------------------------     ------------------------------------------
    one server model                             one base, one server adapter for all
    client weights go from client to client      relay(): the next device starts where the last one ended
    labels go to the server                      Activations.labels

Unlike that code, AdamW's moments live on from batch to batch. Our reading: devices keep the fleet's order, and the
cut is the same for all.

Evidence: public code of sequential split learning.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.labels import heads_for
from cutlayer.policies.select import everyone
from cutlayer.rounds.relay import relay


def vanilla(*, cut: int = 1, labels: str = "server") -> Method:
    """Builds vanilla split learning.

    Args:
      cut: Blocks on every device.
      labels: Where they are: server (they go up with the activations) or device (they stay there, with the head).
    """
    return Method(
        plan=(everyone(), *heads_for(labels), cut_at(cut)),
        round=relay(labels=labels),
        aggregate=mean_per_block(),  # of one contribution: where the last device left off
    )
