"""Facts about a real fleet before its devices come: those that somebody declared, or the server's own measure."""

from __future__ import annotations

from cutlayer.device.probe import probe
from cutlayer.fleet.profile import MEASURED, Fleet, ServerProfile, load_fleet
from cutlayer.run.inputs import ServerInputs
from cutlayer.settings import hardware


def fleet_of(inputs: ServerInputs) -> Fleet:
    """The machines as far as they are known; devices that nobody declared measure themselves when they come.

    Args:
      inputs: What the run is made of.

    Raises:
      ConfigError: There is no such fleet.
    """
    if inputs.config.fleet != MEASURED:
        return load_fleet(inputs.config.fleet)
    probed = probe(hardware(inputs.config.hardware), inputs.base.dtype)
    server = ServerProfile(flops_per_second=probed.flops_per_second, efficiency=1.0, memory_bytes=probed.memory_bytes)
    return Fleet(name=MEASURED, source="measured", server=server, devices=())
