"""Planners that choose where each device is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cutlayer.errors import BudgetError, ConfigError, UnplacedError
from cutlayer.fleet.profile import DeviceProfile
from cutlayer.policies.plan import Planner, Situation
from cutlayer.types import DevicePlan, RoundPlan


def cut_at(cut: int, *, trains: bool = True) -> Planner:
    """Cuts every device after the same number of blocks.

    Args:
      cut: Blocks on every device.
      trains: False where devices only run forward, which takes less memory.

    Raises (when planning):
      ConfigError: The model has fewer blocks.
      BudgetError: A device cannot hold that many.

    Example:
      >>> from cutlayer import cut_at, everyone
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), cut_at(2))
      >>> [device.cut for device in plan.devices]
      [2, 2, 2]
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        check_range("cut", cut, situation)
        for device in plan.devices:
            _check_fits(replace(device if trains else _frozen(device, situation), cut=cut), situation)
        return plan.with_each(lambda device: replace(device, cut=cut))

    return planner


def cut_by_capacity(*, deepest: int | None = None, least: int = 1) -> Planner:
    """Cuts every device by its declared speed and memory, where devices only run forward.

    The fastest devices hold `deepest` blocks. Every other holds as many as it can run forward over a batch in the
    time that those take for theirs, as many as its memory holds and its owner lends, but `least` at any rate: a slow
    device with few blocks keeps up with a fast one. SplitFrozen cuts by capability; its rule is not published, this
    one is our reading. Cuts come from declared profiles alone, so they are the same in every round: put it before
    whatever thins the cohort.

    Args:
      deepest: The most blocks on any device; None for a third of the model's. What devices hold is not trained.
      least: The fewest blocks that a device must be able to hold; one that cannot is an error, never a silent 0.

    Raises (when planning):
      ConfigError: `deepest` or `least` is out of range, or a device's owner lends fewer than `least`.
      BudgetError: A device cannot hold `least` blocks.

    Example:
      >>> from cutlayer import cut_by_capacity, everyone
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), cut_by_capacity(deepest=2))
      >>> [device.cut for device in plan.devices]
      [1, 1, 2]
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        ceiling = max(1, situation.costs.num_blocks // 3) if deepest is None else deepest
        check_range("deepest", ceiling, situation)
        if not 0 <= least <= ceiling:
            raise ConfigError(
                f"method.least: expected 0 to method.deepest, {ceiling}, got {least}. Change one of the two."
            )

        def seconds(device: DevicePlan, cut: int) -> float:
            cost = situation.costs.device(replace(device, cut=cut), device.batch_size, situation.num_tokens)
            return cost.forward_flops / situation.profile(device.device).effective_flops

        frozen = [_frozen(device, situation) for device in plan.devices]
        pace = min(seconds(device, ceiling) for device in frozen) * (1 + 1e-9)

        def choose(device: DevicePlan) -> DevicePlan:
            profile, asleep = situation.profile(device.device), _frozen(device, situation)
            most = _lent(profile, ceiling, least)
            for cut in range(most, least, -1):
                fits = situation.device_bytes(replace(asleep, cut=cut)) <= profile.memory_bytes
                if fits and seconds(asleep, cut) <= pace:
                    return replace(device, cut=cut)
            _check_fits(replace(asleep, cut=least), situation)
            return replace(device, cut=least)

        return plan.with_each(choose)

    return planner


def cut_by_memory(*, least: int = 1) -> Planner:
    """Gives every device as many lower blocks as its memory holds, at most as many as its owner lends (`max_blocks`).

    Args:
      least: The fewest blocks a device may hold; one that cannot hold them is an error, never a silent 0.

    Raises (when planning):
      ConfigError: The model has fewer blocks than `least`, or a device's owner lends fewer.
      BudgetError: A device cannot hold `least` blocks; names the device, the need and what would fit.

    Example:
      >>> from cutlayer import cut_by_memory, everyone
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), cut_by_memory())
      >>> [device.cut for device in plan.devices]  # as many as its owner lends
      [1, 2, 3]
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        check_range("least", least, situation)
        return plan.with_each(lambda device: replace(device, cut=next(cuts_that_fit(device, situation, least))))

    return planner


