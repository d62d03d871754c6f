"""Where each device is cut."""

from __future__ import annotations

from dataclasses import replace

from cutlayer.errors import BudgetError, ConfigError
from cutlayer.fleet.profile import DeviceProfile
from cutlayer.policies.plan import Known, Planner
from cutlayer.types import DevicePlan, RoundPlan


def cut_at(cut: int) -> Planner:
    """Cuts every device after the same number of blocks.

    Raises (when planning):
      ConfigError: The model has fewer blocks.
      BudgetError: A device cannot hold that many.
    """

    def planner(plan: RoundPlan, known: Known) -> RoundPlan:
        _check_range("cut", cut, known)
        for device in plan.devices:
            _check_fits(replace(device, cut=cut), known)
        return plan.with_each(lambda device: replace(device, cut=cut))

    return planner


def cut_by_memory(*, least: int = 1) -> Planner:
    """Gives every device as many lower blocks as its memory holds, at most as many as its owner lends (`max_blocks`).

    Args:
      least: The fewest blocks a device may hold; one that cannot hold them is an error, never a silent 0.

    Raises (when planning):
      ConfigError: The model has fewer blocks than `least`, or a device's owner lends fewer.
      BudgetError: A device cannot hold `least` blocks; names the device, the need and what would fit.
    """

    def planner(plan: RoundPlan, known: Known) -> RoundPlan:
        _check_range("least", least, known)

        def choose(device: DevicePlan) -> DevicePlan:
            profile = known.profile(device.device)
            blocks = known.costs.num_blocks
            most = blocks if profile.max_blocks is None else min(profile.max_blocks, blocks)
            if most < least:
                raise ConfigError(
                    f"device {device.device}: expected max_blocks to be at least method.least, {least}, got {most}. "
                    f"Set method.least={most}, or leave the device out."
                )
            for cut in range(most, least, -1):
                if known.device_bytes(replace(device, cut=cut)) <= profile.memory_bytes:
                    return replace(device, cut=cut)
            smallest = replace(device, cut=least)
            _check_fits(smallest, known)
            return smallest

        return plan.with_each(choose)

    return planner


def whole_model() -> Planner:
    """Leaves the whole model on every device, the head included: federated learning.

    Raises (when planning):
      BudgetError: A device cannot hold it.
    """

    def planner(plan: RoundPlan, known: Known) -> RoundPlan:
        whole = plan.with_each(lambda device: replace(device, cut=known.costs.num_blocks, head=True))
        for device in whole.devices:
            _check_fits(device, known)
        return whole

    return planner


def _check_range(option: str, cut: int, known: Known) -> None:
    if not 0 <= cut <= known.costs.num_blocks:
        raise ConfigError(
            f"method.{option}: expected 0 to {known.costs.num_blocks}, the model's blocks, got {cut}. "
            f"Change method.{option}."
        )


def _check_fits(device: DevicePlan, known: Known) -> None:
    profile = known.profile(device.device)
    need = known.device_bytes(device)
    if need > profile.memory_bytes:
        raise BudgetError(
            f"device {device.device}: expected room for the embeddings and blocks [0, {device.cut}), "
            f"{_mib(need)} at batch size {device.batch_size}, got {_mib(profile.memory_bytes)}. "
            f"{_what_fits(device, profile, known)}",
            device=device.device,
            need_bytes=need,
            have_bytes=profile.memory_bytes,
        )


def _what_fits(device: DevicePlan, profile: DeviceProfile, known: Known) -> str:
    """The largest smaller demand that the device can meet."""
    for cut in range(device.cut - 1, 0, -1):
        if known.device_bytes(replace(device, cut=cut)) <= profile.memory_bytes:
            return f"A cut of {cut} would fit."
    size = device.batch_size // 2
    while size >= 1:
        if known.device_bytes(replace(device, batch_size=size)) <= profile.memory_bytes:
            return f"Batch size {size} would fit."
        size //= 2
    if known.device_bytes(replace(device, cut=0)) <= profile.memory_bytes:
        return "Only the embeddings (cut 0) would fit: set method.least=0, or leave the device out."
    return "Not even the embeddings would fit: leave the device out."


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.4g} MiB"
