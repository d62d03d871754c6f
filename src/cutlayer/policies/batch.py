"""The number of samples that each device trains on in a local step.

MergeSFL: Split Federated Learning with Feature Merging and Batch Size Regulation
    Yunming Liao, Yang Xu, Hongli Xu, Lun Wang, Zhiwei Yao, Chunming Qiao. ICDE 2024.
    https://arxiv.org/abs/2311.13348

That the paper estimates the devices' state and regulates batch sizes by it is sure (reviews); the formulas are recalled
(confidence high for the proportion, medium for alpha, low for how the sizes are tuned to lower the KL).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cutlayer.errors import ConfigError
from cutlayer.policies.label_mix import label_distributions, label_kl
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import DevicePlan, History, RoundPlan


def fixed(batch_size: int | None = None) -> Planner:
    """The same number of samples for every device; None for the run's.

    Raises:
      ConfigError: Fewer than one.

    Example:
      >>> from cutlayer import everyone, fixed
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), fixed(16))
      >>> [device.batch_size for device in plan.devices]
      [16, 16, 16]
    """
    _check_largest(batch_size)

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        return plan.with_each(lambda device: replace(device, batch_size=batch_size or situation.batch_size))

    return planner


def speed_proportional(d_max: int | None = None, *, alpha: float = 0.8) -> Planner:
    """Gives each device as many samples as it has time for: all are then ready at the same time.

    The fastest device l gets `d_max`, the others floor(d_max (mu_l + beta_l) / (mu_i + beta_i)), at least 1, by the
    measured seconds per sample, and nobody more than its memory holds at its cut. A device that was never measured, in
    the first round every one, gets the run's batch size, or `d_max` if that is less.

    Args:
      d_max: Samples of the fastest device; None for the run's batch size.
      alpha: How much of the old average stays at a new measurement.

    Raises:
      ConfigError: A `d_max` below 1.

    Example:
      >>> from cutlayer import everyone, speed_proportional
      >>> from cutlayer.testing.playground import planned
      >>> from cutlayer.types import History, StepRecord
      >>> def record(device: str, seconds: float) -> StepRecord:
      ...     return StepRecord(0, device, 2, 8, 8, 1.0, seconds, 0.0, 0.0, 0, 0)
      >>> history = History([record("device-0", 1.0), record("device-1", 2.0)])
      >>> plan = planned(everyone(), speed_proportional(16), num_devices=2, round=1, history=history)
      >>> [device.batch_size for device in plan.devices]
      [16, 8]
    """
    _check_largest(d_max)

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        largest, measured = d_max or situation.batch_size, seconds_per_sample(situation.history, alpha)
        fastest = min((measured[device.device] for device in plan.devices if device.device in measured), default=0.0)

        def sized(device: DevicePlan) -> DevicePlan:
            if device.device not in measured:
                return _within_memory(replace(device, batch_size=min(situation.batch_size, largest)), situation)
            share = fastest / measured[device.device]  # first, so that it is exactly 1 for the fastest
            return _within_memory(replace(device, batch_size=max(1, int(largest * share))), situation)

        return plan.with_each(sized)

    return planner


def seconds_per_sample(history: History, alpha: float) -> dict[str, float]:
    """mu_i + beta_i: seconds of compute and of sending a sample, moving averages of what rounds measured.

    Sending is that of activations and their gradients. What a round sends once, whatever the batch, does not count.
    """
    averages: dict[str, float] = {}
    for record in history.records:
        if record.samples:
            measured = (record.busy_seconds + record.step_network_seconds) / record.samples
            averages[record.device] = alpha * averages.get(record.device, measured) + (1 - alpha) * measured
    return averages


def regulate_kl(max_kl: float | None, *, slack: float = 0.5) -> Planner:
    """Lowers batch sizes until the labels of the merged batch are near enough to the fleet's (`label_mix`).

    Greedily, sample by sample: the device whose lowering brings the KL down most, for as long as that is above `max_kl`
    and one does. Sizes are only lowered, so that no step takes longer, and never below the fraction 1 - `slack` of
    what they were, so that nobody waits for more than the fraction `slack` of a step. The rule is ours: the paper's
    could not be read.

    Args:
      max_kl: In nats; None leaves sizes alone.
      slack: 0 leaves sizes alone.

    Raises:
      ConfigError: A negative `max_kl`; when planning, labels that are not known.

    Example:
      >>> from cutlayer import everyone, random_fraction, regulate_kl
      >>> from cutlayer.testing.playground import planned
      >>> counts = {"device-0": (9, 1), "device-1": (9, 1), "device-2": (1, 9)}
      >>> plan = planned(everyone(), random_fraction(0.67), regulate_kl(0.0), label_counts=counts)
      >>> [(device.device, device.batch_size) for device in plan.devices]
      [('device-1', 4), ('device-2', 2)]
    """
    if max_kl is not None and not max_kl >= 0:
        raise ConfigError(f"method.max_kl: expected at least 0, or null, got {max_kl}. Change method.max_kl.")

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        if max_kl is None:
            return plan
        shares_NC = label_distributions(situation, [device.device for device in plan.devices])
        fleet_C = label_distributions(situation, [device.name for device in situation.fleet.devices]).mean(axis=0)
        sizes_N = np.array([device.batch_size for device in plan.devices], np.float64)
        least_N = np.maximum(1, np.ceil(sizes_N * (1 - slack)))
        while (kl := label_kl(sizes_N[None], shares_NC, fleet_C)[0]) > max_kl:
            lowered_PN = (sizes_N - np.eye(len(sizes_N)))[sizes_N > least_N]
            if len(lowered_PN) == 0:
                break
            kl_P = label_kl(lowered_PN, shares_NC, fleet_C)
            if kl_P.min() >= kl:
                break
            sizes_N = lowered_PN[kl_P.argmin()]
        return replace(
            plan,
            devices=tuple(replace(d, batch_size=int(size)) for d, size in zip(plan.devices, sizes_N, strict=True)),
        )

    return planner


def fill_ingress(ingress_mbit: float | None, d_max: int | None = None) -> Planner:
    """Raises all batch sizes by one factor until they use up what the server can take in (`ingress_samples`).

    The largest grows to no more than `d_max` (None: the run's batch size), and nobody to more than its memory holds.

    Args:
      ingress_mbit: Megabits per second; None leaves sizes alone.
      d_max: As of `speed_proportional`.

    Example:
      >>> from cutlayer import everyone, fill_ingress, fixed
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), fixed(1), fill_ingress(0.1), batch_size=8)
      >>> [device.batch_size for device in plan.devices]
      [6, 6, 6]
    """
    _check_largest(d_max)

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        if ingress_mbit is None:
            return plan
        largest = max(device.batch_size for device in plan.devices)
        total = sum(device.batch_size for device in plan.devices)
        factor = min(ingress_samples(ingress_mbit, situation) / total, (d_max or situation.batch_size) / largest)
        if factor <= 1:
            return plan
        return plan.with_each(
            lambda device: _within_memory(replace(device, batch_size=int(device.batch_size * factor)), situation)
        )

    return planner


def ingress_samples(ingress_mbit: float, situation: Situation) -> float:
    """Samples whose activations, at the longest text, the server takes in within a second.

    That a local step may bring the server one second's worth is our reading of the paper's budget.
    """
    return ingress_mbit * 1e6 / 8 / situation.costs.activation_bytes(1, situation.num_tokens)


def _within_memory(device: DevicePlan, situation: Situation) -> DevicePlan:
    """The device with its batch, or the largest smaller one that its memory holds."""
    room = situation.profile(device.device).memory_bytes
    while device.batch_size > 1 and situation.device_bytes(device) > room:
        device = replace(device, batch_size=device.batch_size - 1)
    return device


def _check_largest(d_max: int | None) -> None:
    if d_max is not None and d_max < 1:
        raise ConfigError(f"method.d_max: expected at least 1, or null, got {d_max}. Change method.d_max.")
