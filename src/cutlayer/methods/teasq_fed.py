"""TEASQ-Fed: no barrier: idle devices apply for tasks, and a buffer of sparse, quantised updates moves the adapter.

Efficient Asynchronous Federated Learning with Sparsification and Quantization
    Juncheng Jia, Ji Liu, Chendi Zhou, Hao Tian, Mianxiong Dong, Dejing Dou. 2023.
    https://arxiv.org/abs/2312.15186

    the paper                                             here
    -------------------------------------------------     ------------------------------------------
    an idle device applies; granted if fewer than N C     everyone(), in_random_order(); buffered(concurrency=C):
      are at work                                           the next in line begins when one is done
    it minimises F(w) + mu / 2 ||w - w_t||^2              holding_near(mu)
    the buffer is full with N gamma updates               buffered(gamma): then a round ends; late work is kept
    S(d) = (d + 1)^-a; the mean weighted by S n           staleness_weighted(power=a)
    w <- (1 - alpha_t) w + alpha_t mean                   staleness_weighted(mixing=alpha)
    largest p_s of an update, in p_q bits at random       sparse_then_dense, wire/codecs.Sparse
    packed less and less while the run goes on            the same: both go up by a notch, `notches` parts of a run

Certain, from the abstract: devices apply, their number at a time is bounded, a buffer, weights by age, sparsification
and quantisation. Recalled, confidence medium: the formulas, and that the values are mixed and not their differences.
All constants are ours, after FedAsync's. Ours too: what is packed is the difference to the version that a device was
sent, because the largest of the weights would be no model; only the way up is packed so (`wire.adapters` packs both); a
bitmap says which numbers are kept; the first pair is an option where the paper searches for it by a profile run; a
device that is done applies again when the buffer has been emptied. N is the number of devices that are there.

A run file that says something of stragglers overrides both the buffer and the concurrency.

Neutral: concurrency=1.0, buffer=1.0, alpha=1.0, power=0.0, mu=0.0, share=1.0, bits=32.

Evidence: abstract; formulas and constants from memory or ours.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.cut import whole_model
from cutlayer.policies.held_near import holding_near
from cutlayer.policies.select import everyone, in_random_order
from cutlayer.policies.sparse_then_dense import sparse_then_dense
from cutlayer.policies.staleness import staleness_weighted
from cutlayer.policies.stragglers import buffered
from cutlayer.rounds.held_near import held_near


def teasq_fed(
    *,
    concurrency: float = 0.5,
    buffer: float = 0.1,
    alpha: float = 0.6,
    power: float = 0.5,
    mu: float = 0.005,
    share: float = 0.25,
    bits: int = 8,
    notches: int = 6,
) -> Method:
    """Builds TEASQ-Fed.

    Args:
      concurrency: Of the devices that are there, the part that may be at work at a time (C).
      buffer: Of them, how many updates are waited for before the adapter moves (gamma).
      alpha: How far the adapter goes to the mean of updates that are not stale.
      power: How fast an update loses weight with its age (a); 0 does not look at age.
      mu: Weight of half the squared distance to the adapter that a device was sent.
      share: Of an update's numbers that are kept in the first rounds.
      bits: Of each of them: 4, 8, 16 or 32.
      notches: Parts of the run; with each, share and bits go up by a notch.
    """
    return Method(
        plan=(
            everyone(),
            in_random_order(),
            whole_model(),
            holding_near(mu),
            sparse_then_dense(share, bits, notches),
        ),
        round=held_near(),
        aggregate=staleness_weighted(mixing=alpha, power=power),
        patience=buffered(buffer, concurrency=concurrency, rebased=False),
    )
