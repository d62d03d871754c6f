"""Forms for a device that judges an adapter (`rounds/judging.py`): batches of held-out rows, then their sums."""

from __future__ import annotations

from cutlayer.gate.forms import MOST_HELD_OUT, Form, Forms, Script
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import HeldOut, Judge


def script(asked: Judge, forms: Forms) -> Script:
    """Yields the form of a device's sums; unless it holds the whole model, first those of as many batches as it has."""
    for number in range(0 if asked.plan.alone else MOST_HELD_OUT):
        if not isinstance((yield forms.held_out(number), forms.judged(asked.classes)), HeldOut):
            return
    yield forms.judged(asked.classes)


def options(asked: Judge, forms: Forms) -> tuple[Form, ...]:
    """The forms of all that the script allows."""
    return (forms.judged(asked.classes), *(() if asked.plan.alone else (forms.held_out(0),)))


def limit(asked: Judge, forms: Forms) -> int:
    """The length of the longest frame, in bytes."""
    return max(frame_bytes(form.largest()) for form in options(asked, forms))
