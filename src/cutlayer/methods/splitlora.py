"""SplitLoRA: one shared server adapter, stepped by each device; device adapters averaged every round.

SplitLoRA: A Split Parameter-Efficient Fine-Tuning Framework for Large Language Models
    Zheng Lin, Xuanjie Hu, Yuxin Zhang, Zhe Chen, Zihan Fang, Xianhao Chen, Ang Li, Praneeth Vepakomma, Yue Gao.
    2024. https://arxiv.org/abs/2407.00952

    the authors' code                             here
    -----------------------------------------     ------------------------------------------
    client = embeddings + first 3 blocks          cut_by_name(cut)
    clients interact in turn with one server,     one_device_at_a_time(fifo(), owner=one_for_all)
      whose LoRA takes a step per client
    client LoRA averaged, unweighted,             mean_per_block(weighted=False) at the end of a round;
      every 100 steps                               the interval is train.local_steps

The released code is what is followed; the paper's text describes per-round adapters (recalled, not confirmed). Its
averaging counts one client twice, a slip that is not repeated here.

Evidence: the authors' code.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut_by_name import cut_by_name
from cutlayer.policies.labels import heads_for, labels_stay
from cutlayer.policies.order import fifo
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.split import split
from cutlayer.rounds.u_shape import u_shape
from cutlayer.server.owners import one_for_all
from cutlayer.server.steps.halves import in_halves
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time


def splitlora(*, cut: int | str = 1, labels: str = "server", fraction: float = 1.0) -> Method:
    """Builds SplitLoRA.

    Args:
      cut: Blocks on every device; or memory, as many as each holds, or latency, as many as make the round short.
      labels: Where they are: server (they go up with the activations) or device (they stay there, with the head).
      fraction: Of the fleet, drawn anew every round; the paper has everyone.
    """
    return Method(
        plan=(everyone(), random_fraction(fraction), *heads_for(labels), cut_by_name(cut)),
        round=(
            u_shape(server_step=in_halves(fifo(), owner=one_for_all))
            if labels_stay(labels)
            else split(server_step=one_device_at_a_time(fifo(), owner=one_for_all))
        ),
        aggregate=mean_per_block(weighted=False),
    )
