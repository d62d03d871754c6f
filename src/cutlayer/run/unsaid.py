"""Defaults that a real fleet takes where nobody said anything: others than those of a simulated one."""

from __future__ import annotations

from cutlayer.config import RunConfig
from cutlayer.fleet.profile import MEASURED
from cutlayer.methods.table import found

AS_MANY_AS_FIT, BY_TIME = "memory", "latency"
"""Words of `cut_by_name`: the default of a method, and what a real fleet takes in its place."""


def on_real_machines(config: RunConfig, *, declared: bool) -> RunConfig:
    """The config with what a real fleet takes where nobody said anything.

    A method that would give devices as many blocks as fit cuts them so that a round takes the least time
    (docs/decisions/0046-cut-by-time.md). Machines that nobody described measure themselves.

    Args:
      config: As it was given. One that a run has written down says everything, and stays as it is.
      declared: Whether the machines are those of the default fleet where none is named.

    Raises:
      ConfigError: There is no such method.

    Example:
      >>> config = on_real_machines(RunConfig(), declared=False)
      >>> config.method.name, config.method.options, config.fleet
      ('memsfl', {'cut': 'latency'}, 'measured')
    """
    method = config.method
    if "cut" not in method.options and found(method.name, method.sha256).options.get("cut") == AS_MANY_AS_FIT:
        config = config.model_copy(update={"method": method.model_copy(update={"cut": BY_TIME})})
    if not declared and "fleet" not in config.model_fields_set:
        config = config.model_copy(update={"fleet": MEASURED})
    return config
