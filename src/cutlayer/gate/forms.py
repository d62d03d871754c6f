"""Forms: what a device may send at a point of a round, field by field. The script of a shape yields them in order.

    def script(plan, forms):                      rounds/split.py
        for step in range(plan.local_steps):
            yield from forms.batch(step)
        yield forms.update()

A form says what kind of message it is, checks one, and knows the longest that fits it. `gate/guard.py` walks the script
of its device's round; what has passed so far is noted here, because later forms depend on it: an update may not count
more samples than were sent.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cutlayer.errors import Refused
from cutlayer.model.base import Base
from cutlayer.model.finite import finite, within
from cutlayer.model.loss import MASKED
from cutlayer.packing import Compression, codec_under
from cutlayer.types import Adapter, DevicePlan
from cutlayer.wire.codecs import packed_form
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import (
    Activations,
    Assignment,
    HeldOut,
    HiddenGradients,
    Judge,
    Judged,
    Measured,
    Message,
    Recall,
    Update,
)
from cutlayer.wire.messages import Facts as FactsMessage

Holds = Callable[[str, int], bool]
"""(device, row of its data) -> whether the server keeps that sample's activations."""

Shape = tuple[int, ...]

WORDS = frozenset({"forward", "backward", "step", "upload", "download"})
"""Words of `types.Event.what` that somebody emits."""
MOST_EVENTS = 64, 8
"""Events that a device may tell of: of a round, and of each part of a local step, for which it computes and sends in
five; and one for each block that it holds, where it goes back through them one at a time."""
MOST_HELD_OUT = 2**24
"""Rows that a device may say that it holds out."""
LOUDEST: Mapping[str, float] = {"activations": 2.0**40, "gradients": 2.0**40, "update": 2.0**12}
"""The largest magnitude in a tensor, by its kind: of activations and gradients, one whose squares a norm still adds up
in 32 bits; of adapters, one whose products a block still can. What trains is far below, and what is beyond has
diverged."""
LOUDEST_FACT = 2.0**40
"""The largest magnitude of a number that a shape has a device say; each shape may ask for less."""
LOUDEST_SLOPE = 2.0**16
"""The largest slope of a loss along a random direction: it moves an adapter, or all weights, by as many times the
learning rate."""
MOST_LOSS = 2.0**20
"""The largest finite loss: that of a guess among all the tokens that there are is below 20."""
MOST_SECONDS, MOST_FLOPS = 2.0**30, 2.0**90
"""The most seconds and FLOPs that a device may say of a round: 34 years, and what no fleet computes in them."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form that one message must fit.

    Attributes:
      kind: of message.
      name: as a refusal calls it.
      check: raises Refused where the message does not fit; notes it where it does.
      largest: the longest message that fits, of tensors that hold nothing.
    """

    kind: type[Any]
    name: str
    check: Callable[[Any], None]
    largest: Callable[[], Message]


Script = Generator[Form | tuple[Form, ...], Message, None]
"""Yields what may come next, and is sent what came. Its last form is the device's update."""

ScriptOf = Callable[[DevicePlan, "Forms"], Script]
"""A function that a shape brings: it makes the script of a device's round under a plan."""


class Facts(Protocol):
    """A shape's declaration of what an update says beside its adapter."""

    def largest(self) -> Adapter:
        """The most that it may say, as tensors that hold nothing."""

    def check(self, facts: Adapter, *, diverged: bool) -> None:
        """Raises Refused where the facts are not as declared; those of training that diverged need not be finite."""

    def shapes(self, facts: Adapter | None) -> Mapping[str, Shape]:
        """The shapes that the adapter must have where these facts are said; for None, the largest that they can be."""


@dataclass(slots=True)
class _Begun:
    """A step of which not all parts have come: what the first of them announced, and what has come."""

    micro_batches: int
    whole_weight: int
    parts: int = 0
    samples: int = 0
    weight: int = 0


