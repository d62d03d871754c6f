"""A device's end of a link that holds the server to what the owner allows, and writes down what leaves.

It lies right above the session, below all that a device is made of: no assignment reaches the device that is not
allowed, and no frame reaches the session. Whatever is not allowed raises `Declined`, of which the agent tells the
server, and ends the device.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cutlayer.data.source import Columns
from cutlayer.device.limits import AS_LABELS, Leaves, Limits, in_words
from cutlayer.device.sent_log import SentLog
from cutlayer.device.shape import Shape
from cutlayer.device.spans import Spans
from cutlayer.errors import Declined
from cutlayer.fleet.clock import now
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.link import Around, Link
from cutlayer.wire.messages import (
    Activations,
    Assignment,
    Facts,
    HeldOut,
    HiddenGradients,
    Judge,
    Judged,
    Measured,
    Message,
    Recall,
    SpanAnswer,
    SpanCall,
    Update,
)

WORDS: dict[type, str] = {
    Activations: "hidden states",
    HeldOut: "hidden states of held-out rows",
    HiddenGradients: "gradients of hidden states, with their loss",
    Recall: "numbers of rows",
    Measured: "what it did and when",
    Update: "its adapter, with its loss and counts",
    Judged: "sums over held-out rows",
}
"""Names of the messages, for a person to read."""


class Lending:
    """The loan of one device to one run, and the record of what has left.

    Args:
      limits: The owner's.
      shape: Of the run's rounds.
      log: Where it is written down.
      tell: Takes a line for the owner to read.
      taken: The rounds in which this process has taken part, of any run.
    """

    def __init__(
        self, limits: Limits, shape: Shape, log: SentLog, tell: Callable[[str], None], taken: set[tuple[str, int]]
    ) -> None:
        self.limits, self.log = limits, log
        self._shape, self._tell, self._taken = shape, tell, taken
        self._columns, self._counts = Columns(), False
        self._leaves = Leaves(None, labels=False, counts=False)
        self._told = ""

    def read(self, columns: Columns, num_samples: int, *, counts: bool) -> None:
        """The data has been read; says what will leave, before anything does.

        Args:
          columns: Those that were read.
          num_samples: How many samples there are to train on.
          counts: Whether the server is told how many are of each class.

        Raises:
          Declined: One of the columns may not be read.
        """
        self.limits.check_columns(columns)
        self.limits.check_rounds(len(self.log.rounds()))
        self._columns, limits, shape = columns, self.limits, self._shape
        parts = [f"how many samples there are ({num_samples})" + ", and of each class" * counts]
        if shape.splits:
            least = f", {limits.least_blocks} or more" if limits.least_blocks else ""
            parts.append(f"hidden states of {self._text}, after as many blocks as each round's plan says{least}")
            parts.append(f"the labels ({self._labels})" if shape.sends_labels else "no labels")
        else:
            parts.append("no hidden states, no labels")
        parts.append("what it trains, losses and times")
        line = f"what leaves this device: {'; '.join(parts)}"
        self._tell(f"{line}. {self.log.path} says what has left.")
        self.log.say(line)

    def open(self, message: Assignment | Judge) -> None:
        """The server opens a round, or asks for judgment.

        Raises:
          Declined: Not like this.
        """
        self.limits.check_time()
        plan, shape = message.plan, self._shape
        if isinstance(message, Judge):
            leaves = Leaves.of(plan, (plan.cut, plan.top), counts=message.classes > 1)
        else:
            leaves = Leaves.of(plan, shape.reads(plan)) if shape.splits else Leaves(None, labels=False, counts=False)
        if (leaves.blocks is not None and not shape.splits) or (leaves.labels and not shape.sends_labels):
            raise Declined(
                f"join: expected what the shape {shape.name} promises, got a plan in which "
                f"{'labels' if leaves.labels else 'hidden states'} leave. Ask the server's owner."
            )
        self.limits.check_leaves(leaves)
        if isinstance(message, Assignment):
            self._take_part(message.run, message.round)
        self._leaves = leaves
        judging = isinstance(message, Judge)
        words = self._in_words(leaves, judging=judging)
        about = f"judging before round {message.round + 1}" if judging else f"round {message.round + 1}"
        self.log.begin(about, words)
        if words != self._told:
            self._told = words
            self._tell(f"{about}: what leaves: {words}")

    def _take_part(self, run: str, round: int) -> None:
        if self.limits.rounds is None:
            return
        before = self.log.rounds()
        if round not in before:
            self.limits.check_rounds(max(len(before), len(self._taken)))
            self.log.note_round(round)
        self._taken.add((run, round))

    def leave(self, message: Message, num_bytes: int) -> None:
        """Something is about to leave.

        Raises:
          Declined: It may not.
        """
        self.limits.check_time()
        samples, words = 0, WORDS.get(type(message), type(message).__name__)
        if isinstance(message, Activations | HeldOut):
            samples = len(message.mask_BT)
            if message.labels is not None:
                words += " with labels"
            self._check(hidden=True, labels=message.labels is not None)
        elif isinstance(message, Facts):
            words = f"facts ({', '.join(message.facts)})"
        elif isinstance(message, Update | Judged):
            samples = message.samples
        self.log.add(words, num_bytes, samples)
        if isinstance(message, Update | Judged):
            self.log.end()

    def leave_for(self, span: str, call: SpanCall, num_bytes: int) -> None:
        """A call to a machine that runs blocks is about to leave.

        Raises:
          Declined: It may not.
        """
        self.limits.check_time()
        self._check(hidden=True, labels=False)
        self.limits.check_leaves(Leaves(call.first, labels=False, counts=False))
        self.log.add(f"hidden states and the adapter of blocks {call.first} to {call.end - 1} to {span}", num_bytes)

    def _check(self, *, hidden: bool, labels: bool) -> None:
        """Raises Declined for what the plan under way does not let leave, whatever this device's own code does."""
        may = self._leaves
        if (hidden and may.blocks is None) or (labels and not may.labels):
            raise Declined("join: expected to send what the round's plan says, got more. Is this a version of ours?")

    @property
    def _text(self) -> str:
        return in_words(self._columns, lambda role: role not in AS_LABELS)

    @property
    def _labels(self) -> str:
        """The columns that are labels, in words; where there are none, as of a causal LM, the tokens to predict."""
        if self._columns.label is not None:
            return in_words(self._columns, lambda role: role in AS_LABELS)
        return f"the tokens to predict, of {self._text}"

    def _in_words(self, leaves: Leaves, *, judging: bool) -> str:
        end = "sums of losses and hits" + " by class" * leaves.counts if judging else "what it trains, losses and times"
        if leaves.blocks is None:
            return f"no hidden states, no labels; {end}"
        labels = f"with labels ({self._labels})" if leaves.labels else "without labels"
        return f"hidden states of {self._text} after {leaves.blocks} blocks, {labels}; {end}"


