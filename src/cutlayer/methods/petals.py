"""Petals: a swarm of machines runs frozen blocks for whoever asks; devices keep what trains, and replay what fails.

Distributed Inference and Fine-tuning of Large Language Models Over The Internet
    Alexander Borzunov, Max Ryabinin, Artem Chumachenko, Dmitry Baranchuk, Tim Dettmers, Younes Belkada, Pavel Samygin,
    Colin Raffel. NeurIPS 2023. https://arxiv.org/abs/2312.08361

    the authors' code                                   here
    -----------------------------------------------     ------------------------------------------------
    client: embeddings, head, all that trains           device.talks.swarm.Swarm
    servers: runs of frozen blocks, stateless           server.span.SpanServer; rows `spans` of the fleet
    the client keeps the input of each span             device.chain.Chain
    a server that fails is banned, 15 s and doubling    policies.routing.Router
    the way is built anew from the block that is next   Chain.forward; in the backward pass Chain.back
    servers chosen by the length of their span          Router.hop
    who joins takes the weakest blocks; who could do    policies.placement.place, rebalance
    much better elsewhere moves (0.75)
    prompts of each block travel, their gradients back  adapters=everywhere: LoRA's tensors do
    8-bit blockwise activations                         wire.activations=int8, wire.gradients=int8: a scale a token

Training as in the released code; inference with its caches has no place here. What differs: trainable tensors are LoRA
factors and the head, not prompts; several devices share one adapter, which is averaged after each round as FedAvg does;
a batch is not cut into chunks of 1,024 tokens that run concurrently; machines and their blocks are in the plan of a
round, which a device gets with its adapter, and not in a distributed hash table; a span that moves is taken to have its
blocks at once. With a fleet that names no spans, its server runs all blocks.

Evidence: the authors' code for routing, placement and replay; the paper's numbers as quoted by others.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import whole_model
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.policies.spans import counted_of_spans, through_spans
from cutlayer.rounds.swarm import swarm


def petals(
    *,
    cut: int = 0,
    adapters: str = "everywhere",
    recover: str = "replay",
    quality: float = 0.75,
    fraction: float = 1.0,
) -> Method:
    """Builds Petals.

    Args:
      cut: Blocks that devices hold themselves, beside embeddings and head.
      adapters: Which blocks have one: everywhere, and their tensors travel with each call; or below, of the cut, alone.
      recover: What a failure costs: replay, what was lost of a step; restart, the step.
      quality: Spans move where the swarm's throughput is below so much of what could be reached; 0 for never.
      fraction: Of the fleet, drawn anew every round.
    """
    return Method(
        plan=(
            everyone(),
            random_fraction(fraction),
            through_spans(cut, trained=adapters, quality=quality, recover=recover),
            whole_model(),
        ),
        round=swarm(),
        aggregate=mean_per_block(),
        observe=counted_of_spans,
    )
