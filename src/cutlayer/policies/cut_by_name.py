"""The option `cut` of a method, which says where devices are cut."""

from __future__ import annotations

from cutlayer.errors import ConfigError
from cutlayer.policies.cut import cut_at, cut_by_memory
from cutlayer.policies.latency_plan import cut_by_latency
from cutlayer.policies.plan import Planner


def cut_by_name(cut: int | str, *, least: int = 1) -> Planner:
    """The planner that an option stands for.

    Args:
      cut: Blocks on every device; `memory`, as many as each device's memory holds; or `latency`, as many as make the
        round short.
      least: For memory and latency, the fewest blocks that a device must be able to hold.

    Raises:
      ConfigError: Another word.

    Example:
      >>> from cutlayer import cut_by_name, everyone
      >>> from cutlayer.testing.playground import planned
      >>> [[device.cut for device in planned(everyone(), cut_by_name(cut)).devices] for cut in (1, "memory")]
      [[1, 1, 1], [1, 2, 3]]
    """
    if isinstance(cut, int):
        return cut_at(cut)
    if cut == "memory":
        return cut_by_memory(least=least)
    if cut == "latency":
        return cut_by_latency(least=least)
    raise ConfigError(f"method.cut: expected a number of blocks, memory or latency, got {cut!r}. Change method.cut.")