class Forms:
    """The forms of one device's round.

    Args:
      assignment: What the device is held to, not packed; or what it is to judge.
      base: The model.
      hidden_size: Width of activations.
      longest_tokens: The longest batch there can be.
      compression: How messages are packed.
      holds: What the server keeps.

    Attributes:
      assignment, base: as given.
      closing: whether the device was told to end its round, and may do so after any step.
    """

    def __init__(
        self,
        assignment: Assignment | Judge,
        base: Base,
        *,
        hidden_size: int,
        longest_tokens: int,
        compression: Compression,
        holds: Holds,
    ) -> None:
        self.assignment, self.base = assignment, base
        self.closing = False
        self._plan, self._device = assignment.plan, assignment.device
        self._hidden_size, self._longest = hidden_size, longest_tokens
        self._compression, self._holds = compression, holds
        self._steps = self._samples = self._weight = 0
        self._begun: _Begun | None = None
        self._shapes_of: dict[int, tuple[int, int]] = {}  # of batches whose hidden states are still to come back
        self._recalled = False

    # ------------------------------------------------------------------ forms that scripts use

    def batch(self, step: int, *, rows: bool = False) -> Script:
        """The batch of a local step: its activations, in as many parts as the device cuts it into.

        Args:
          step: The local step.
          rows: Whether each sample names its row, and a batch that the server keeps may be named in place of it.
        """
        activations = Form(
            Activations, "a batch", lambda message: self._check_batch(message, step, rows), self._activations(rows)
        )
        recall = Form(Recall, "a batch", lambda message: self._check_recall(message, step), self._recall)
        first = yield (activations, recall) if rows else activations
        while isinstance(first, Activations) and not first.ends_step:
            first = yield activations

    def unlabelled(self, step: int) -> Form:
        """The batch of a local step of a device that has the labels: its activations, whole, and none of these."""
        return Form(
            Activations,
            "a batch",
            lambda message: self._check_batch(message, step, rows=False, labels=False),
            self._activations(rows=False, labels=False),
        )

    def hidden_gradients(self, step: int) -> Form:
        """The answer of a device that has the labels to the hidden states of a local step, and its loss."""

        def looks_right(message: HiddenGradients) -> None:
            self.expect("wrong-step", "step", step, message.step)
            self.expect_form("grad_BTD", message.grad_BTD, self._form_of_gradients(*self._shapes_of[step]))
            self._check_loss(message.loss)
            del self._shapes_of[step]

        def most() -> Message:
            now, form = self.assignment, self._form_of_gradients(self._plan.batch_size, self._longest)
            return HiddenGradients(now.run, now.round, self._plan.local_steps, self._device, form, 0.0)

        return Form(HiddenGradients, "HiddenGradients", looks_right, most)

    def facts(self, step: int, largest: Adapter, check: Callable[[Adapter], None] | None = None) -> Form:
        """Tensors that the shape has the device say in a local step.

        Args:
          step: The local step.
          largest: By name, tensors of the shape and dtype that each must have; on the meta device.
          check: Raises Refused where values do not fit; they are finite by then.
        """

        def looks_right(message: FactsMessage) -> None:
            self.expect("wrong-step", "step", step, message.step)
            self.check_tensors("facts", message.facts, largest)
            if check is not None:
                check(message.facts)

        def most() -> Message:
            now = self.assignment
            return FactsMessage(now.run, now.round, self._plan.local_steps, self._device, largest)

        return Form(FactsMessage, "facts", looks_right, most)

    def update(self, facts: Facts | None = None) -> Form:
        """The update that ends the round.

        Args:
          facts: What it says beside its adapter, and the shapes of that; None for nothing, and for an adapter of the
            shapes that were sent. `Listed` are facts of known shapes.
        """
        said = facts or _Nothing(self)
        return Form(Update, "an Update", lambda message: self._check_update(message, said), lambda: self._update(said))

    def measured(self) -> Form:
        """The account of what the device did and when, just before its update, on a real fleet: any shape allows it."""
        return Form(Measured, "an Update", self._check_measured, self._measured)

    @property
    def shapes(self) -> dict[str, Shape]:
        """The shapes of the adapter that was sent."""
        return {name: tuple(tensor.shape) for name, tensor in self.assignment.adapter.items()}

    # ------------------------------------------------------------------ batches

    def held_out(self, number: int) -> Form:
        """A batch of rows that the device holds out; without labels of one that has the head."""
        labels = not self._plan.head

        def looks_right(message: HeldOut) -> None:
            self.expect("wrong-step", "number", number, message.number)
            batch, _ = self._check_content(message, labels=labels)
            self._weight += message.weight
            self._samples += batch

        def most() -> Message:
            now, shape_BT = self.assignment, (self._plan.batch_size, self._longest)
            return HeldOut(
                run=now.run,
                round=now.round,
                number=MOST_HELD_OUT,
                device=self._device,
                h_BTD=self._form_of_activations(*shape_BT),
                mask_BT=meta(shape_BT, torch.bool),
                labels=meta(shape_BT if self._per_token else shape_BT[:1], torch.int32) if labels else None,
                weight=self._plan.batch_size * self._longest,
            )

        return Form(HeldOut, "a held-out batch", looks_right, most)

    def judged(self, classes: int) -> Form:
        """The sums over the rows that the device holds out.

        Args:
          classes: Of how many classes it counts hits apart.
        """

        def most() -> Message:
            now, counts_3C = self.assignment, meta((3, classes), torch.int64)
            weight = MOST_HELD_OUT * self._longest
            return Judged(now.run, now.round, self._device, MOST_HELD_OUT, weight, 0.0, counts_3C)

        return Form(Judged, "what it judged", lambda message: self._check_judged(message, classes), most)

    def _check_judged(self, message: Judged, classes: int) -> None:
        alone, counts_3C = self._plan.alone, message.counts_3C
        least, most = (0, MOST_HELD_OUT) if alone else (self._samples,) * 2
        self.expect_between("wrong-counts", "samples", least, message.samples, most)
        heaviest = self._longest - 1 if self._per_token else 1
        least, most = (message.samples, message.samples * heaviest) if alone else (self._weight,) * 2
        self.expect_between("wrong-weight", "weight", least, message.weight, most)
        if not (self._plan.head and message.samples) and message.loss != 0:
            raise self.refused("wrong-counts", "no loss of a device that computed none", message.loss)
        self._check_loss(message.loss, message.weight)
        self.expect_form("counts_3C", counts_3C, meta((3, classes), torch.int64))
        counted = message.samples if self._plan.head and classes else 0
        hits_C, predicted_C, labelled_C = counts_3C.tolist()
        for each in (predicted_C, labelled_C):
            self.expect_between("wrong-counts", "samples of a class", 0, min(each, default=0), counted)
            self.expect("wrong-counts", "samples of all classes", counted, sum(each))
        for hits, *both in zip(hits_C, predicted_C, labelled_C, strict=True):
            self.expect_between("wrong-counts", "hits", 0, hits, min(both))

    def _check_batch(self, message: Activations, step: int, rows: bool, *, labels: bool = True) -> None:
        self.expect("wrong-step", "step", step, message.step)
        if (message.rows_B is not None) != rows:
            raise self.refused("wrong-rows", "a row for each sample" if rows else "no rows", message.rows_B)
        batch, tokens = self._check_content(message, labels=labels)
        if message.rows_B is not None:
            self._check_rows(message.rows_B, batch)
        if not labels:
            self.expect("wrong-step", "number of micro-batches", 1, message.micro_batches)
            self._shapes_of[step] = (batch, tokens)
        self._check_part(message)
        self._weight += message.weight
        self._samples += batch
        if message.ends_step:
            self._begun = None
            self._steps += 1

    def _check_content(self, message: Activations | HeldOut, *, labels: bool) -> tuple[int, int]:
        """A batch at the cut, with or without its labels: its samples and its tokens."""
        mask_BT = message.mask_BT
        self.expect_between("wrong-shape", "dimensions of mask_BT", 2, mask_BT.dim(), 2)
        batch, tokens = mask_BT.shape
        self.expect_between("wrong-shape", "samples", 1, batch, self._plan.micro_batch_size)
        self.expect_between("wrong-shape", "tokens", 1, tokens, self._longest)
        self.expect_form("mask_BT", mask_BT, meta((batch, tokens), torch.bool))
        self.expect_form("h_BTD", message.h_BTD, self._form_of_activations(batch, tokens))
        if (message.labels is not None) != labels:
            raise self.refused("wrong-labels", "labels" if labels else "no labels", message.labels)
        if message.labels is not None:
            form = meta((batch, tokens) if self._per_token else (batch,), torch.int32)
            self.expect_form("labels", message.labels, form)
        if not bool(mask_BT[:, 0].all()) or bool((mask_BT[:, 1:] & ~mask_BT[:, :-1]).any()):
            raise self.refused("wrong-mask", "text from the left, padding at its right", "another mask")
        if message.labels is not None:
            self.expect("wrong-weight", "weight", self._weight_of(message.labels), message.weight)
        else:  # at most every token but the first of each text is predicted
            most = int(mask_BT.sum()) - batch if self._per_token else batch
            self.expect_between("wrong-weight", "weight", batch, message.weight, most)
        return batch, tokens

    def _check_part(self, message: Activations) -> None:
        """It is the next part of its batch, and fits what the first one said of all of them."""
        plan, announced = self._plan, message.weight + message.others_weight
        if self._begun is None:
            self.expect_between("wrong-step", "micro-batches", 1, message.micro_batches, plan.micro_batches)
            self._begun = _Begun(message.micro_batches, announced)
        begun = self._begun
        self.expect("wrong-step", "micro-batch", begun.parts, message.micro_batch)
        self.expect("wrong-step", "number of micro-batches", begun.micro_batches, message.micro_batches)
        self.expect("wrong-weight", "weight of the step", begun.whole_weight, announced)
        begun.parts += 1
        begun.samples += len(message.mask_BT)
        begun.weight += message.weight
        self.expect_between("wrong-shape", "samples in a step", 1, begun.samples, plan.batch_size)
        left = begun.micro_batches - begun.parts  # of which each weighs something
        least, most = 0 if left else begun.whole_weight, begun.whole_weight - left
        self.expect_between("wrong-weight", "weight of the parts of a step", least, begun.weight, most)

    def _weight_of(self, labels: Tensor) -> int:
        """The weight of labels: classes, or tokens of which every sample has one to predict (`samples.weight_of`)."""
        below = int(self.base.config.vocab_size) if self._per_token else self.base.settings.num_labels
        known = (labels >= 0) & (labels < below)
        if not bool((known | (labels == MASKED) if self._per_token else known).all()):
            raise self.refused("wrong-labels", f"labels below {below}", "others")
        weights_B = (labels[:, 1:] != MASKED).sum(1) if self._per_token else torch.ones_like(labels)
        if not bool(weights_B.all()):
            raise self.refused("wrong-labels", "a token to predict in every sample", "a sample without")
        return int(weights_B.sum())

    def _check_recall(self, message: Recall, step: int) -> None:
        self.expect("wrong-step", "step", step, message.step)
        self.expect_between("wrong-shape", "dimensions of rows_B", 1, message.rows_B.dim(), 1)
        self.expect_between("wrong-shape", "samples", 1, len(message.rows_B), self._plan.batch_size)
        self._check_rows(message.rows_B, len(message.rows_B))
        self.expect_between("wrong-shape", "tokens", 1, message.num_tokens, self._longest)
        unknown = [row for row in message.rows_B.tolist() if not self._holds(self._device, row)]
        if unknown:
            raise self.refused("unknown-rows", "rows whose activations it has sent", reprlib.repr(unknown))
        self._recalled = True
        self._samples += len(message.rows_B)
        self._steps += 1

    def _check_rows(self, rows_B: Tensor, batch: int) -> None:
        self.expect_form("rows_B", rows_B, meta((batch,), torch.int32))
        if bool((rows_B < 0).any()):
            raise self.refused("wrong-rows", "rows of the device's data", "a number below 0")

    def _activations(self, rows: bool, *, labels: bool = True) -> Callable[[], Message]:
        def largest() -> Message:
            now, plan = self.assignment, self._plan
            shape_BT = (plan.micro_batch_size, self._longest)
            return Activations(
                run=now.run,
                round=now.round,
                step=plan.local_steps,
                device=self._device,
                h_BTD=self._form_of_activations(*shape_BT),
                mask_BT=meta(shape_BT, torch.bool),
                labels=meta(shape_BT if self._per_token else shape_BT[:1], torch.int32) if labels else None,
                weight=plan.batch_size * self._longest,
                rows_B=meta(shape_BT[:1], torch.int32) if rows else None,
                micro_batch=plan.micro_batches - 1,
                micro_batches=plan.micro_batches,
                others_weight=plan.batch_size * self._longest if plan.micro_batches > 1 else 0,
            )

        return largest

    def _recall(self) -> Message:
        now, rows_B = self.assignment, meta((self._plan.batch_size,), torch.int32)
        return Recall(now.run, now.round, self._plan.local_steps, self._device, rows_B, self._longest)

    # ------------------------------------------------------------------ the end of a round

    def _check_measured(self, message: Measured) -> None:
        words, events_E6 = message.whats, message.events_E6
        if len(set(words)) != len(words) or not WORDS.issuperset(words):
            raise self.refused("wrong-events", f"words among {', '.join(sorted(WORDS))}", words)
        num_events = len(events_E6) if events_E6.dim() else 0
        self.expect_between("wrong-events", "events", 0, num_events, self._most_events)
        self.expect_form("events_E6", events_E6, meta((num_events, 6), torch.float64))
        if not finite(events_E6):
            raise self.refused("not-finite", "finite numbers in events_E6", "others")
        start_E, end_E, step_E, bytes_E, flops_E, word_E = events_E6.unbind(1)
        steps, places = self._plan.local_steps, len(words)
        inside = (step_E >= -1) & (step_E < steps) & (word_E >= 0) & (word_E < places) & (bytes_E >= 0) & (flops_E >= 0)
        whole = (step_E == step_E.floor()) & (word_E == word_E.floor()) & (bytes_E == bytes_E.floor())
        could = (end_E <= MOST_SECONDS) & (flops_E <= MOST_FLOPS) & (bytes_E <= MOST_FLOPS)
        if not bool((inside & whole & could & (start_E >= 0) & (end_E >= start_E)).all()):
            raise self.refused("wrong-events", "events of this round, in order of time", "others")

    def _measured(self) -> Message:
        now, events_E6 = self.assignment, meta((self._most_events, 6), torch.float64)
        return Measured(now.run, now.round, self._device, tuple(sorted(WORDS)), events_E6)

    @property
    def _most_events(self) -> int:
        once, each_step = MOST_EVENTS
        return once + (each_step + self._plan.cut) * self._plan.local_steps * self._plan.micro_batches

    def _check_update(self, message: Update, facts: Facts) -> None:
        self._check_counts(message)
        facts.check(message.facts, diverged=diverged(message))
        shapes = facts.shapes(message.facts)
        self.expect_names("wrong-tensors", "tensors of its adapter", shapes, message.adapter)
        for name, tensor in message.adapter.items():
            self.expect_form(name, tensor, self._form_of_update(shapes[name]))

    def _check_counts(self, message: Update) -> None:
        plan, closing = self._plan, self.closing
        alone = plan.alone
        heaviest = self._longest - 1 if self._per_token else 1  # the first token of a text is not predicted
        all_steps = plan.local_steps if alone else 0
        self.expect_between("wrong-counts", "steps", 0 if closing else all_steps, message.steps, all_steps)
        least, most = (message.steps, message.steps * plan.batch_size) if alone else (self._samples,) * 2
        if closing and not alone:
            least = 0  # what it sent last may have been answered no more
        self.expect_between("wrong-counts", "samples", least, message.samples, most)
        seen = not alone and not self._recalled and message.samples == self._samples
        least, most = (self._weight,) * 2 if seen else (message.samples, message.samples * heaviest)
        self.expect_between("wrong-weight", "weight", least, message.weight, most)
        if not message.steps and message.loss != 0:
            raise self.refused("wrong-counts", "no loss of a device that computed none", message.loss)
        self._check_loss(message.loss)
        if not 0 <= message.busy_seconds <= MOST_SECONDS:
            raise self.refused("not-finite", f"busy_seconds from 0 to {MOST_SECONDS:g}", message.busy_seconds)

    def _check_loss(self, loss: float, weight: int = 1) -> None:
        """A mean loss, or the sum of what weighs so much; of training that diverged it is no number, and passes."""
        if math.isfinite(loss) and not 0 <= loss <= MOST_LOSS * max(1, weight):
            raise self.refused("wrong-counts", f"a loss from 0 to {MOST_LOSS:g}", loss)

    def _update(self, facts: Facts) -> Message:
        now, plan = self.assignment, self._plan
        most = plan.batch_size * plan.local_steps
        return Update(
            run=now.run,
            round=now.round,
            device=self._device,
            adapter={name: self._form_of_update(shape) for name, shape in facts.shapes(None).items()},
            steps=plan.local_steps,
            samples=most,
            weight=most * self._longest,
            loss=0.0,
            busy_seconds=0.0,
            facts=facts.largest(),
        )

    # ------------------------------------------------------------------ what checks are made of

    def expect(self, reason: str, what: str, expected: object, got: object) -> None:
        """Raises Refused unless the two are equal."""
        if got != expected:
            raise self.refused(reason, f"{what} {expected}", got)

    def expect_between(self, reason: str, what: str, least: int, got: int, most: int) -> None:
        """Raises Refused unless a number is in its range."""
        if not least <= got <= most:
            expected = f"{least}" if least == most else f"{least} to {most}"
            raise self.refused(reason, f"{expected} {what}", got)

    def expect_names(self, reason: str, what: str, expected: Collection[str], got: Collection[str]) -> None:
        """Raises Refused unless these are the names."""
        if set(got) != set(expected):
            other = sorted({*got} ^ {*expected})
            raise self.refused(reason, f"the {len(expected)} {what}", reprlib.repr(other))

    def expect_form(self, name: str, tensor: Tensor, form: Tensor) -> None:
        """Raises Refused unless a tensor has the dtype and the shape of another."""
        if tensor.dtype != form.dtype:
            raise self.refused("wrong-dtype", f"{form.dtype} for {name}", tensor.dtype)
        if tensor.shape != form.shape:
            raise self.refused("wrong-shape", f"shape {list(form.shape)} for {name}", list(tensor.shape))

    def check_tensors(self, what: str, tensors: Adapter, largest: Adapter) -> None:
        """Raises Refused unless tensors have these names, shapes and dtypes, and finite values."""
        self.expect_names("wrong-facts", what, largest, tensors)
        for name, form in largest.items():
            self.expect_form(name, tensors[name], form)
            if tensors[name].is_floating_point() and not within(tensors[name], LOUDEST_FACT):
                raise self.refused("not-finite", f"finite numbers up to {LOUDEST_FACT:g} in {name}", "others")

    def expect_slopes(self, name: str, slopes: Tensor) -> None:
        """Raises Refused for slopes that would carry weights beyond all that trains."""
        if not within(slopes, LOUDEST_SLOPE):
            raise self.refused("not-finite", f"slopes up to {LOUDEST_SLOPE:g} in {name}", "others")

    def refused(self, reason: str, expected: str, got: object) -> Refused:
        """The refusal of what was got, at this point of the round."""
        where = f"device {self._device}, round {self.assignment.round}, step {self._steps}"
        return refusal(reason, where, expected, got)

    @property
    def _per_token(self) -> bool:
        return self.base.settings.task == "causal-lm"

    def _form_of_activations(self, batch: int, tokens: int) -> Tensor:
        shape = (batch, tokens, self._hidden_size)
        codec = codec_under(self._plan, "activations", self._compression.activations)
        return packed_form(codec, shape, self.base.dtype)

    def _form_of_gradients(self, batch: int, tokens: int) -> Tensor:
        shape = (batch, tokens, self._hidden_size)
        return packed_form(self._compression.gradients, shape, self.base.dtype)

    def _form_of_update(self, shape: Shape) -> Tensor:
        return packed_form(codec_under(self._plan, "update", self._compression.update), shape, torch.float32)


