"""Every method on this model, data and fleet: which fit, and what a round of each would take. No weight is read.

The first round of each is planned and rehearsed (`rehearsed.py`). What it asks of devices is known from what they hold
under its plan, from what its shape runs in a step (`device/shape.py`), and from the script of what its devices may send
(`gate/forms.py`). Nothing here knows a method: one that is added to the table, or offered by an installed package, is
judged like the others.

A method that takes a word for where devices are cut, or where labels are, is tried with the words of `ALSO` as well.

What is sorted is the time of a round, and not that of reaching an accuracy: a round of one method may teach more than a
round of another. A method that learns from what rounds measured is judged by the first, before which it knows nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

from cutlayer.config import MethodSection
from cutlayer.errors import BudgetError, ConfigError, CutlayerError
from cutlayer.methods.described import kinds_of, spelled
from cutlayer.methods.method import Method
from cutlayer.methods.source import described_error
from cutlayer.methods.table import TABLE, MethodRow, found, offered
from cutlayer.policies.plan import Situation
from cutlayer.report.human import human_bytes
from cutlayer.report.intervals import length, union
from cutlayer.run.inputs import RunInputs, completed, method_of, stragglers_of
from cutlayer.run.leaving import Text, leaving
from cutlayer.run.loop import Logbook
from cutlayer.run.rehearsed import Rehearsed, rehearse
from cutlayer.run.run import first_error, first_plan, situation_of
from cutlayer.types import DevicePlan, Event, RoundPlan

ALSO: Mapping[str, tuple[str, ...]] = {"cut": ("latency",), "labels": ("device",)}
"""Words that are tried for an option of this name, wherever a method has it and takes the word."""
ON_THE_LINK = frozenset({"upload", "download"})
"""Kinds of event (`types.Event.what`) in which a device sends or receives and computes nothing."""

Waits = Literal["step", "round", "deadline", "quorum", "no"]
"""The wait that a device may have: for the slowest in every step, or at the end of the round; or no longer than until a
deadline or a quorum; or for nobody."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A method with options.

    Attributes:
      name: as a run file calls it.
      options: those that are said; the others are its defaults.
      varied: of these, the words of `ALSO`.
      own: whether it is the run file's method, with the options of the run file.
    """

    name: str
    options: Mapping[str, Any]
    varied: Mapping[str, str]
    own: bool

    @property
    def label(self) -> str:
        """The name and what was varied, as `cutlayer compare` takes it."""
        words = ",".join(f"{option}={spelled(word)}" for option, word in self.varied.items())
        return f"{self.name}:{words}" if words else self.name


@dataclass(frozen=True, slots=True)
class OnDevice:
    """One device under a plan.

    Attributes:
      cut: blocks that it holds from below.
      whole: whether it holds the whole model.
      memory_bytes: what it needs for the longest batch.
      of_bytes: what it has.
      busy: the part of the round in which it computes.
      idle: the part in which it neither computes nor sends nor receives.
    """

    cut: int
    whole: bool
    memory_bytes: int
    of_bytes: int
    busy: float
    idle: float


@dataclass(frozen=True, slots=True)
class Fits:
    """A choice that fits, and what its first round takes.

    Attributes:
      seconds: from the first assignment to the last update.
      bytes_up, bytes_down: of all devices.
      samples: on which they train.
      devices: those of the round, by name.
      server_busy: the part of the round in which the server computes.
      server_bytes: what it needs.
      labels_leave: whether a device may send labels.
      text: how the text leaves a device; None where it stays.
      backward: whether a device runs a backward pass.
      waits: for what devices wait.
    """

    choice: Choice
    seconds: float
    bytes_up: int
    bytes_down: int
    samples: int
    devices: Mapping[str, OnDevice]
    server_busy: float
    server_bytes: int
    labels_leave: bool
    text: Text | None
    backward: bool
    waits: Waits


@dataclass(frozen=True, slots=True)
class Unfit:
    """A choice that does not fit, and why: in one line."""

    choice: Choice
    why: str


def choices(inputs: RunInputs) -> list[Choice]:
    """The choices that are tried: the run's method with its options, then every other with its defaults, each with its
    variants.

    Raises:
      ConfigError: There is no such method as the run's, or it does not know an option.
    """
    section = inputs.config.method
    own = found(section.name, section.sha256)
    own.built(section.options, inputs.config.train.seed)
    others = [name for name in (*TABLE, *offered()) if name != section.name]
    chosen = [
        Choice(section.name, section.options, {}, own=True),
        *(Choice(name, {}, {}, own=False) for name in others),
    ]
    return [one for choice in chosen for one in (choice, *_variants(choice, inputs))]


def judged(choice: Choice, inputs: RunInputs, num_tokens: int) -> Fits | Unfit:
    """Plans and rehearses the first round of a choice.

    Args:
      choice: One of `choices`.
      inputs: What the run is made of, but for its method.
      num_tokens: Of every batch.
    """
    try:
        return _judged(choice, inputs, num_tokens)
    except CutlayerError as error:
        return Unfit(choice, _line(error))
    except BaseExceptionGroup as group:
        if not isinstance(first := first_error(group), CutlayerError):
            raise
        return Unfit(choice, _line(first))
    except Exception as error:
        if choice.name in TABLE:  # a mistake of ours
            raise
        why = described_error(error, found(choice.name).source.path)
        return Unfit(choice, f"method {choice.name}: expected a round, got {why}. Correct it.")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _variants(choice: Choice, inputs: RunInputs) -> Iterator[Choice]:
    """The choice with other words for the options of `ALSO` that it has, alone and together."""
    try:
        row = found(choice.name)
        known = row.description.options
    except ConfigError:  # a package offers what is no method: judging it says so
        return
    words: list[list[tuple[str, str] | None]] = [
        [None, *((option, word) for word in also if choice.options.get(option, known[option].default) != word)]
        for option, also in ALSO.items()
        if option in known and "str" in kinds_of(known[option].kind)
    ]
    for picked in product(*words):
        varied = dict(one for one in picked if one is not None)
        options = {**choice.options, **varied}
        if varied and _takes(row, options, inputs.config.train.seed):
            yield replace(choice, options=options, varied=varied)


def _takes(row: MethodRow, options: Mapping[str, Any], seed: int) -> bool:
    """Whether a method knows these words."""
    try:
        row.built(options, seed)
    except ConfigError:
        return False
    return True


def _judged(choice: Choice, inputs: RunInputs, num_tokens: int) -> Fits:
    source = inputs.config.method.source if choice.own else None
    section = MethodSection(name=choice.name, source=source, **choice.options)
    inputs = replace(inputs, config=completed(inputs.config.model_copy(update={"method": section})))
    method, situation = method_of(inputs.config), situation_of(inputs, Logbook())
    plan = first_plan(inputs, method, situation)
    for device in plan.devices:
        _check_room(device, situation)
    rehearsed = rehearse(inputs, method, plan, num_tokens)
    leaves = leaving(rehearsed.assignments, inputs, method)
    return Fits(
        choice=choice,
        seconds=rehearsed.seconds,
        bytes_up=rehearsed.bytes_up,
        bytes_down=rehearsed.bytes_down,
        samples=sum(device.batch_size * device.local_steps for device in plan.devices),
        devices=_on_devices(plan, situation, rehearsed),
        server_busy=_share(rehearsed.events, inputs.fleet.server.name, rehearsed.seconds),
        server_bytes=_server_bytes(method, plan, situation, rehearsed),
        labels_leave=leaves.labels,
        text=leaves.text,
        backward=any(situation.costs.device(device, 1, num_tokens).backward_flops > 0 for device in plan.devices),
        waits=_waits(method, plan, inputs),
    )


def _check_room(device: DevicePlan, situation: Situation) -> None:
    """Raises BudgetError where a device cannot hold what no planner has looked at."""
    need, have = situation.device_bytes(device), situation.profile(device.device).memory_bytes
    if need > have:
        raise BudgetError(
            f"device {device.device}: expected room for its part of the model, {human_bytes(need)} at batch size "
            f"{device.batch_size}, got {human_bytes(have)}. Choose fewer blocks, or a smaller batch.",
            device=device.device,
            need_bytes=need,
            have_bytes=have,
        )


def _server_bytes(method: Method, plan: RoundPlan, situation: Situation, rehearsed: Rehearsed) -> int:
    """Bytes that the server needs.

    Raises:
      BudgetError: It does not have that.
    """
    need = method.round.server_bytes(plan, situation.costs, situation.num_tokens)
    need += rehearsed.fold_bytes * situation.rounds
    server = situation.fleet.server
    if need > server.memory_bytes:
        raise BudgetError(
            f"server {server.name}: expected room for its part of the round, {human_bytes(need)}, got "
            f"{human_bytes(server.memory_bytes)}. Cut deeper, or take a smaller batch.",
            device=server.name,
            need_bytes=need,
            have_bytes=server.memory_bytes,
        )
    return need


def _on_devices(plan: RoundPlan, situation: Situation, rehearsed: Rehearsed) -> dict[str, OnDevice]:
    events_of = defaultdict[str, list[Event]](list)
    for event in rehearsed.events:
        events_of[event.who].append(event)
    return {
        device.device: OnDevice(
            cut=device.cut,
            whole=device.alone and device.cut == situation.costs.num_blocks,
            memory_bytes=situation.device_bytes(device),
            of_bytes=situation.profile(device.device).memory_bytes,
            busy=_part(
                [event for event in events_of[device.device] if event.what not in ON_THE_LINK], rehearsed.seconds
            ),
            idle=1 - _part(events_of[device.device], rehearsed.seconds),
        )
        for device in plan.devices
    }


def _share(events: Sequence[Event], who: str, seconds: float) -> float:
    return _part([event for event in events if event.who == who], seconds)


def _part(events: Sequence[Event], seconds: float) -> float:
    """The part of the time that these take up, where it is more than none."""
    covered = length(union((event.start_seconds, event.end_seconds) for event in events))
    return covered / seconds if seconds else 0.0


def _waits(method: Method, plan: RoundPlan, inputs: RunInputs) -> Waits:
    stragglers = stragglers_of(inputs.config, method)
    if plan.deadline_seconds is not None or stragglers.seconds is not None:
        return "deadline"
    if stragglers.fraction is not None:
        return "quorum"
    if not stragglers.waits_for_all:
        return "no"
    return "step" if method.round.together else "round"
