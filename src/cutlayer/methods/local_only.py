"""Local only: the floor, where every device trains alone and nothing is averaged; metrics are means over devices.

No published system: the comparison that the papers of federated learning make.

    local LoRA                                here
    -------------------------------------     ------------------------------------------
    every device holds the whole model        whole_model()
    it goes on from its own adapter           personal: a scope for each device
    nothing is shared                         a mean is of one device alone

The metrics are means over the devices' own adapters, each on all of the validation data, so an evaluation costs as much
as there are devices. A run ends with an adapter for every device (`adapters/NAME/`); `adapter/` is the one of least
validation loss. Adapters still go up and down, so that the server can evaluate them: a fleet on its own would send
nothing.

Evidence: no published system.
"""

from __future__ import annotations

from cutlayer.methods.method import Method
from cutlayer.policies.aggregate import mean_per_block
from cutlayer.policies.cut import whole_model
from cutlayer.policies.scope import personal
from cutlayer.policies.select import everyone
from cutlayer.rounds.local import local


def local_only() -> Method:
    """Builds local training."""
    return Method(
        plan=(everyone(), whole_model()),
        round=local(),
        aggregate=mean_per_block(),  # of one contribution: a scope has one device
        scope=personal,
    )
