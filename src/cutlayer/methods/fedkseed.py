"""FedKSeed: weights tuned by forward passes along K seeds; a round sends a few kilobytes of scalars.

Federated Full-Parameter Tuning of Billion-Sized Language Models with Communication Cost under 18 Kilobytes
    Zhen Qin, Daoyuan Chen, Bingchen Qian, Bolin Ding, Yaliang Li, Shuiguang Deng. ICML 2024.
    https://arxiv.org/abs/2312.06353

    the paper, and its code                              here
    ------------------------------------------------     ------------------------------------------
    K candidate seeds                                    policies.seeds.candidate_seeds, from the run's seed
    down: K accumulated scalars G                        SeedsRound.broadcast
    w = w0 - lr sum_k G_k z(s_k)                         model.standing.Standing.move, by what differs
    tau steps: g = (l+ - l-) / (2 eps) along one seed    model.kseed.Walk.step
    up: tau pairs (seed, g)                              Update.facts: int16 indices, fp32 slopes
    G_k += sum_c p_c gsum_c[k]                           policies.seed_sums.gathered
    Pro: seeds by mean |g|, min-max, softmax             pro; policies.seeds.SlopeHistory

Certain, from the authors' code: all of this; dropout off, the stream of batches goes on from round to round, K 4096,
eps 5e-4, tau 200, batch 1, 5 % of the devices in a round, a constant rate (3e-7 for all weights). Ours: noise from a
counter (`model/noise.py`), so that CPU and GPU agree; weights on a grid, so that whoever was sent the sums has the
weights of who stepped there, to the bit; a round has the rate of its first step; devices count by what they trained in
the round, where the code counts the batches that they have.

Evidence: the authors' code.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from cutlayer.device.talks.seeds import standing_of
from cutlayer.methods.method import Method
from cutlayer.model.base import Base
from cutlayer.model.moved import read_sums
from cutlayer.model.standing import Standing
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import whole_model
from cutlayer.policies.seed_search import SeedSearch, searching, seed_search
from cutlayer.policies.select import everyone, random_fraction
from cutlayer.rounds.seeds import SeedsRound


def fedkseed(
    *,
    seeds: int = 4096,
    epsilon: float = 5e-4,
    pro: bool = False,
    full: bool = True,
    clip: float = 0.0,
    fraction: float = 1.0,
    seed: int = 0,
) -> Method:
    """Builds FedKSeed.

    Args:
      seeds: Candidate seeds (K).
      epsilon: How far to go to either side along a seed's noise.
      pro: Whether seeds along which the loss was steep are drawn rather than others (FedKSeed-Pro).
      full: Whether all weights of the model move; False moves LoRA alone.
      clip: A step is not taken if its two losses differ by more; 0 is no limit.
      fraction: Of the fleet, drawn anew every round; the paper has a twentieth.
      seed: Of the candidate seeds.
    """
    search = seed_search(seeds, seed, epsilon, clip, full=full)
    round = SeedsRound(search, pro=pro)
    return Method(
        plan=(
            everyone(),
            random_fraction(fraction),
            whole_model(),
            searching(search),
        ),
        round=round,
        aggregate=mean_per_block(),  # of one contribution: what the sums come to
        broadcast=round.broadcast,
        moved=round if full else None,
    )


def rebuilt(base: Base, sums: Path) -> Standing:
    """The weights of a run, made again from the base and the file of its sums: a few kilobytes.

    Args:
      base: The model as it is stored, for the task and the classes of the run.
      sums: `model/sums.safetensors` of the run.

    Raises:
      ModelError: The file holds no sums.
    """
    values, facts = read_sums(sums)
    search = SeedSearch(**{field.name: facts[field.name] for field in fields(SeedSearch)})
    standing = standing_of(base, search, facts["run_seed"])
    standing.move(values)
    return standing
