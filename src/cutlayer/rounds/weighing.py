"""The weighing round: as the up-and-down round (`rounds/split.py`), and both ends weigh the LoRA modules they train.

    device                              wire                    server
    each local step as there; scores of its modules are added up
                                                                scores of the server's modules are noted of the device
                          -> Update(adapter, scores) ->

What a round's devices and the server found together is of every module of the model, for the plans of later rounds
(`policies/importance_ranks.py`).
"""

from __future__ import annotations

import torch

from cutlayer.device.talks.weighing import SHAPE
from cutlayer.gate.forms import Forms, Listed, Script, meta
from cutlayer.policies.importance_ranks import EXACT, PROXY, Weigh
from cutlayer.policies.order import Order
from cutlayer.rounds.round import Round
from cutlayer.rounds.split import hold_turn, up_and_down
from cutlayer.server.owners import Owner
from cutlayer.server.steps.one_at_a_time import one_device_at_a_time
from cutlayer.server.steps.weigh import train_and_weigh
from cutlayer.types import Adapter, DevicePlan


def weighing_split(order: Order, *, owner: Owner) -> Round:
    """Builds the weighing round, in which one device is served at a time. Its plan says when both ends weigh
    (`policies.importance_ranks.weighing`).

    Args:
      order: Which of those who have arrived is next.
      owner: One server adapter per device, or one for all.

    Example:
      >>> from cutlayer import fifo, one_for_all, weighing_split
      >>> round = weighing_split(fifo(), owner=one_for_all)
      >>> round.shape.name, round.divisible
      ('weighing', False)
    """
    step = one_device_at_a_time(order, owner=owner, training=train_and_weigh)
    return up_and_down(SHAPE, script, hold_turn, step, cuts_batches=False)


def script(plan: DevicePlan, forms: Forms) -> Script:
    """A batch for each local step, then the update with the device's scores."""
    for step in range(plan.local_steps):
        yield from forms.batch(step)
    weigh = plan.clause(Weigh)
    num_modules = sum(".lora_A." in name for name in forms.shapes)
    if weigh is None or not num_modules:
        yield forms.update()
        return
    scores = meta((num_modules,), torch.float32)
    said = {PROXY: scores, EXACT: scores} if weigh.exact else {PROXY: scores}

    def check(facts: Adapter) -> None:
        for name, values in facts.items():
            if bool((values < 0).any()):
                raise forms.refused("wrong-facts", f"{name} scores from 0 on", float(values.min()))

    yield forms.update(Listed(forms, said, forms.shapes, check))
