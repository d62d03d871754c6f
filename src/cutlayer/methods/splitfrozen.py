"""SplitFrozen: devices hold frozen blocks and only run forward; one adapter on the server, trained on mixed batches;
activations are sent once.

SplitFrozen: Split Learning with Device-side Model Frozen for Fine-Tuning LLM on Heterogeneous Resource-Constrained
    Devices. Jian Ma, Xinchen Lyu, Jun Jiang, Qimei Cui, Haipeng Yao, Xiaofeng Tao. 2025.
    https://arxiv.org/abs/2503.18986

    the paper                                         here
    ---------------------------------------------     ------------------------------------------
    heterogeneity-aware partition                     cut_by_capacity(deepest, least), or cut_at(cut)
    devices frozen, forward only                      ranks_above_deepest_cut()
    activations (and labels) up, no gradient down     stream()
    the server shuffles over devices, then batches    stream(window, server_batch)
    pipelined; decomposed backward                    stream(stages, micro_batches, decomposed)

What is certain (abstract): frozen device side and forward only, the adapter on the server, pipeline parallelism with
the backward pass decomposed. From reviews: partition by capability, shuffling before batching. Our reading: cuts in
proportion to speed; LoRA above the deepest cut, shallower activations lifted to it without gradient; labels go up;
the window, its order and its size; the schedule of learning rates, in which each place lasts as many server steps as
there are devices.

Beyond the paper, and on by default: the cache. What is frozen gives the same activations in every epoch, so they are
computed and sent once. Off by default: decomposed backward, which costs time on one machine (benchmarks/pipeline.py).

Evidence: abstract and reviews; partition rule, mixing window and layers inferred.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at, cut_by_capacity
from cutlayer.policies.ranks import ranks_above_deepest_cut
from cutlayer.policies.repeat import activations_repeat
from cutlayer.policies.select import everyone
from cutlayer.rounds.stream import stream


def splitfrozen(
    *,
    cut: int | None = None,
    deepest: int | None = None,
    least: int = 1,
    window: int | None = None,
    server_batch: int | None = None,
    cache: bool = True,
    cache_mib: int = 256,
    cache_dtype: str = "fp32",
    stages: int = 1,
    micro_batches: int = 1,
    decomposed: bool = False,
    seed: int = 0,
) -> Method:
    """Builds SplitFrozen.

    Args:
      cut: Blocks on every device; None cuts by capacity.
      deepest: With cut None, the most blocks on any device, which are not trained; None is a third of the model's.
      least: With cut None, the fewest blocks that a device must be able to hold.
      window: Samples that the server gathers before it draws a batch; None is one batch of every device.
      server_batch: Samples in a batch of the server; None is as many as in a device's.
      cache: Keep activations on the server, so that a sample is computed and sent once. An extension of ours.
      cache_mib: The memory that they may take; what is more is read from the disk.
      cache_dtype: What they are stored as: fp32 (as they arrived), bf16, or int8 with a scale for each token.
      stages: Into how many stages the server side is cut.
      micro_batches: Into how many a batch is divided on its way through them.
      decomposed: The paper's backward pass, gradients of inputs first and those of weights when nothing waits.
      seed: Of the shuffling.
    """
    return Method(
        plan=(
            everyone(),
            cut_by_capacity(deepest=deepest, least=least) if cut is None else cut_at(cut, trains=False),
            ranks_above_deepest_cut(least=stages),
            *((activations_repeat(),) if cache else ()),
        ),
        round=stream(
            window=window,
            server_batch=server_batch,
            cache=cache,
            cache_mib=cache_mib,
            cache_dtype=cache_dtype,
            stages=stages,
            micro_batches=micro_batches,
            decomposed=decomposed,
            seed=seed,
        ),
        aggregate=mean_per_block(),  # of one contribution: what the server trained
    )
