"""Messages: everything that a device and the server say to each other.

Every message names its run and its round, and its local step where there is one, so that whoever receives it
recognises a repeat or a late one. Rounds and steps count from 0. Fields that the wire can carry: text, whole
numbers that are not negative, numbers, tuples of those, a `DevicePlan`, tensors and adapters (`frames.py`).

Shapes: B batch, T tokens, D hidden size, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard, get_args

from torch import Tensor

from cutlayer.types import Adapter, DevicePlan

PROTOCOL_VERSION = 5
"""Raised by one whenever a frame of the old code would be misread by the new."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Server to device, opening a round: what to do, and the adapter to start from.

    Attributes:
      run: the run's identifier.
      round: the round that it opens.
      device: whom it is for.
      plan: the device's part of the round's plan.
      learning_rates: the rate of each local step; the last holds for all that follow it.
      adapter: the tensors of the blocks that the device holds, by global name.
      folds: what is to be added to their frozen weights first, all that the device has not had (`model/folds.py`);
        empty where frozen weights stay frozen.
      facts: what else the method broadcasts, by name.
      counted: the last round of this device whose update counted, None if there is none: it begins from where it was
        after that one.
    """

    run: str
    round: int
    device: str
    plan: DevicePlan
    learning_rates: tuple[float, ...]
    adapter: Adapter
    folds: Adapter = field(default_factory=dict)
    facts: Adapter = field(default_factory=dict)
    counted: int | None = None

    def rate(self, step: int) -> float:
        """The learning rate of a local step."""
        return self.learning_rates[min(step, len(self.learning_rates) - 1)]


@dataclass(frozen=True, slots=True)
class Activations:
    """Device to server, once per local step: the batch as it leaves the device-side model; or a part of the batch.

    The parts of a step (micro-batches) come in their order. The loss of the step is the sum of theirs, each times its
    share.

    Attributes:
      run: the run's identifier.
      round: the round that it belongs to.
      step: the device's local step.
      device: who sends it.
      h_BTD: hidden states at the cut, detached.
      mask_BT: True where there is a token, False where there is padding.
      labels: int32; (B,) class ids, or (B, T) token ids with -100 where the loss is masked; None where they stay with
        the device, which has the head.
      weight: the loss normaliser of the batch: samples, or unmasked target tokens (`types.Batch.weight`).
      rows_B: int32; which rows of the device's data these are, where the server is to keep their activations.
      micro_batch: which part of the batch it is, from 0.
      micro_batches: how many there are in this step.
      others_weight: what the step's other parts weigh together.
    """

    run: str
    round: int
    step: int
    device: str
    h_BTD: Tensor
    mask_BT: Tensor
    labels: Tensor | None
    weight: int
    rows_B: Tensor | None = None
    micro_batch: int = 0
    micro_batches: int = 1
    others_weight: int = 0

    @property
    def targets(self) -> Tensor:
        """The labels, of a device that sends them."""
        assert self.labels is not None, "the shape of the round has devices send their labels"
        return self.labels

    @property
    def share(self) -> float:
        """The share of this batch, or part of one, in the weight of the step."""
        return self.weight / (self.weight + self.others_weight)

    @property
    def ends_step(self) -> bool:
        """Whether it is the last part of the batch."""
        return self.micro_batch + 1 == self.micro_batches


@dataclass(frozen=True, slots=True)
class Recall:
    """Device to server, in place of `Activations` that it has sent before: a batch by the names of its samples.

    Attributes:
      run: the run's identifier.
      round: the round that it belongs to.
      step: the device's local step.
      device: who sends it.
      rows_B: int32; the samples, as rows of the device's data.
      num_tokens: positions of the batch, padding included.
    """

    run: str
    round: int
    step: int
    device: str
    rows_B: Tensor
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Gradients:
    """Server to device, the answer to `Activations`.

    Attributes:
      run: the run's identifier.
      round: the round that it belongs to.
      step: the local step that it answers.
      device: whom it is for.
      grad_BTD: gradient of the step's loss by the device's `h_BTD`; None where nothing on the device trains.
      loss: mean loss of what was sent; not finite when training diverged.
      micro_batch: the part of the batch that it answers.
    """

    run: str
    round: int
    step: int
    device: str
    grad_BTD: Tensor | None
    loss: float
    micro_batch: int = 0


@dataclass(frozen=True, slots=True)
class Hidden:
    """Server to device, to `Activations` without labels: the batch as it leaves the server's blocks.

    Attributes:
      run: the run's identifier.
      round: the round that it belongs to.
      step: the local step that it belongs to.
      device: whom it is for.
      h_BTD: hidden states where the device's tail begins, detached.
    """

    run: str
    round: int
    step: int
    device: str
    h_BTD: Tensor


@dataclass(frozen=True, slots=True)
class HiddenGradients:
    """Device to server, the answer to `Hidden`.

    Attributes:
      run: the run's identifier.
      round: the round that it belongs to.
      step: the local step that it belongs to.
      device: who sends it.
      grad_BTD: gradient of the step's loss by the `h_BTD` that came down.
      loss: the step's mean loss; not finite when training diverged.
    """

    run: str
    round: int
    step: int
    device: str
    grad_BTD: Tensor
    loss: float


@dataclass(frozen=True, slots=True)
class Update:
    """Device to server, closing the device's part of a round.

    Attributes:
      run: the run's identifier.
      round: the round that it closes.
      device: who sends it.
      adapter: the tensors that the device trained, by global name.
      steps: local steps that it took alone, without the server; 0 where the server computed or was told every loss.
      samples: training samples that it saw in this round.
      weight: sum of its batches' weights.
      loss: mean loss of those steps, weighted by the batches' weights; not finite when training diverged.
      busy_seconds: time that the device computed in this round; virtual in simulation.
      facts: what else the shape of the round has it say, by name: the script of the shape declares them.
    """

    run: str
    round: int
    device: str
    adapter: Adapter
    steps: int
    samples: int
    weight: int
    loss: float
    busy_seconds: float
    facts: Adapter = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """Device to server, or server to device, in the middle of a round: tensors that a shape declares in its script.

    Attributes:
      run: the run's identifier.
      round: the round that they belong to.
      step: the device's local step.
      device: who sends them, or whom they are for.
      facts: by name.
    """

    run: str
    round: int
    step: int
    device: str
    facts: Adapter


@dataclass(frozen=True, slots=True)
class Judge:
    """Server to device, before a round: what the adapter of the rounds so far comes to on the rows that the device
    holds out (`data/held_out.py`).

    Attributes:
      run: the run's identifier.
      round: the round that comes next; the number of rounds, after the last.
      device: whom it is for.
      plan: where the device is cut, and of how many samples a batch is; no clause, and no rank: the whole adapter is
        judged.
      adapter: the tensors of the blocks that the device holds, by global name, as they are evaluated.
      classes: of how many classes the device counts hits apart; 1 for all of them together, 0 for no such count.
      folds: as of an `Assignment`.
      kept: of a pruned model, what is left (`model/structure.py`); empty for all of it.
    """

    run: str
    round: int
    device: str
    plan: DevicePlan
    adapter: Adapter
    classes: int
    folds: Adapter = field(default_factory=dict)
    kept: Adapter = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Device to server, of one that holds a part of the model: a batch of its held-out rows as it leaves that part.

    Attributes:
      run: the run's identifier.
      round: of the `Judge`.
      number: of the batch, from 0.
      device: who sends it.
      h_BTD: hidden states at the cut.
      mask_BT: True where there is a token, False where there is padding.
      labels: as of `Activations`.
      weight: as of `Activations`.
    """

    run: str
    round: int
    number: int
    device: str
    h_BTD: Tensor
    mask_BT: Tensor
    labels: Tensor | None
    weight: int

    @property
    def targets(self) -> Tensor:
        """The labels, of a device that sends them."""
        assert self.labels is not None, "the device has no head"
        return self.labels


