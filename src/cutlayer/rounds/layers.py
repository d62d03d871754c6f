"""The layers round: devices run backward block by block for as long as they may, and send the blocks they reached.

    device                              wire                    server
                          <- Assignment(plan, adapter) <-
    local_steps times: forward; backward from the output down, until the step's time is up
                          -> Update(blocks reached) ->          contributions to the aggregate

That is a device with the whole model. Below a cut (`server_step`) each step goes up and down as in `rounds/split.py`,
the server trains its part to the end, and the device walks down from the cut.

A step is never left out because time is short: its forward pass is run, and where nothing of it can be followed back,
nothing moves. The round itself ends by the plan's deadline (`rounds/patience.py`): a `Close` ends a step between two
blocks, and what it has reached counts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cutlayer.device.talks.layers import SHAPE, names_in
from cutlayer.gate.forms import Forms, Script, Shape, meta
from cutlayer.policies.layerwise import REACHED
from cutlayer.rounds.local import alone
from cutlayer.rounds.round import Round
from cutlayer.rounds.split import hold_turn, up_and_down
from cutlayer.server.steps.step import ServerStep
from cutlayer.types import Adapter, DevicePlan


def layers(*, server_step: ServerStep | None = None) -> Round:
    """Builds the layers round.

    Args:
      server_step: How arriving activations are processed, where devices hold the blocks below a cut; None where each
        holds the whole model.

    Example:
      >>> from cutlayer import fifo, layers, one_device_at_a_time
      >>> layers().divisible, layers(server_step=one_device_at_a_time(fifo())).shape.name
      (True, 'layers')
    """
    if server_step is None:
        return alone(SHAPE, script)
    return up_and_down(SHAPE, script, hold_turn, server_step, cuts_batches=False)


def script(plan: DevicePlan, forms: Forms) -> Script:
    """A batch for each local step, of a device below a cut, then the update of what was reached."""
    for step in range(0 if plan.alone else plan.local_steps):
        yield from forms.batch(step)
    yield forms.update(_Reached(forms, plan))


class _Reached:
    """The facts of an update of some blocks: see `gate.forms.Facts`."""

    def __init__(self, forms: Forms, plan: DevicePlan) -> None:
        self._forms, self._steps = forms, plan.local_steps
        self._places = plan.cut + plan.alone

    def largest(self) -> Adapter:
        return {REACHED: meta((self._places,), torch.int32)}

    def check(self, facts: Adapter, *, diverged: bool) -> None:  # noqa: ARG002
        self._forms.check_tensors("facts", facts, self.largest())
        counts = facts[REACHED].tolist()
        if counts != sorted(counts) or not all(0 <= count <= self._steps for count in counts):
            raise self._forms.refused("wrong-facts", f"from 0 to {self._steps} steps, none above fewer", counts)

    def shapes(self, facts: Adapter | None) -> Mapping[str, Shape]:
        full = self._forms.shapes
        if facts is None:
            return full
        return {name: full[name] for name in names_in(self._forms.base, full, facts[REACHED].tolist())}
