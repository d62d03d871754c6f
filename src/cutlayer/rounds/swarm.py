"""The swarm round: every device trains by itself, through machines that run blocks for it (`device/talks/swarm.py`).

    device                              wire                    server
                          <- Assignment(plan with the spans, adapter) <-
    local_steps times:    -> SpanCall -> span ... <- SpanAnswer <-
                          -> Update(adapter, what was counted) ->       contributions to the aggregate

As the local round, but that an update says what became of the device's calls.
"""

from __future__ import annotations

import torch

from cutlayer.device.talks.swarm import SHAPE, SPANS
from cutlayer.gate.forms import Forms, Listed, Script, meta
from cutlayer.policies.spans import COUNTED, Through
from cutlayer.rounds.local import alone
from cutlayer.rounds.round import Round
from cutlayer.types import Adapter, DevicePlan

MOST = 2**48
"""The most that a device may count in a round: bytes of a year at 70 Mbit/s."""


def swarm() -> Round:
    """Builds the swarm round. Its plan says which blocks are run by others (`policies.spans.through_spans`).

    Example:
      >>> from cutlayer import swarm
      >>> swarm().shape.name
      'swarm'
    """
    return alone(SHAPE, script)


def script(plan: DevicePlan, forms: Forms) -> Script:
    """One update, with what the device counted where others run blocks for it."""
    if plan.clause(Through) is None:
        yield forms.update()
        return

    def counts(facts: Adapter) -> None:
        for name, number in zip(COUNTED, facts[SPANS].tolist(), strict=True):
            forms.expect_between("wrong-counts", name, 0, number, MOST)

    said = {SPANS: meta((len(COUNTED),), torch.int64)}
    yield forms.update(Listed(forms, said, forms.shapes, counts))
