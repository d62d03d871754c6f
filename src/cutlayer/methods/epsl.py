"""EPSL: parallel split learning in which a share of the gradients is averaged over devices and broadcast.

Efficient Parallel Split Learning over Resource-constrained Wireless Edge Networks
    Zheng Lin, Guangyu Zhu, Yiqin Deng, Xianhao Chen, Yue Gao, Kaibin Huang, Yuguang Fang. IEEE TMC 2024.
    https://arxiv.org/abs/2303.15991

    the paper                                        here, with LoRA
    ---------------------------------------------    ------------------------------------------
    client-side models are not averaged              personal_below_the_cut; average=true shares them
    one server-side model, all activations at once   one server adapter; the step waits for everybody
    m = ceil(phi b), the share of the samples        phi
    mean over clients at the last layer              sum_i lambda_i z_ij, by the logits
    backward with m + C (b - m) gradients            at activations that the paper leaves open: variant
    m aggregated ones broadcast, others unicast      each device gets both; a broadcast's saving is noted
    subchannels, power and cut planned for latency   not here: cut

Certain is little: phi, that phi=0 is parallel split learning, and that last-layer gradients are aggregated (abstract).
That client sides are not averaged is said of parallel split learning in another abstract of the group. The formulas are
recalled with some confidence. With phi=0 this is a merged batch, one loss and each device its rows, which is mergesfl's
step; with average=true it is mergesfl with batch=fixed.

Ours: where the mean gradient passes back (variant), who stands with whom (pairing), lambda by what a device brings to
the step, and m from the smallest batch (docs of server/steps/epsl.py). Gradients of different texts do not align, so
for causal LM the default averages on the wire alone; with another variant, keep phi at 0.25 or below.

A device's bytes do not shrink, since each link is a device's own: it gets m shared gradients and its own b - m. What
shrinks is the server's backward pass (phi/C + 1 - phi of it; wire leaves it whole), and what the server sends where the
medium can broadcast (facts `server_backward_flops` and `repeated_bytes` of a device's round). Variants mean and sample
take m passes forward more, the price of the open choice.

Evidence: phi from the abstract, formulas recalled; the three variants, pairing and m are ours.
"""

from __future__ import annotations

from cutlayer.errors import ConfigError
from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import cut_at
from cutlayer.policies.scope import personal_below_the_cut, shared
from cutlayer.policies.select import everyone
from cutlayer.rounds.split import split
from cutlayer.server.steps.epsl import VARIANTS
from cutlayer.server.steps.epsl import epsl as epsl_step


def epsl(
    *,
    cut: int = 1,
    phi: float = 0.5,
    variant: str = "auto",
    pairing: bool = True,
    average: bool = False,
    seed: int = 0,
) -> Method:
    """Builds EPSL.

    Args:
      cut: Blocks on every device.
      phi: The share of a batch whose gradients are averaged over devices, from 0 (parallel split learning) to 1.
      variant: At which activations the mean gradient passes back: mean (of the devices), sample (of one), or wire
        (nowhere: an exact backward pass, gradients averaged at the cut); auto is mean, and wire for causal LM.
      pairing: Whether samples of one label are averaged with each other as far as can be; False takes the first ones.
      average: Whether device adapters are averaged every round, by samples (SFL); False leaves each device its own.
      seed: Of who stands with whom among equals, and of what variant sample draws.
    """
    if not 0 <= phi <= 1:
        raise ConfigError(f"method.phi: expected a share from 0 to 1, got {phi}. Change method.phi.")
    if variant not in VARIANTS:
        raise ConfigError(
            f"method.variant: expected one of {', '.join(VARIANTS)}, got {variant!r}. Change method.variant."
        )
    return Method(
        plan=(everyone(), cut_at(cut)),
        round=split(server_step=epsl_step(phi, variant=variant, pairing=pairing, seed=seed)),
        aggregate=mean_per_block(),
        scope=shared if average else personal_below_the_cut,
    )