@dataclass(frozen=True, slots=True)
class Judged:
    """Device to server, the answer to `Judge`: sums over all the rows that it holds out.

    Attributes:
      run: the run's identifier.
      round: of the `Judge`.
      device: who sends it.
      samples: the rows.
      weight: what they weigh: rows, or unmasked target tokens.
      loss: the sum of their losses, each by its weight; not finite when training diverged; 0 of a device that does not
        hold the head, whose losses the server knows.
      counts_3C: int64; by class, samples of it that were predicted to be, samples predicted to be, samples of it; zeros
        of a device that does not hold the head.
    """

    run: str
    round: int
    device: str
    samples: int
    weight: int
    loss: float
    counts_3C: Tensor


@dataclass(frozen=True, slots=True)
class SiteRound:
    """Server to site, opening a round: the part of it that the site holds with its devices.

    Attributes:
      run: the run's identifier.
      round: the round that it opens.
      device: the site.
      plans: of the devices that are there.
      ranks: as of the round's plan (`types.RoundPlan`).
      deadline_seconds: likewise.
      reports: whether the site sends its adapter at the end.
      adapter: the full adapter from which the site begins, by global name; none where it goes on from its own.
      weight: what was trained at the site since it was last given an adapter, before this round.
      counted: the last round of this site whose report counted, None if there is none: it begins from where it was
        after that one.
      members: JSON, what the server knows of these devices, of which a site that was begun again knows nothing.
    """

    run: str
    round: int
    device: str
    plans: tuple[DevicePlan, ...]
    ranks: tuple[int, ...]
    deadline_seconds: float | None
    reports: bool
    adapter: Adapter
    weight: int
    counted: int | None = None
    members: str = "[]"