def cuts_that_fit(device: DevicePlan, situation: Situation, least: int) -> Iterator[int]:
    """The cuts that a device's memory holds and its owner lends, from the deepest to `least`.

    Raises:
      ConfigError: Its owner lends fewer blocks than `least`.
      BudgetError: It cannot hold `least` blocks; names the device, the need and what would fit.
    """
    profile = situation.profile(device.device)
    for cut in range(_lent(profile, situation.costs.num_blocks, least), least, -1):
        if situation.device_bytes(replace(device, cut=cut)) <= profile.memory_bytes:
            yield cut
    _check_fits(replace(device, cut=least), situation)
    yield least


def whole_model() -> Planner:
    """Leaves the whole model on every device, the head included: federated learning.

    Raises (when planning):
      BudgetError: A device cannot hold it.

    Example:
      >>> from cutlayer import everyone, whole_model
      >>> from cutlayer.testing.playground import planned
      >>> plan = planned(everyone(), whole_model())
      >>> [(device.cut, device.alone) for device in plan.devices]
      [(3, True), (3, True), (3, True)]
    """

    def planner(plan: RoundPlan, situation: Situation) -> RoundPlan:
        blocks = situation.costs.num_blocks
        whole = plan.with_each(lambda device: replace(device, cut=blocks, top=blocks))
        for device in whole.devices:
            _check_fits(device, situation)
        return whole

    return planner


def _lent(profile: DeviceProfile, ceiling: int, least: int) -> int:
    """The most blocks that a device's owner lends, up to `ceiling`."""
    most = ceiling if profile.max_blocks is None else min(profile.max_blocks, ceiling)
    if most < least:
        raise UnplacedError(
            f"device {profile.name}: expected max_blocks to be at least method.least, {least}, got {most}. "
            f"Set method.least={most}, or leave the device out.",
            device=profile.name,
        )
    return most


def _frozen(device: DevicePlan, situation: Situation) -> DevicePlan:
    """The device without an adapter on any block: what it holds of a model that it only runs forward."""
    return replace(device, ranks=(0,) * situation.costs.num_blocks)


def check_range(option: str, cut: int, situation: Situation) -> None:
    """Raises ConfigError for a number of blocks that the model does not have."""
    if not 0 <= cut <= situation.costs.num_blocks:
        raise ConfigError(
            f"method.{option}: expected 0 to {situation.costs.num_blocks}, the model's blocks, got {cut}. "
            f"Change method.{option}."
        )


def _check_fits(device: DevicePlan, situation: Situation) -> None:
    profile = situation.profile(device.device)
    need = situation.device_bytes(device)
    if need > profile.memory_bytes:
        raise BudgetError(
            f"device {device.device}: expected room for the embeddings and blocks [0, {device.cut}), "
            f"{_mib(need)} at batch size {device.batch_size}, got {_mib(profile.memory_bytes)}. "
            f"{_what_fits(device, profile, situation)}",
            device=device.device,
            need_bytes=need,
            have_bytes=profile.memory_bytes,
        )


def _what_fits(device: DevicePlan, profile: DeviceProfile, situation: Situation) -> str:
    """The largest smaller demand that the device can meet."""
    for cut in range(device.cut - 1, 0, -1):
        if situation.device_bytes(replace(device, cut=cut)) <= profile.memory_bytes:
            return f"A cut of {cut} would fit."
    size = device.batch_size // 2
    while size >= 1:
        if situation.device_bytes(replace(device, batch_size=size)) <= profile.memory_bytes:
            return f"Batch size {size} would fit."
        size //= 2
    if situation.device_bytes(replace(device, cut=0)) <= profile.memory_bytes:
        return "Only the embeddings (cut 0) would fit: set method.least=0, or leave the device out."
    return "Not even the embeddings would fit: leave the device out."


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.4g} MiB"
