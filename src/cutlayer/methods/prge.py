"""P-RGE: LoRA by forward passes alone, the queries of a step in one batch; devices' B averaged.

MobiZO: Enabling Efficient LLM Fine-Tuning at the Edge via Inference Engines (first called P-RGE)
    Lei Gao, Amir Ziashahabi, Yue Niu, Salman Avestimehr, Murali Annavaram. EMNLP 2025.
    https://arxiv.org/abs/2409.15520

    the paper, and its code                               here
    ------------------------------------------------     ------------------------------------------
    LoRA-FA: A frozen, B trained                          model.zeroth.lora_fa
    q queries in one batch (outer loop)                   asking(queries, epsilon, form)
    both signs in it too (inner loop): dual               form=dual; single is one sign at a time
    g_i = (l+ - l-) / (2 eps), B <- B - lr mean g_i z_i   model.zeroth.two_sided, optimizers.zeroth
    q x batch is constant                                 share_batch
    engine only: restoring and stepping in the graph      form=recurrence; model/recurrence.py

Certain, from the authors' code: the forms, LoRA-FA, eps 1e-2, descent without momentum, q x batch = 16. A slip of that
code is not repeated: its dual mode with q = 1 forgets the slope. Ours: the paper trains on one device, and here devices
do so between two averagings of B, as in federated averaging; the head's tensors move too, where there is one.

Evidence: the authors' code; averaging over devices is ours.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import whole_model
from cutlayer.policies.queries import asking
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.queries import queries as queries_round


def prge(
    *,
    queries: int = 4,
    epsilon: float = 1e-2,
    form: str = "dual",
    share_batch: bool = True,
    weighted: bool = True,
    fraction: float = 1.0,
) -> Method:
    """Builds P-RGE.

    Args:
      queries: Random directions in each local step (q).
      epsilon: How far to go to either side of them.
      form: How the losses of a step are computed: dual, single, sequential or recurrence.
      share_batch: Whether the queries share the samples of train.batch_size, so that q x batch is constant.
      weighted: Whether devices count by what they trained in the mean; False counts them alike.
      fraction: Of the fleet, drawn anew every round.
    """
    return Method(
        plan=(
            everyone(),
            random_fraction(fraction),
            asking(queries, epsilon, form, share_batch=share_batch),
            whole_model(),
        ),
        round=queries_round(),
        aggregate=mean_per_block(weighted=weighted),
    )