@dataclass(frozen=True, slots=True)
class SiteReport:
    """Site to server, closing its part of a round.

    Attributes:
      run: the run's identifier.
      round: the round that it closes.
      device: the site.
      adapter: fp64, the mean over the site's devices before it is rounded; none where the site does not report, or
        nothing was trained there since it was last given an adapter.
      weight: what was trained there since, this round included.
      seconds: how long the site was at it.
      rows: JSON, what the site saw of each of its devices (`server.sites.DeviceRow`).
      names: the devices of the events.
      whats: their words.
      events_E7: fp64, what devices did; start and end in seconds since the site had the round, local step (-1: none),
        bytes, FLOPs, and the places of the device and of the word.
    """

    run: str
    round: int
    device: str
    adapter: Adapter
    weight: int
    seconds: float
    rows: str
    names: tuple[str, ...]
    whats: tuple[str, ...]
    events_E7: Tensor


@dataclass(frozen=True, slots=True)
class SpanCall:
    """Device to server, one that runs blocks for whoever asks: all that it needs for a pass over some of its blocks.

    Attributes:
      run: the run's identifier.
      round: the device's round.
      step: its local step.
      device: who asks.
      first: the lowest block that is to be run.
      end: the block above the highest.
      h_BTD: what goes into block `first`.
      mask_BT: True where there is a token, False where there is padding.
      grad_BTD: gradient by what comes out of block `end - 1`; None for a forward pass.
      below: whether something below block `first` waits for a gradient.
      tensors: the trainable ones of these blocks, by global name; none where nothing in them trains.
    """

    run: str
    round: int
    step: int
    device: str
    first: int
    end: int
    h_BTD: Tensor
    mask_BT: Tensor
    grad_BTD: Tensor | None
    below: bool
    tensors: Adapter


@dataclass(frozen=True, slots=True)
class SpanAnswer:
    """Server to device, the answer to `SpanCall`.

    Attributes:
      run: the run's identifier.
      round: the device's round.
      step: its local step.
      device: whom it is for.
      h_BTD: what came out of the last of the blocks; None for a backward pass.
      grad_BTD: gradient by what went into the first of them; None for a forward pass, or where nobody waits for it.
      gradients: by the tensors that came with the call.
    """

    run: str
    round: int
    step: int
    device: str
    h_BTD: Tensor | None
    grad_BTD: Tensor | None
    gradients: Adapter


@dataclass(frozen=True, slots=True)
class Finish:
    """Server to device: there is nothing more to do.

    Attributes:
      run: the run's identifier.
      round: the round that will not be opened.
      reason: why, for a person to read.
    """

    run: str
    round: int
    reason: str


@dataclass(frozen=True, slots=True)
class Close:
    """Server to device, in the middle of a round: end it with what there is.

    Attributes:
      run: the run's identifier.
      round: the round that ends.
      wanted: whether the device answers with an `Update` of the steps that it has done; else with nothing, and they
        do not count. The two messages may cross.
      reason: why, for a person to read.
    """

    run: str
    round: int
    wanted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Measured:
    """Device to server, just before its `Update`, on a real fleet: what the device did in the round, and when.

    Attributes:
      run: the run's identifier.
      round: the round.
      device: who sends it.
      whats: the words of its events (`types.Event.what`), one for each row.
      events_E6: fp64; start and end in seconds since the device had its assignment, local step (-1: none), bytes,
        FLOPs, and the place of the word in `whats`.
    """

    run: str
    round: int
    device: str
    whats: tuple[str, ...]
    events_E6: Tensor


@dataclass(frozen=True, slots=True)
class Hello:
    """Device to server, opening a connection.

    Attributes:
      device: its name.
      software: the version of cutlayer, for people to read.
    """

    device: str
    software: str


@dataclass(frozen=True, slots=True)
class SiteHello:
    """Site to server, in place of `Hello`: it serves devices of its own (`cutlayer serve --site-of`).

    Attributes:
      device: the site's name.
      software: as of `Hello`.
    """

    device: str
    software: str


@dataclass(frozen=True, slots=True)
class Welcome:
    """Server to device, the answer to `Hello`: what the run is, as far as a device must know.

    Attributes:
      run: the run's identifier.
      session: names this life of the server: another one after a restart.
      device: whom it is for.
      index: the device's place in the fleet, which seeds the order of its samples.
      config: the run's config, JSON; paths in it are the server's own.
      labels: class names; empty for causal LM.
      fingerprint: of the model's files (`model/pieces.py`): the device's must be the same.
      shape: of the rounds, by name: the device's end of it is in `device/talks/`.
    """

    run: str
    session: str
    device: str
    index: int
    config: str
    labels: tuple[str, ...]
    fingerprint: str
    shape: str