@dataclass(frozen=True, slots=True)
class Listed:
    """Facts that are always said, all of known shapes.

    Attributes:
      forms: of the round.
      facts: by name, tensors of the shape and dtype that each must have, that hold nothing.
      adapter: the shapes of the adapter that goes with them, by name.
      values: raises Refused where finite values do not fit.
    """

    forms: Forms
    facts: Adapter
    adapter: Mapping[str, Shape]
    values: Callable[[Adapter], None] = lambda _facts: None

    def largest(self) -> Adapter:
        """See `Facts.largest`."""
        return self.facts

    def check(self, facts: Adapter, *, diverged: bool) -> None:  # noqa: ARG002
        """See `Facts.check`."""
        self.forms.check_tensors("facts", facts, self.facts)
        self.values(facts)

    def shapes(self, facts: Adapter | None) -> Mapping[str, Shape]:  # noqa: ARG002
        """See `Facts.shapes`."""
        return self.adapter


class _Nothing:
    """An update that says nothing beside its adapter, which has the shapes that were sent."""

    def __init__(self, forms: Forms) -> None:
        self._forms = forms

    def largest(self) -> Adapter:
        return {}

    def check(self, facts: Adapter, *, diverged: bool) -> None:  # noqa: ARG002
        self._forms.expect_names("wrong-facts", "facts", (), facts)

    def shapes(self, facts: Adapter | None) -> Mapping[str, Shape]:  # noqa: ARG002
        return self._forms.shapes


