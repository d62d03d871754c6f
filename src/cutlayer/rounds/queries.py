"""The queries round: every device trains by itself, by forward passes alone (`device/talks/queries.py`).

As the local round, but that an update has only what moves: B and the head.
"""

from __future__ import annotations

from cutlayer.device.talks.queries import SHAPE, moved_shapes
from cutlayer.gate.forms import Forms, Listed, Script
from cutlayer.rounds.local import alone
from cutlayer.rounds.round import Round
from cutlayer.types import DevicePlan


def queries() -> Round:
    """Builds the queries round. Its plan must leave the whole model on every device, and say how often it asks
    (`policies.queries.asking`).

    Example:
      >>> from cutlayer import queries
      >>> queries().shape.name
      'queries'
    """
    return alone(SHAPE, script)


def script(_plan: DevicePlan, forms: Forms) -> Script:
    """One update, without A."""
    yield forms.update(Listed(forms, {}, moved_shapes(forms.shapes)))