FINISHED = "finished"
"""The reason of a `Refusal` that tells a device that the run is over: no error."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Server to device, in place of any answer of a handshake: it may not go on.

    Attributes:
      reason: the word under which it is counted.
      sentence: what is wrong and what to change, for a person to read.
      final: whether to try again is in vain.
    """

    reason: str
    sentence: str
    final: bool


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Server to device, in place of `Welcome`: another process of the server serves it (`cutlayer serve --workers`).

    Attributes:
      address: `HOST:PORT` where the device says hello again; `:PORT` on the host that it has dialled.
    """

    address: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Device to server: something that it needs before it can begin.

    Attributes:
      what: `echo` (answer with some bytes), `files` (list the pieces of the model up to a cut), or `piece`; of a site,
        `members` (who is there) or `place` (of a device in the fleet).
      name: of the piece; of files, `head` for what follows the last block as well; of a place, the device.
      number: the cut; or the offset in the piece.
      length: bytes to answer with; of files with the `head`, the first block of the tail that goes with it.
      body: uint8; carried and thrown away, for the rate of the link; of members, JSON; None elsewhere.
    """

    what: str
    name: str = ""
    number: int = 0
    length: int = 0
    body: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Server to device, the answer to `Ask`.

    Attributes:
      body: uint8; what was asked for.
    """

    body: Tensor


@dataclass(frozen=True, slots=True)
class Ready:
    """Device to server: it has its data and its model and can begin; or it can go on after a break.

    Attributes:
      device: its name.
      session: the life of the server that it knows; empty if none.
      next_round: the turn it is in (`transport/session.py turn_of`), plus one; 0 if none.
      received: frames of that round that it has.
      flops_per_second: as it measured itself, on work like that of training.
      memory_bytes: that it may use.
      up_bits_per_second, down_bits_per_second: of its link, as measured.
      latency_seconds: of its link, one way.
      num_samples: that it has to train on.
      label_counts: its samples of each class; empty for causal LM, and where labels stay with the device.
      max_blocks: the most blocks that its owner lends; nothing for as many as fit.
    """

    device: str
    session: str
    next_round: int
    received: int
    flops_per_second: float
    memory_bytes: int
    up_bits_per_second: float
    down_bits_per_second: float
    latency_seconds: float
    num_samples: int
    label_counts: tuple[int, ...]
    max_blocks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Stand:
    """Server to device, the answer to `Ready`: how far the server is. From here on messages of rounds pass.

    Attributes:
      session: names this life of the server.
      next_round: the turn it is in with this device, plus one; 0 if none.
      received: frames of that round that it has from this device.
    """

    session: str
    next_round: int
    received: int


Message = (
    Assignment
    | Activations
    | Recall
    | Hidden
    | HiddenGradients
    | Gradients
    | Facts
    | Close
    | Measured
    | Update
    | Judge
    | HeldOut
    | Judged
    | SiteRound
    | SiteReport
    | Finish
    | SpanCall
    | SpanAnswer
)
"""Messages that pass in rounds: exactly once, in order; but for calls of spans and their answers, which have
connections of their own, and which nobody keeps."""

FromDevice = Activations | Recall | HiddenGradients | Facts | Measured | Update | HeldOut | Judged
"""Messages that a device sends in rounds."""

Handshake = Hello | SiteHello | Welcome | Elsewhere | Refusal | Ask | Answer | Ready | Stand
"""Messages that pass on a new connection before those of rounds do."""


def passes_in_rounds(message: Message | Handshake) -> TypeGuard[Message]:
    """Whether it belongs to a round."""
    return isinstance(message, get_args(Message))


def comes_from_device(message: Message) -> TypeGuard[FromDevice]:
    """Whether it is one that a device sends."""
    return isinstance(message, get_args(FromDevice))


Role = Literal["activations", "gradients", "broadcast", "update"]

ROLES: Mapping[type[Any], Mapping[str, Role]] = {
    SpanCall: {"h_BTD": "activations", "grad_BTD": "gradients"},
    SpanAnswer: {"h_BTD": "activations", "grad_BTD": "gradients"},
    Assignment: {"adapter": "broadcast"},
    Activations: {"h_BTD": "activations"},
    Hidden: {"h_BTD": "activations"},
    HeldOut: {"h_BTD": "activations"},
    HiddenGradients: {"grad_BTD": "gradients"},
    Gradients: {"grad_BTD": "gradients"},
    Update: {"adapter": "update"},
}
"""Fields that may travel packed, by kind of message, and what they are. Between two ends that agreed on a codec
they hold the packed tensors (`packing.py`); nobody but those two ends sees such a message. What both ends
must hold alike, such as folds, is never packed."""
