"""The guard: what a device sends is looked at, field by field, before anything is computed or allocated of it.

A device proved its name when it came in (`roster.py`); here it is held to its part of the plan. Twice, because what
arrives may be packed (`packing.py`):

    check_form      as it travelled: kind, run, round, sender, step, shapes, dtypes, masks, labels, counts, structure
    check_values    after unpacking: nothing that is not finite

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
    wrong-labels    a class or a token that the model does not have
    wrong-weight    not what the labels weigh, or parts of a batch that do not add up to what they said it weighs
    wrong-rows      not one row of the device's data for each sample
    unknown-rows    recalled, but never sent
    wrong-counts    steps, samples or a loss that the device cannot have had
    wrong-tensors   an adapter of other names
    wrong-structure no structure (or ranks) where the device prunes, one where it does not, or none of this model's
    wrong-events    what it did, in words that there are not, or at times that cannot be
    not-finite      infinite, or not a number

A loss that is not finite, of a device that trained alone, passes: training diverged, and the server says so
(`Server.accept`). So do finite numbers of any size: a device that has proved its name and sends well-formed nonsense is
a matter of aggregation, not of the guard.

Shapes: B batch, T tokens, D hidden size.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cutlayer.errors import MalformedMessage, Refused
from cutlayer.model.base import Base
from cutlayer.model.loss import MASKED
from cutlayer.model.structure import IMPORTANCE, KEPT, units_by_name
from cutlayer.packing import Compression
from cutlayer.types import Adapter
from cutlayer.wire.codecs import packed_form
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import Activations, Assignment, Close, Measured, Message, Recall, Update

Holds = Callable[[str, int], bool]
"""(device, row of its data) -> whether the server keeps that sample's activations."""

Shape = tuple[int, ...]

WORDS = frozenset({"forward", "backward", "step", "upload", "download", "wait", "aggregate"})
"""Of `types.Event.what`."""
MOST_EVENTS = 64, 8
"""That a device may tell of: of a round, and of each part of a local step, for which it computes and sends in five."""


