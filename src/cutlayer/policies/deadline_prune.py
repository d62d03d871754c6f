"""The share that each device prunes, so that its round ends in time: in closed form.

A round of a device takes A_k to compute and Q_k / r_k to send what it trained, and both fall in proportion to what is
left of its model:

    (1 - rho_k) (A_k + Q_k / r_k) <= T        rho_k = min(max(1 - T / (A_k + Q_k / r_k), 0), most)

Of ratios that are in time the least is best, because the error that pruning makes grows with the ratio. (Hierarchical
pruning, arXiv 2305.09042: that ratio and bandwidth have closed forms is the paper's; this form of the ratio follows
from its model, and its bandwidth shares are left out: every device has its own link.)
"""

from __future__ import annotations

from statistics import median

from cutlayer.errors import ConfigError
from cutlayer.policies.plan import Planner, Situation
from cutlayer.policies.prune import Prune
from cutlayer.types import DevicePlan, RoundPlan


def ratio_in_time(seconds: float, threshold: float, most: float) -> float:
    """The pruning ratio of a device.

    Args:
      seconds: Of its round with nothing pruned.
      threshold: That its round may take.
      most: No device prunes more.

    Example:
      >>> [ratio_in_time(seconds, threshold=4.0, most=0.7) for seconds in (2.0, 5.0, 8.0, 100.0)]
      [0.0, 0.19999999999999996, 0.5, 0.7]
    """
    return min(max(1.0 - threshold / seconds, 0.0), most)


def full_seconds(device: DevicePlan, situation: Situation) -> float:
    """The round of a device that prunes nothing: its steps, and sending what it trained.

    Args:
      device: Its plan.
      situation: The run's.
    """
    profile, costs = situation.profile(device.device), situation.costs
    cost = costs.device(device, device.batch_size, situation.num_tokens)
    computes = device.local_steps * (cost.forward_flops + cost.backward_flops) / profile.effective_flops
    return computes + 8 * costs.device_adapter_bytes(device) / profile.up_bits_per_second


def pruned_in_time(threshold: float | None, most: float) -> Planner:
    """Lets each device prune as much as it must to end its round in time. Comes after `whole_model`.

    Args:
      threshold: Seconds of a round; None for the median of the devices' rounds with nothing pruned.
      most: No device prunes more; 0 plans nothing.

    Raises:
      ConfigError: A threshold that is no time, or a share that is not from 0 to below 1.

    Example:
      >>> from cutlayer import everyone, pruned_in_time, whole_model
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), whole_model(), pruned_in_time(None, 0.7))
      >>> [[round(clause.ratio, 2) for clause in device.clauses] for device in plan.devices]
      [[0.64], [], []]
    """
    if threshold is not None and not threshold > 0:
        raise ConfigError(f"method.threshold: expected seconds above 0, got {threshold}. Change method.threshold.")
    if not 0 <= most < 1:
        raise ConfigError(f"method.prune: expected a share from 0 to below 1, got {most}. Change method.prune.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        if not plan.devices or not most:
            return plan
        seconds = {device.device: full_seconds(device, situation) for device in plan.devices}
        limit = median(seconds.values()) if threshold is None else threshold

        def pruned(device: DevicePlan) -> DevicePlan:
            ratio = ratio_in_time(seconds[device.device], limit, most)
            return device.having(Prune(ratio, score=False)) if ratio > 0 else device

        return plan.with_each(pruned)

    return planner
