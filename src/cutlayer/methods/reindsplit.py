"""ReinDSplit: Q-learning chooses where each device is cut, weighing its work against a latency threshold.

ReinDSplit: Reinforced Dynamic Split Learning for Pest Recognition in Precision Agriculture
    Vishesh Kumar Tanwar, Soumik Sarkar, Asheesh K. Singh, Sajal K. Das. DCOSS-IoT 2025.
    https://arxiv.org/abs/2506.13935

    the paper                                         here
    ---------------------------------------------     ------------------------------------------
    the split point of each device, a finite MDP      cut_by_qlearning(): states, actions, rewards in policies/qlearn.py
    Q-learning agent as orchestrator                  one table for all devices, rebuilt from the history
    workloads within latency thresholds               the reward: threshold, w_lat, w_load
    split learning at the chosen points               one_device_at_a_time(fifo(), owner=one_per_device)

What is certain (abstract): a cut per device, chosen by Q-learning on a finite MDP, workloads balanced against latency
thresholds so that no device is starved or overloaded; all weights of CNNs were trained. Our reading (the body could not
be read): the bins of the states, the reward and its weights, one table for all devices, cuts that may move by any
distance, the learning rate of the table, how long it explores; and that adapters are averaged, by what was trained, as
in SplitFed. The discount is ours: lower than is usual, because here the next state depends on the cut alone.

Frozen blocks that a device has read stay there, so a cut that moves moves LoRA tensors only. AdamW's moments of tensors
that change sides begin anew, those of the others are kept (Trainable.load). But for that, where a device is cut changes
nothing of what is learnt: with train.keep_moments=false, and nothing clipped or packed, not one bit.

Evidence: abstract; states, reward and aggregation are our reading.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.labels import heads_for, labels_stay
from cutlayer.policies.order import fifo
from cutlayer.policies.qlearn import RewardWeights, cut_by_qlearning
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.split import split
from cutlayer.rounds.u_shape import u_shape
from cutlayer.server.owners import one_per_device
from cutlayer.server.steps.halves import in_halves
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time


def reindsplit(
    *,
    cut: int | None = None,
    least: int = 1,
    deepest: int | None = None,
    choices: int = 6,
    threshold: float | None = None,
    explore: float = 0.3,
    discount: float = 0.5,
    w_acc: float = 1.0,
    w_lat: float = 1.0,
    w_load: float = 0.5,
    labels: str = "server",
    fraction: float = 1.0,
) -> Method:
    """Builds ReinDSplit.

    Args:
      cut: Blocks on every device, in every round; None lets the table choose.
      least: With cut None, the fewest blocks on a device.
      deepest: With cut None, the most blocks on a device; None leaves the server one.
      choices: With cut None, the most cuts to choose among, evenly spread from least to deepest.
      threshold: Seconds that a local step should take at most; None is the median of the first round, in which every
        device has the middle cut.
      explore: The part of the rounds over which random cuts go from all to one in twenty; 0 for none at all.
      discount: What the worth of the next state counts in that of a cut.
      w_acc: Of the drop of the loss in the reward.
      w_lat: Of what a step takes beyond the threshold.
      w_load: Of computing for more than 0.9 of the threshold, or for less than 0.5.
      labels: Where they are: server (they go up with the activations) or device (they stay there, with the head).
      fraction: Of the fleet, drawn anew every round.
    """
    choose = cut_by_qlearning(
        least=least,
        deepest=deepest,
        choices=choices,
        threshold=threshold,
        explore=explore,
        discount=discount,
        weights=RewardWeights(w_acc, w_lat, w_load),
    )
    return Method(
        plan=(everyone(), *heads_for(labels), choose if cut is None else cut_at(cut), random_fraction(fraction)),
        round=(
            u_shape(server_step=in_halves(fifo(), owner=one_per_device))
            if labels_stay(labels)
            else split(server_step=one_device_at_a_time(fifo(), owner=one_per_device))
        ),
        aggregate=mean_per_block(),
    )
