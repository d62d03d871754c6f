"""SL: sequential split learning, the devices in a fresh random order every round.

Split learning for health: Distributed deep learning without sharing raw patient data
    Praneeth Vepakomma, Otkrist Gupta, Tristan Swedish, Ramesh Raskar. 2018. https://arxiv.org/abs/1812.00564
    What is done in which order follows the SL baseline in SplitFed's public code, here with LoRA.

    the public code (SL_ResNet_HAM10000.py)      here
    ----------------------------------------     ------------------------------------------
    clients in random order                      in_random_order(), anew every round
    one server model                             one base, one server adapter for all
    client weights go from client to client      relay(): the next device starts where the last one ended
    labels go to the server                      Activations.labels

A slip of that code is not repeated: it makes a new Adam in the server's function for every batch, so that no moments
gather (train.keep_moments=false begins anew only when a device's turn begins). The cut is the same for all.

Evidence: public code of sequential split learning.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.labels import heads_for
from cutlayer.policies.select import everyone, in_random_order
from cutlayer.rounds.relay import relay


def sl(*, cut: int = 1, labels: str = "server") -> Method:
    """Builds sequential split learning.

    Args:
      cut: Blocks on every device.
      labels: Where they are: server (they go up with the activations) or device (they stay there, with the head).
    """
    return Method(
        plan=(everyone(), *heads_for(labels), in_random_order(), cut_at(cut)),
        round=relay(labels=labels),
        aggregate=mean_per_block(),  # of one contribution: where the last device left off
    )