@dataclass(slots=True)
class _Begun:
    """A step of which not all parts have come: what the first of them announced, and what has come."""

    micro_batches: int
    whole_weight: int
    parts: int = 0
    samples: int = 0
    weight: int = 0


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
    ) -> None:
        self._device, self._run, self._base = device, run, base
        self._hidden_size, self._longest = hidden_size, longest_tokens
        self._compression, self._holds = compression, holds
        self._assignment: Assignment | None = None
        self._limit = 0
        self._shapes: dict[str, Shape] = {}
        self._open = self._closing = False
        self._step = self._samples = self._weight = 0
        self._begun: _Begun | None = None
        self._recalled = self._measured = False

    def open(self, assignment: Assignment) -> None:
        """A round begins for this device: from now on it is held to this assignment, which is not packed."""
        self._assignment = assignment
        self._shapes = {name: tuple(tensor.shape) for name, tensor in assignment.adapter.items()}
        self._open, self._closing = True, False
        self._step = self._samples = self._weight = 0
        self._begun = None
        self._recalled = self._measured = False
        self._limit = max(self._limit, self._longest_frame())

    def close(self, close: Close) -> None:
        """The device is told to end its round: from now on it may do so after any step."""
        self._closing = close.round == self._now.round

    # ------------------------------------------------------------------ before there is a message

    def frame_limit(self) -> int:
        """The longest frame, in bytes, that this round or an earlier one allows the device: a late one may be longer.

        0 before its first round.
        """
        return self._limit

    def _longest_frame(self) -> int:
        """Of the messages that this round's plan allows."""
        now, plan = self._now, self._now.plan
        most = plan.batch_size * plan.local_steps
        update = Update(
            run=now.run,
            round=now.round,
            device=self._device,
            adapter=self._largest_adapter(),
            steps=plan.local_steps,
            samples=most,
            weight=most * self._longest,
            loss=0.0,
            busy_seconds=0.0,
            structure=self._largest_structure(),
            ranks_left=plan.ranks,
        )
        events_E6 = _meta((self._most_events, 6), torch.float64)
        measured = Measured(now.run, now.round, self._device, tuple(WORDS), events_E6)
        closing = max(frame_bytes(update), frame_bytes(measured))
        if plan.head:
            return closing
        batch, rows_B = (plan.micro_batch_size, self._longest), _meta((plan.micro_batch_size,), torch.int32)
        labels = _meta(batch if self._per_token else batch[:1], torch.int32)
        activations = Activations(
            run=now.run,
            round=now.round,
            step=plan.local_steps,
            device=self._device,
            h_BTD=self._form_of_activations(*batch),
            mask_BT=_meta(batch, torch.bool),
            labels=labels,
            weight=plan.batch_size * self._longest,
            rows_B=rows_B,
            micro_batch=plan.micro_batches,
            micro_batches=plan.micro_batches,
            others_weight=plan.batch_size * self._longest if plan.micro_batches > 1 else 0,
        )
        return max(closing, frame_bytes(activations))  # a Recall is Activations without the tensors

    def _largest_adapter(self) -> Adapter:
        """The adapter as it is if all of the plan's units are left."""
        shapes = self._shapes
        if self._prunes:
            structure, left = self._base.structure, self._base.structure.left(self._now.plan.prune)
            shapes = {name: structure.shape(name, shape, left) for name, shape in shapes.items()}
        return {name: self._form_of_update(shape) for name, shape in shapes.items()}

    def _largest_structure(self) -> Adapter:
        """The structure and the importance as they are if all of the plan's units are left."""
        if not self._prunes:
            return {}
        structure = self._base.structure
        left = dict(zip(structure.counts, structure.left(self._now.plan.prune), strict=True))
        names = [name for name, _ in units_by_name(structure.everything)]
        kept = {f"{KEPT}{name}": _meta((left[name.partition(".")[2]],), torch.int32) for name in names}
        return kept | {f"{IMPORTANCE}{name}": _meta((structure.count(name),), torch.float32) for name in names}

    # ------------------------------------------------------------------ as it travelled

    def check_form(self, message: Message) -> Message:
        """Everything but the values that may be packed.

        Returns:
          The message; of a late one, a `Recall` of nothing.

        Raises:
          Refused: See above.
        """
        if not isinstance(message, Activations | Recall | Measured | Update):
            raise self._refused("wrong-kind", "a message of a device to the server", type(message).__name__)
        self._expect("wrong-run", "run", self._run, message.run)
        self._expect("wrong-device", "sender", self._device, message.device)
        current = -1 if self._assignment is None else self._assignment.round
        if message.round < current:
            return Recall(message.run, message.round, 0, message.device, torch.zeros(0, dtype=torch.int32), 0)
        self._expect("wrong-round", "round", current, message.round)
        self._expect_kind(message)
        if isinstance(message, Update):
            self._check_update(message)
            self._open = False
        elif isinstance(message, Measured):
            self._check_measured(message)
            self._measured = True
        else:
            self._check_batch(message)
        return message

    def _expect_kind(self, message: Message) -> None:
        """A batch while there are steps to do, then what it measured, then its update."""
        steps_left = not self._now.plan.head and self._step < self._now.plan.local_steps
        batch, measured, update = steps_left and not self._measured, not self._measured, not steps_left or self._closing
        allowed = {Activations: batch, Recall: batch, Measured: measured and update, Update: update}
        if not (self._open and allowed[type(message)]):
            awaited = ("a batch" if batch else "an Update") if self._open else "nothing more in this round"
            raise self._refused("wrong-kind", awaited, type(message).__name__)

    def _check_batch(self, message: Activations | Recall) -> None:
        self._expect("wrong-step", "step", self._step, message.step)
        if isinstance(message, Activations):
            self._check_activations(message)
            self._check_part(message)
            self._weight += message.weight
            self._samples += len(message.mask_BT)
            if not message.ends_step:
                return
            self._begun = None
        else:
            self._check_recall(message)
            self._recalled = True
            self._samples += len(message.rows_B)
        self._step += 1

    def _check_part(self, message: Activations) -> None:
        """It is the next part of its batch, and fits what the first one said of all of them."""
        plan, announced = self._now.plan, message.weight + message.others_weight
        if self._begun is None:
            self._expect_between("wrong-step", "micro-batches", 1, message.micro_batches, plan.micro_batches)
            self._begun = _Begun(message.micro_batches, announced)
        begun = self._begun
        self._expect("wrong-step", "micro-batch", begun.parts, message.micro_batch)
        self._expect("wrong-step", "number of micro-batches", begun.micro_batches, message.micro_batches)
        self._expect("wrong-weight", "weight of the step", begun.whole_weight, announced)
        begun.parts += 1
        begun.samples += len(message.mask_BT)
        begun.weight += message.weight
        self._expect_between("wrong-shape", "samples in a step", 1, begun.samples, plan.batch_size)
        left = begun.micro_batches - begun.parts  # of which each weighs something
        least, most = 0 if left else begun.whole_weight, begun.whole_weight - left
        self._expect_between("wrong-weight", "weight of the parts of a step", least, begun.weight, most)

    def _check_activations(self, message: Activations) -> None:
        mask_BT, labels = message.mask_BT, message.labels
        self._expect_between("wrong-shape", "dimensions of mask_BT", 2, mask_BT.dim(), 2)
        batch, tokens = mask_BT.shape
        self._expect_between("wrong-shape", "samples", 1, batch, self._now.plan.micro_batch_size)
        self._expect_between("wrong-shape", "tokens", 1, tokens, self._longest)
        self._expect_form("mask_BT", mask_BT, _meta((batch, tokens), torch.bool))
        self._expect_form("h_BTD", message.h_BTD, self._form_of_activations(batch, tokens))
        self._expect_form("labels", labels, _meta((batch, tokens) if self._per_token else (batch,), torch.int32))
        if message.rows_B is not None:
            self._check_rows(message.rows_B, batch)
        if not bool(mask_BT[:, 0].all()) or bool((mask_BT[:, 1:] & ~mask_BT[:, :-1]).any()):
            raise self._refused("wrong-mask", "text from the left, padding at its right", "another mask")
        self._expect("wrong-weight", "weight", self._weight_of(labels), message.weight)

    def _weight_of(self, labels: Tensor) -> int:
        """What labels weigh: classes, or tokens of which every sample has one to predict (`samples.weight_of`)."""
        below = self._vocabulary if self._per_token else self._base.settings.num_labels
        known = (labels >= 0) & (labels < below)
        if not bool((known | (labels == MASKED) if self._per_token else known).all()):
            raise self._refused("wrong-labels", f"labels below {below}", "others")
        weights_B = (labels[:, 1:] != MASKED).sum(1) if self._per_token else torch.ones_like(labels)
        if not bool(weights_B.all()):
            raise self._refused("wrong-labels", "a token to predict in every sample", "a sample without")
        return int(weights_B.sum())

    def _check_recall(self, message: Recall) -> None:
        self._expect_between("wrong-shape", "dimensions of rows_B", 1, message.rows_B.dim(), 1)
        self._expect_between("wrong-shape", "samples", 1, len(message.rows_B), self._now.plan.batch_size)
        self._check_rows(message.rows_B, len(message.rows_B))
        self._expect_between("wrong-shape", "tokens", 1, message.num_tokens, self._longest)
        unknown = [row for row in message.rows_B.tolist() if not self._holds(self._device, row)]
        if unknown:
            raise self._refused("unknown-rows", "rows whose activations it has sent", reprlib.repr(unknown))

    def _check_rows(self, rows_B: Tensor, batch: int) -> None:
        self._expect_form("rows_B", rows_B, _meta((batch,), torch.int32))
        if bool((rows_B < 0).any()):
            raise self._refused("wrong-rows", "rows of the device's data", "a number below 0")

    def _check_measured(self, message: Measured) -> None:
        words, events_E6 = message.whats, message.events_E6
        if len(set(words)) != len(words) or not WORDS.issuperset(words):
            raise self._refused("wrong-events", f"words among {', '.join(sorted(WORDS))}", words)
        num_events = len(events_E6) if events_E6.dim() else 0
        self._expect_between("wrong-events", "events", 0, num_events, self._most_events)
        self._expect_form("events_E6", events_E6, _meta((num_events, 6), torch.float64))
        if not _finite(events_E6):
            raise self._refused("not-finite", "finite numbers in events_E6", "others")
        start_E, end_E, step_E, bytes_E, flops_E, word_E = events_E6.unbind(1)
        steps, places = self._now.plan.local_steps, len(words)
        inside = (step_E >= -1) & (step_E < steps) & (word_E >= 0) & (word_E < places) & (bytes_E >= 0) & (flops_E >= 0)
        whole = (step_E == step_E.floor()) & (word_E == word_E.floor()) & (bytes_E == bytes_E.floor())
        if not bool((inside & whole & (start_E >= 0) & (end_E >= start_E)).all()):
            raise self._refused("wrong-events", "events of this round, in order of time", "others")

    def _check_update(self, message: Update) -> None:
        self._check_counts(message)
        shapes = self._check_structure(message)
        if message.adapter.keys() != shapes.keys():
            other = sorted(message.adapter.keys() ^ shapes.keys())
            raise self._refused("wrong-tensors", f"the {len(shapes)} tensors of its adapter", reprlib.repr(other))
        for name, tensor in message.adapter.items():
            self._expect_form(name, tensor, self._form_of_update(shapes[name]))

    def _check_counts(self, message: Update) -> None:
        plan = self._now.plan
        alone, closing = plan.head, self._closing
        heaviest = self._longest - 1 if self._per_token else 1  # the first token of a text is not predicted
        all_steps = plan.local_steps if alone else 0
        self._expect_between("wrong-counts", "steps", 0 if closing else all_steps, message.steps, all_steps)
        least, most = (message.steps, message.steps * plan.batch_size) if alone else (self._samples,) * 2
        if closing and not alone:
            least = 0  # what it sent last may have been answered no more
        self._expect_between("wrong-counts", "samples", least, message.samples, most)
        seen = not alone and not self._recalled and message.samples == self._samples
        least, most = (self._weight,) * 2 if seen else (message.samples, message.samples * heaviest)
        self._expect_between("wrong-weight", "weight", least, message.weight, most)
        if not message.steps and message.loss != 0:
            raise self._refused("wrong-counts", "no loss of a device that computed none", message.loss)
        numbers = (message.busy_seconds, 0.0 if _diverged(message) else message.change)
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise self._refused("not-finite", "busy_seconds and change from 0 on", numbers)

    def _check_structure(self, message: Update) -> dict[str, Shape]:
        """The shapes that its adapter must have."""
        tensors, plan = message.structure, self._now.plan
        if message.ranks_left not in ((plan.ranks, plan.prune_to) if plan.prune_to else ((),)):
            raise self._refused("wrong-structure", "the ranks of its plan, pruned or not", message.ranks_left)
        full = {name: _meta(shape, torch.float32) for name, shape in self._shapes.items()}
        at_ranks = {name: tuple(tensor.shape) for name, tensor in self._base.at_ranks(full, message.ranks_left).items()}
        if bool(tensors) != self._prunes:
            raise self._refused("wrong-structure", "one" if self._prunes else "none", f"{len(tensors)} tensors")
        if not tensors:
            return at_ranks
        structure = self._base.structure
        if not all(name.startswith((KEPT, IMPORTANCE)) for name in tensors):
            raise self._refused("wrong-structure", f"{KEPT}... and {IMPORTANCE}...", reprlib.repr(sorted(tensors)))
        try:
            kept, importance = structure.from_tensors(tensors, self._device)
        except MalformedMessage as error:
            raise Refused("wrong-structure", str(error)) from error
        left = dict(zip(structure.counts, structure.left(self._now.plan.prune), strict=True))
        for name, units in units_by_name(kept):
            self._expect_between("wrong-structure", f"units of {name}", 1, len(units), left[name.partition(".")[2]])
        if not _diverged(message) and not all(_finite(scores) for scores in importance.values()):
            raise self._refused("not-finite", "finite importance", "others")
        shapes = {}
        for name, shape in at_ranks.items():
            axis, indices = structure.where(name, kept) or (0, ())
            shapes[name] = (*shape[:axis], len(indices), *shape[axis + 1 :]) if len(indices) else shape
        return shapes

    # ------------------------------------------------------------------ unpacked

    def check_values(self, message: Message) -> None:
        """What may have been packed, in whole tensors.

        Raises:
          Refused: not-finite.
        """
        tensors: Sequence[tuple[str, Tensor]] = ()
        if isinstance(message, Activations):
            tensors = [("h_BTD", message.h_BTD)]
        elif isinstance(message, Update) and not _diverged(message):
            tensors = list(message.adapter.items())
        for name, tensor in tensors:
            if not _finite(tensor):
                raise self._refused("not-finite", f"finite numbers in {name}", "others")

    # ------------------------------------------------------------------ what is expected

    @property
    def _now(self) -> Assignment:
        assert self._assignment is not None, "a round is opened by open()"
        return self._assignment

    @property
    def _per_token(self) -> bool:
        return self._base.settings.task == "causal-lm"

    @property
    def _vocabulary(self) -> int:
        return int(self._base.config.vocab_size)

    @property
    def _prunes(self) -> bool:
        return self._now.plan.prune > 0 or self._now.plan.score

    @property
    def _most_events(self) -> int:
        once, each_step = MOST_EVENTS
        return once + each_step * self._now.plan.local_steps * self._now.plan.micro_batches

    def _form_of_activations(self, batch: int, tokens: int) -> Tensor:
        shape = (batch, tokens, self._hidden_size)
        return packed_form(self._compression.activations, shape, self._base.dtype)

    def _form_of_update(self, shape: Shape) -> Tensor:
        return packed_form(self._compression.update, shape, torch.float32)

    def _expect(self, reason: str, what: str, expected: object, got: object) -> None:
        if got != expected:
            raise self._refused(reason, f"{what} {expected}", got)

    def _expect_between(self, reason: str, what: str, least: int, got: int, most: int) -> None:
        if not least <= got <= most:
            expected = f"{least}" if least == most else f"{least} to {most}"
            raise self._refused(reason, f"{expected} {what}", got)

    def _expect_form(self, name: str, tensor: Tensor, form: Tensor) -> None:
        if tensor.dtype != form.dtype:
            raise self._refused("wrong-dtype", f"{form.dtype} for {name}", tensor.dtype)
        if tensor.shape != form.shape:
            raise self._refused("wrong-shape", f"shape {list(form.shape)} for {name}", list(tensor.shape))

    def _refused(self, reason: str, expected: str, got: object) -> Refused:
        at = "" if self._assignment is None else f", round {self._assignment.round}, step {self._step}"
        shown = got if isinstance(got, str) and len(got) < 200 else reprlib.repr(got)
        return Refused(
            reason,
            f"device {self._device}{at}: expected {expected}, got {shown}. Do both ends run one version and one model?",
        )


def _diverged(update: Update) -> bool:
    return not math.isfinite(update.loss)


def _finite(tensor: Tensor) -> bool:
    """One pass, and no copy: the least and the largest are finite, and not a number is neither."""
    return tensor.numel() == 0 or all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor))


def _meta(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")
