"""FedProx: federated averaging in which each device is held near what was broadcast.

Federated Optimization in Heterogeneous Networks
    Tian Li, Anit Kumar Sahu, Manzil Zaheer, Maziar Sanjabi, Ameet Talwalkar, Virginia Smith. MLSys 2020.
    https://arxiv.org/abs/1812.06127

    the paper                                         here
    ---------------------------------------------     ------------------------------------------
    h(w) = F(w) + mu / 2 ||w - w0||^2                 proximal.ProximalTalk: its gradient, mu (w - w0)
    devices of unequal work                           train.local_steps is everyone's; late work: train.late=use
    the mean of what devices return                   mean_per_block()

mu = 0 is federated averaging, bit for bit. The distance is squared, as in the paper.

Neutral: mu=0.0.

Evidence: general knowledge of the paper.
"""

from __future__ import annotations

from cutlayer import Method, RoundPlan, everyone, mean_per_block, whole_model
from cutlayer.errors import ConfigError
from cutlayer.gate.forms import Forms, Script
from cutlayer.policies.plan import Planner, Situation
from cutlayer.rounds.local import alone
from cutlayer.types import DevicePlan
from my_method.proximal import SHAPE, Proximal


def fedprox(*, mu: float = 0.01) -> Method:
    """Builds FedProx.

    Args:
      mu: Weight of the squared distance; 0 is federated averaging.
    """
    return Method(
        plan=(everyone(), whole_model(), held_near(mu)),
        round=alone(SHAPE, script),
        aggregate=mean_per_block(),
    )


def held_near(mu: float) -> Planner:
    """Every device is held near what was broadcast.

    Raises:
      ConfigError: A negative mu.
    """
    if not mu >= 0:
        raise ConfigError(f"method.mu: expected at least 0, got {mu}. Change method.mu.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:  # noqa: ARG001
        return plan.with_each(lambda device: device.having(Proximal(mu)))

    return planner


def script(_plan: DevicePlan, forms: Forms) -> Script:
    """The messages that a device may send: one update."""
    yield forms.update()
