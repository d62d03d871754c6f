"""The data that leaves a device in a round: read from the script of what it may send. Nothing here knows a method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cutlayer.gate.forms import Forms, walked
from cutlayer.methods.method import Method
from cutlayer.run.inputs import ServerInputs
from cutlayer.types import RoundPlan
from cutlayer.wire.messages import Assignment, Message

Text = Literal["as labels", "as embeddings"]
"""The form in which the text leaves a device: the tokens that are to be learned, or embeddings, whose rows are the
tokens'."""


@dataclass(frozen=True, slots=True)
class Leaving:
    """The data that goes up beside adapters.

    Attributes:
      activations: whether activations do.
      labels: whether labels do.
      text: how the text does; None where it stays.
    """

    activations: bool
    labels: bool
    text: Text | None


def leaving(assignments: Mapping[str, Assignment], inputs: ServerInputs, method: Method) -> Leaving:
    """The data that devices may send under these assignments.

    Args:
      assignments: By device.
      inputs: What the run is made of.
      method: The run's.
    """
    said = [message for one in assignments.values() for message in _may_say(one, inputs, method)]
    labels = any(getattr(message, "labels", None) is not None for message in said)
    activations = {getattr(message, "device", "") for message in said if getattr(message, "h_BTD", None) is not None}
    return Leaving(bool(activations), labels, _text(activations, assignments.values(), inputs, labels=labels))


def assigned(plan: RoundPlan, run: str) -> dict[str, Assignment]:
    """Assignments of a plan without adapters, one device for each kind of part that somebody has."""
    kinds = {(device.cut, device.top): device for device in plan.devices}
    return {one.device: Assignment(run, plan.round, one.device, one, (0.0,), {}) for one in kinds.values()}


def _may_say(assignment: Assignment, inputs: ServerInputs, method: Method) -> Iterator[Message]:
    """A message of every form that a device may send in a step of this round, and at its end."""
    assignment = replace(assignment, plan=replace(assignment.plan, local_steps=1))
    forms = Forms(
        assignment,
        inputs.base,
        hidden_size=inputs.costs.hidden_size,
        longest_tokens=inputs.config.data.max_length,
        compression=inputs.compression,
        holds=method.round.holds,
    )
    for options in walked(method.round.script(assignment.plan, forms)):
        yield from (form.largest() for form in options)


def _text(sent: set[str], assignments: Iterable[Assignment], inputs: ServerInputs, *, labels: bool) -> Text | None:
    """The form in which the text leaves a device, if it does: what a language model is to learn is text, and so are
    embeddings."""
    if labels and inputs.config.data.task == "causal-lm":
        return "as labels"
    bare = {assignment.device for assignment in assignments if not assignment.plan.cut}
    return "as embeddings" if bare & sent else None


def sentences(found: Leaving, *, task: str) -> Sequence[str]:
    """Lines that tell a person what leaves a device."""
    if not found.activations:
        words = ["adapters and what is measured", *(["labels"] if found.labels else [])]
        return [f"leaves a device: {', '.join(words)}. Stays there: the text."]
    tokens = "the tokens that are learned, which are text" if task == "causal-lm" else "labels"
    words = ["activations at the cut", "the padding mask", *([tokens] if found.labels else []), "adapters"]
    lines = [
        f"leaves a device: {', '.join(words)}.",
        "In split methods with few blocks on the device a curious server can read the texts (docs/deploy.md, 7).",
    ]
    if found.text == "as embeddings":
        lines.append("Devices without a block send embeddings: their rows are the tokens, so the text itself leaves.")
    return lines