class Lent(Around):
    """See above.

    Args:
      link: The session.
      lending: What is allowed.
    """

    def __init__(self, link: Link, lending: Lending) -> None:
        super().__init__(link)
        self._lending = lending

    async def send(self, message: Message) -> None:
        """See `Link.send`.

        Raises:
          Declined: The owner does not allow it.
        """
        self._lending.leave(message, frame_bytes(message))
        await self._link.send(message)

    async def receive(self) -> Message:
        """See `Link.receive`.

        Raises:
          Declined: The server asks for what the owner does not allow, or the time is over.
        """
        limits, message = self._lending.limits, None
        while message is None:
            left = None if limits.until is None else max(0.0, limits.until - limits.clock())
            try:
                async with asyncio.timeout_at(None if left is None else now() + left):
                    message = await self._link.receive()
            except TimeoutError:
                limits.check_time()
        if isinstance(message, Assignment | Judge):
            self._lending.open(message)
        return message


class LentSpans:
    """A device's way to machines that run blocks, held to what the owner allows (`Spans`).

    Args:
      spans: The way.
      lending: What is allowed.
    """

    def __init__(self, spans: Spans, lending: Lending) -> None:
        self._spans, self._lending = spans, lending

    @property
    def bytes_sent(self) -> int:
        """See `Spans`."""
        return self._spans.bytes_sent

    @property
    def bytes_received(self) -> int:
        """See `Spans`."""
        return self._spans.bytes_received

    async def ask(self, span: str, address: str, call: SpanCall) -> SpanAnswer:
        """See `Spans.ask`.

        Raises:
          Declined: The owner does not allow it.
        """
        self._lending.leave_for(f"{span} at {address}", call, frame_bytes(call))
        return await self._spans.ask(span, address, call)