@dataclass(frozen=True, slots=True)
class Outline:
    """The bounds of a whole script.

    Attributes:
      limit: the length of the longest frame, in bytes.
      ending: the form of the update, with which a device may end early when it is told to.
    """

    limit: int
    ending: Form


def outline(script: Script, forms: Forms) -> Outline:
    """Walks a script as if the largest message came each time.

    Messages of one form are as long in every step: they are measured once.
    """
    measured: dict[tuple[type[Any], str], int] = {}

    def measure(form: Form) -> None:
        key = form.kind, form.name
        if key not in measured:
            measured[key] = frame_bytes(form.largest())

    measure(forms.measured())
    ending: Form | None = None
    for options in walked(script):
        for form in options:
            measure(form)
        ending = options[0]
    assert ending is not None, "a script ends with an update"
    assert ending.kind is Update, "a script ends with an update"
    return Outline(max(measured.values()), ending)


def walked(script: Script) -> Iterator[tuple[Form, ...]]:
    """Yields what a script allows, point after point, if the largest message comes each time."""
    try:
        options = as_options(next(script))
        while True:
            yield options
            options = as_options(script.send(options[0].largest()))
    except StopIteration:
        return


def as_options(yielded: Form | tuple[Form, ...]) -> tuple[Form, ...]:
    """The forms that a script yielded, as a tuple."""
    return yielded if isinstance(yielded, tuple) else (yielded,)


def refusal(reason: str, where: str, expected: str, got: object) -> Refused:
    """The refusal of what was got, with what to do about it.

    Example:
      >>> print(refusal("wrong-shape", "device pi", "2 samples", 3))
      device pi: expected 2 samples, got 3. Do both ends run one version and one model?
    """
    shown = got if isinstance(got, str) and len(got) < 200 else reprlib.repr(got)
    advice = "Do both ends run one version and one model?"
    if reason == "not-finite":
        advice = "If it is so of other devices too, lower the learning rate (--lr); else look at this one."
    return Refused(reason, f"{where}: expected {expected}, got {shown}. {advice}")


def diverged(message: Update | HiddenGradients) -> bool:
    """Whether training diverged on a device that computes its losses: its tensors need not be finite."""
    return not math.isfinite(message.loss)


def meta(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor that holds nothing."""
    return torch.empty(tuple(shape), dtype=dtype, device="meta")
