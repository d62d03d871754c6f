"""The round held near: as the local round, but that a device is pulled towards the adapter that it was sent.

    device                              wire                    server
                          <- Assignment(plan, adapter) <-
    local_steps times: batch -> forward, loss, backward, + mu (w - w0), adapter step
                          -> Update(adapter) ->                 contributions to the aggregate

The term is that of FedProx (Li et al., MLSys 2020, arXiv 1812.06127). With mu = 0 this is the local round, bit for bit.
"""

from __future__ import annotations

from cutlayer.device.talks.held_near import SHAPE
from cutlayer.rounds.local import alone, script
from cutlayer.rounds.round import Round


def held_near() -> Round:
    """Builds the round held near; how near, each device's plan says (`policies/held_near.py`).

    Example:
      >>> from cutlayer.rounds.held_near import held_near
      >>> held_near().shape.name
      'held-near'
    """
    return alone(SHAPE, script)
