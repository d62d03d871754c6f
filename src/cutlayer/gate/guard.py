"""The guard: what a device sends is looked at, field by field, before anything is computed or allocated of it.

A device proved its name when it came in (`roster.py`); here it is held to its part of the plan, by the script of the
round's shape, which says what may come next (`forms.py`). Twice, because what arrives may be packed (`packing.py`):

    check_form      as it travelled: kind, run, round, sender, and all that the form of this point of the script says
    check_values    after unpacking: nothing that is not finite, or as large as nothing that trains

An honest device may be late: a message of a round that is over passes as the mere name of that round, with nothing in
it, for whoever drops and counts it (`rounds/patience.py`).

The form comes first, so unpacking makes no tensor that the plan does not allow; and `frame_limit` bounds the bytes
before there is a form. Whatever fails is `Refused`, by one of these reasons:

    wrong-kind      a message that this point of the round has no place for
    wrong-run       of another run
    wrong-round     of a round that has not been opened
    wrong-device    in another device's name
    wrong-step      not the next local step, or not the next part of its batch
    wrong-shape     not the samples, tokens and width of the plan
    wrong-dtype
    wrong-mask      no text at the left and padding at its right
    wrong-labels    a class or a token that the model does not have; labels of a device that keeps them, or none
    wrong-weight    not what the labels weigh, or parts of a batch that do not add up to what they said it weighs
    wrong-rows      not one row of the device's data for each sample, or rows that nobody asked for
    unknown-rows    recalled, but never sent
    wrong-counts    steps, samples or a loss that the device cannot have had
    wrong-tensors   an adapter of other names
    wrong-facts     facts that the shape of the round does not declare, or not as it declares them
    wrong-events    what it did, in words that there are not, or at times that cannot be
    not-finite      infinite, not a number, or beyond all that trains (`forms.LOUDEST`)

A loss that is not finite, of a device that computes its own, passes: its training diverged, and the server leaves the
device out (`Server.blame`). A device that has proved its name and sends well-formed nonsense of a size that could be is
a matter of aggregation (`policies/robust.py`), not of the guard.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from cutlayer.errors import Refused
from cutlayer.gate import judging
from cutlayer.gate.forms import (
    LOUDEST,
    Form,
    Forms,
    Holds,
    Outline,
    Script,
    ScriptOf,
    as_options,
    diverged,
    outline,
    refusal,
)
from cutlayer.model.base import Base
from cutlayer.model.finite import within
from cutlayer.packing import Compression
from cutlayer.wire.messages import (
    ROLES,
    Assignment,
    Close,
    FromDevice,
    HeldOut,
    HiddenGradients,
    Judge,
    Judged,
    Measured,
    Message,
    Recall,
    Update,
    comes_from_device,
)


@dataclass(frozen=True, slots=True)
class _Judging:
    """A device that judges: what it was asked, and what it may say next; nothing more once it is over."""

    asked: Judge
    forms: Forms
    script: Script
    options: tuple[Form, ...]
    late: bool = False  # the round that comes next was opened before it was done

    @property
    def over(self) -> bool:
        return not self.options


def _empty(message: FromDevice) -> Recall:
    """The mere name of a round that is over."""
    return Recall(message.run, message.round, 0, message.device, torch.zeros(0, dtype=torch.int32), 0)


class Guard:
    """Holds one device to its plan, one round after the other.

    Args:
      device: The name that it has proved.
      run: The run's identifier.
      base: The model.
      hidden_size: Width of activations.
      longest_tokens: The longest batch there can be.
      compression: How messages are packed.
      holds: What the server keeps.
      script: Of the rounds' shape.
    """

    def __init__(
        self,
        device: str,
        run: str,
        base: Base,
        *,
        hidden_size: int,
        longest_tokens: int,
        compression: Compression,
        holds: Holds,
        script: ScriptOf,
    ) -> None:
        self._device, self._run, self._base = device, run, base
        self._hidden_size, self._longest = hidden_size, longest_tokens
        self._compression, self._holds, self._script_of = compression, holds, script
        self._forms: Forms | None = None
        self._judging: _Judging | None = None
        self._limit = 0
        self._open = self._measured = False

    def open(self, assignment: Assignment) -> None:
        """A round begins for this device: from now on it is held to this assignment, which is not packed."""
        self._forms = forms = self._forms_of(assignment)
        if self._judging is not None:
            self._judging = None if self._judging.over else replace(self._judging, late=True)
        self._outline: Outline = outline(self._script_of(assignment.plan, forms), forms)
        self._script: Script = self._script_of(assignment.plan, forms)
        self._options = as_options(next(self._script))
        self._open, self._measured = True, False
        self._limit = max(self._limit, self._outline.limit)

    def judge(self, asked: Judge) -> None:
        """The device is to judge, before the round that comes next is opened."""
        forms = self._forms_of(asked)
        script = judging.script(asked, forms)
        self._judging = _Judging(asked, forms, script, as_options(next(script)))
        self._limit = max(self._limit, judging.limit(asked, forms))

    def _forms_of(self, asked: Assignment | Judge) -> Forms:
        return Forms(
            asked,
            self._base,
            hidden_size=self._hidden_size,
            longest_tokens=self._longest,
            compression=self._compression,
            holds=self._holds,
        )

    def close(self, close: Close) -> None:
        """The device is told to end its round, or to judge no more: from now on it may do so after any step."""
        if self._forms is not None:
            self._forms.closing = close.round == self._forms.assignment.round

    def frame_limit(self) -> int:
        """The longest frame, in bytes, that this round or an earlier one allows the device: a late one may be longer.

        0 before its first round.
        """
        return self._limit

    # ------------------------------------------------------------------ as it travelled

    def check_form(self, message: Message) -> Message:
        """Everything but the values that may be packed.

        Returns:
          The message; of a late one, a `Recall` of nothing.

        Raises:
          Refused: See above.
        """
        if not comes_from_device(message):
            raise self._refused("wrong-kind", "a message of a device to the server", type(message).__name__)
        self._expect("wrong-run", "run", self._run, message.run)
        self._expect("wrong-device", "sender", self._device, message.device)
        if isinstance(message, HeldOut | Judged):
            return self._check_judging(message)
        now = self._judging
        if now is not None and not now.late and message.round == now.asked.round:
            raise now.forms.refused("wrong-kind", "what a device says that judges", type(message).__name__)
        current = -1 if self._forms is None else self._forms.assignment.round
        if message.round < current:
            return _empty(message)
        self._expect("wrong-round", "round", current, message.round)
        self._form_of(message).check(message)
        if isinstance(message, Update):
            self._open = False
        elif isinstance(message, Measured):
            self._measured = True
        else:
            self._options = as_options(self._script.send(message))
        return message

    def _check_judging(self, message: HeldOut | Judged) -> Message:
        """See `check_form`: of what a device says that judges."""
        now = self._judging
        if now is None:
            raise self._refused("wrong-kind", "nothing that judges", type(message).__name__)
        if message.round < now.asked.round:
            return _empty(message)
        if now.late:
            return replace(_empty(message), round=message.round - 1)  # the round that it names goes on without it
        self._expect("wrong-round", "round", now.asked.round, message.round)
        form = next((form for form in now.options if form.kind is type(message)), None)
        if form is None:
            raise now.forms.refused("wrong-kind", "nothing more that judges", type(message).__name__)
        form.check(message)
        try:
            options = as_options(now.script.send(message))
        except StopIteration:
            options = ()
        self._judging = replace(now, options=options)
        return message

    def _form_of(self, message: FromDevice) -> Form:
        """The form that a message must fit here: at the end, or when closing, what was measured, and the update."""
        assert self._forms is not None, "the round of the message has been opened"
        ending = self._options[0].kind is Update
        allowed = () if ending or self._measured else self._options
        if ending or self._forms.closing or self._measured:
            allowed = (*allowed, self._outline.ending, *(() if self._measured else (self._forms.measured(),)))
        form = next((form for form in allowed if self._open and form.kind is type(message)), None)
        if form is None:
            awaited = allowed[0].name if self._open else "nothing more in this round"
            raise self._refused("wrong-kind", awaited, type(message).__name__)
        return form

    # ------------------------------------------------------------------ unpacked

    def check_values(self, message: Message) -> None:
        """Checks what may have been packed, in whole tensors.

        Raises:
          Refused: not-finite.
        """
        if isinstance(message, Update | HiddenGradients) and diverged(message):
            return
        for field, role in ROLES.get(type(message), {}).items():
            value = getattr(message, field)
            for name, tensor in value.items() if isinstance(value, dict) else [(field, value)]:
                if not within(tensor, LOUDEST[role]):
                    raise self._refused("not-finite", f"finite numbers up to {LOUDEST[role]:g} in {name}", "others")

    def _expect(self, reason: str, what: str, expected: object, got: object) -> None:
        if got != expected:
            raise self._refused(reason, f"{what} {expected}", got)

    def _refused(self, reason: str, expected: str, got: object) -> Refused:
        if self._forms is not None:
            return self._forms.refused(reason, expected, got)
        return refusal(reason, f"device {self._device}", expected, got)
