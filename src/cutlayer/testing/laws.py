"""The laws that every method is held to (`cutlayer check`), each a function of the method.

A law returns None where it holds and the reason where it does not apply to this method, and raises `Broken` where it
does not hold. The first line of its docstring is its sentence. Equalities are bit for bit, on the CPU.

What a method is, a law finds in what the method does, never in its name: so a stranger's is held to the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor

from cutlayer.config import read_config
from cutlayer.data.batches import parts_of
from cutlayer.device.store import MemoryStore
from cutlayer.errors import ConfigError, StragglersError, UserError, leaves
from cutlayer.fleet.allotment import frequency_of
from cutlayer.fleet.profile import Fleet, Trace
from cutlayer.gate.guard import Guard
from cutlayer.methods.method import Method
from cutlayer.methods.source import described_error
from cutlayer.methods.table import MethodRow
from cutlayer.model.base import Base
from cutlayer.model.low_rank import factor_names
from cutlayer.policies.aggregate import Contribution
from cutlayer.policies.plan import Situation
from cutlayer.policies.stragglers import Late, Stragglers, deadline, quorum, wait_all
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import prepare
from cutlayer.run.simulated import simulate
from cutlayer.testing.playground import (
    FlatCosts,
    LeavingLink,
    ListedBatches,
    Played,
    fleet_of,
    learning_rate,
    plain_training,
    play,
    played,
    streams_for,
    tiny_base,
)
from cutlayer.testing.tiny import BLOCKS, save_inputs, scratch
from cutlayer.types import Adapter, Batch, Event, History, RoundPlan
from cutlayer.wire.frames import encode
from cutlayer.wire.link import Link
from cutlayer.wire.messages import Activations, Assignment, Finish, Message

ROUNDS, STEPS = 2, 2


class Broken(Exception):
    """A law does not hold."""


@dataclass(frozen=True)
class Subject:
    """A method that is held to the laws.

    Attributes:
      row: where it is, and what it says of itself.
      options: with which it is held to them; others have their defaults.
    """

    row: MethodRow
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, **more: Any) -> Method:
        """The method, made anew: what one run has changed in it is not there in the next."""
        return self.row.built({**self.options, **more}, seed=0)

    @cached_property
    def run(self) -> Played:
        """A run of two rounds on three devices: most laws look at one and the same."""
        return played(self.build(), rounds=ROUNDS, local_steps=STEPS)

    def plain(self) -> dict[str, Any]:
        """The options with which one device trains as ordinary training does, as the method's file says."""
        return dict(self.row.description.neutral)


Law = Callable[[Subject], str | None]
LAWS: dict[str, Law] = {}
"""Every law, by name, in the order in which they are asked."""


def law(function: Law) -> Law:
    """Puts a law into the list."""
    LAWS[function.__name__] = function
    return function


def sentence(law: Law) -> str:
    """The law in a sentence: the first line of its docstring."""
    return (law.__doc__ or "").splitlines()[0]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of holding a method to a law.

    Attributes:
      law: its name.
      word: holds, does not apply, or broken.
      why: of what is not `holds`.
    """

    law: str
    word: str
    why: str = ""


def judge(subject: Subject, laws: Mapping[str, Law] = LAWS) -> Iterator[Verdict]:
    """Holds the method to each law in turn; an error of the method's own breaks the law that met it."""
    for name, law in laws.items():
        try:
            reason = law(subject)
        except Broken as error:
            yield Verdict(name, "broken", str(error))
        except UserError as error:
            yield Verdict(name, "broken", f"the method refuses: {error}")
        except Exception as error:
            yield Verdict(name, "broken", f"it raises {described_error(error, subject.row.source.path)}")
        else:
            yield Verdict(name, "holds") if reason is None else Verdict(name, "does not apply", reason)


def expect(holds: bool, otherwise: str) -> None:
    """Raises Broken unless it holds."""
    if not holds:
        raise Broken(otherwise)


def expect_same(one: Adapter, other: Adapter, otherwise: str) -> None:
    """Raises Broken unless two adapters are equal, bit for bit; `otherwise` begins what is said."""
    foreign = sorted(one.keys() ^ other.keys())
    expect(not foreign, f"{otherwise}: {len(foreign)} tensors are in one of them alone, {foreign[:1]} among them")
    different = [name for name in one if not torch.equal(one[name], other[name])]
    expect(not different, f"{otherwise}: {len(different)} of {len(one)} tensors differ, {different[:1]} among them")


# ------------------------------------------------------------------ what is learnt


@law
def one_device_is_plain_training(subject: Subject) -> str | None:
    """One device, nothing compressed: ordinary PEFT training of its batches, bit for bit, at every cut."""
    if (reason := _not_all_trained(subject)) is not None:
        return reason
    if not _keeps_one_adapter(subject):
        return "its aggregate makes other factors even of one adapter"
    held = 0
    for options in _cuts(subject):
        for base in (tiny_base(), tiny_base("llama", "causal-lm")):
            try:
                method = subject.build(**options)
                run = played(method, base=base, num_devices=1, rounds=ROUNDS, local_steps=STEPS, samples=lambda _: 4)
            except ConfigError:
                if "cut" not in options:
                    raise
                continue  # a cut that this method refuses
            at = f"at cut {options['cut']}" if "cut" in options else "with one device"
            _expect_plain(run, base, f"{base.family.name}, {at}, against plain transformers and PEFT")
            held += 1
    return None if held else "it refuses every cut"


def _expect_plain(run: Played, base: Base, otherwise: str) -> None:
    rates = [learning_rate(round, step) for round in range(ROUNDS) for step in range(STEPS)]
    given = run.streams["device-0"].given
    expect(len(given) == len(rates), f"{otherwise}: the device drew {len(given)} batches in {len(rates)} local steps")
    start = base.initial_adapter(0)
    plain, _ = plain_training(base, start, given, rates)
    expect_same(run.adapter, plain, otherwise)
    untouched = [name for name, value in start.items() if torch.equal(value, plain[name])]
    expect(not untouched, f"{otherwise}: plain training trained nothing of {untouched[:1]}")


@law
def one_device_trains_the_products_of_plain_training(subject: Subject) -> str | None:
    """One device, one round: the products B A of ordinary PEFT training, up to rounding, whatever their factors."""
    if (reason := _not_all_trained(subject)) is not None:
        return reason
    if _keeps_one_adapter(subject):
        return "its aggregate leaves one adapter as it is, and the law of plain training says more"
    base = tiny_base()
    run = played(subject.build(**subject.plain()), num_devices=1, rounds=1, local_steps=STEPS, samples=lambda _: 4)
    rates = [learning_rate(0, step) for step in range(STEPS)]
    plain, _ = plain_training(base, base.initial_adapter(0), run.streams["device-0"].given, rates)
    for name, one, other in _learnt(run.adapter, plain):
        close = torch.allclose(one, other, rtol=1e-5, atol=1e-7)
        expect(close, f"{name}, against plain PEFT, is {float((one - other).abs().max()):.2g} off")
    return None


def _cuts(subject: Subject) -> list[dict[str, Any]]:
    """The options of each cut; those of plain training where the method chooses where it cuts, or does not cut."""
    if "cut" in subject.row.options and "cut" not in subject.options:
        return [subject.plain() | {"cut": cut} for cut in range(BLOCKS + 1)]
    return [subject.plain()]


def _keeps_one_adapter(subject: Subject) -> bool:
    """Whether the aggregate of one whole adapter is that adapter."""
    start = tiny_base().initial_adapter(0)
    moved = {name: value + 0.125 for name, value in start.items()}
    part = Contribution(moved, dict.fromkeys(moved, 3.0), device="device-0")
    joined = subject.build(**subject.plain()).aggregate(start, [part], RoundPlan(0))
    return joined.keys() == moved.keys() and all(torch.equal(joined[name], moved[name]) for name in moved)


def _not_all_trained(subject: Subject) -> str | None:
    """The reason why ordinary training, of everything, is not what one device's could be; None where it could."""
    if reason := subject.row.description.never_plain:
        return f"its file says: {reason}"
    plan = subject.build(**subject.plain()).make_plan(0, _situation(1))
    if any(0 in ranks for ranks in (plan.ranks, *(device.ranks for device in plan.devices))):
        return "some blocks have no adapter, so less is trained than by ordinary training"
    return None


def _situation(num_devices: int, history: History | None = None) -> Situation:
    fleet, costs = fleet_of(num_devices), FlatCosts(BLOCKS)
    counts = {device.name: (4, 3, 2) for device in fleet.devices}
    return Situation(fleet, costs, history or History(), 10, 4, STEPS, rounds=ROUNDS, label_counts=counts)


# ------------------------------------------------------------------ what counts


@law
def every_sample_counts_once(subject: Subject) -> str | None:
    """Every sample that a device draws is trained on and counts once, and devices take all steps of their plans."""
    _expect_all_counted(subject.run)
    return None


def _expect_all_counted(run: Played) -> None:
    for device, stream in run.streams.items():
        records = run.logbook.history.of(device)
        drawn = sum(batch.num_samples for batch in stream.given)
        for what in ("samples", "weight"):
            counted = sum(getattr(record, what) for record in records)
            expect(counted == drawn, f"{device} drew {drawn} samples, and {counted} count as its {what}")
        steps, planned = [record.steps for record in records], _planned_steps(run, device)
        expect(steps == planned, f"{device} took {steps} steps in its rounds, of {planned} that were planned")
        expect(len(stream.given) == sum(steps), f"{device} drew {len(stream.given)} batches for {sum(steps)} steps")
    of_rounds, drawn = sum(row["samples"] for row in run.rows), sum(_drawn(run))
    expect(of_rounds == drawn > 0, f"devices drew {drawn} samples, and the rounds say {of_rounds}")


def _planned_steps(run: Played, device: str) -> list[int]:
    """The local steps of each round that the device was in."""
    assigned = [one.plan for one in run.sent_down if isinstance(one, Assignment)]
    return [plan.local_steps for plan in assigned if plan.device == device]


def _drawn(run: Played) -> list[int]:
    return [batch.num_samples for stream in run.streams.values() for batch in stream.given]


@law
def devices_that_agree_are_followed(subject: Subject) -> str | None:
    """The adapter with which all devices end is the next one: nobody counts twice, nothing shrinks or grows."""
    # a method may go only a part of the way to what devices have learnt: with its neutral options it goes all of it
    method, start = subject.build(**subject.plain()), tiny_base().initial_adapter(0)
    if method.fold is not None:
        return "what devices learnt is folded into the base, and adapters begin anew"
    moved = {name: value + 0.125 for name, value in start.items()}
    parts = [
        Contribution(dict(moved), dict.fromkeys(moved, float(weight)), device=f"device-{weight}")
        for weight in (1, 2, 5)
    ]
    joined = method.aggregate(start, parts, RoundPlan(0))
    for name, one, other in _learnt(joined, moved):
        close = torch.allclose(one, other, rtol=1e-5, atol=1e-6)
        expect(close, f"all devices end with one {name}, and the next is {float((one - other).abs().max()):.2g} off")
    return None


@law
def nobody_counts_by_place(subject: Subject) -> str | None:
    """The next adapter does not depend on the order in which contributions are handed over, but for rounding."""
    if subject.build().fold is not None:
        return "what devices learnt is folded into the base, and adapters begin anew"
    start, generator = tiny_base().initial_adapter(0), torch.Generator().manual_seed(0)
    parts = []
    for weight in (1.0, 2.0, 5.0):
        moved = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in start.items()}
        parts.append(Contribution(moved, dict.fromkeys(moved, weight), device=f"device-{weight:.0f}"))
    one, other = (subject.build().aggregate(start, given, RoundPlan(0)) for given in (parts, parts[::-1]))
    for name, this, that in _learnt(one, other):
        close = torch.allclose(this, that, rtol=1e-4, atol=1e-5)
        expect(close, f"{name} is {float((this - that).abs().max()):.2g} off when contributions come in reverse")
    return None


def _learnt(one: Adapter, other: Adapter) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Effects of two adapters, side by side: the product of each pair of factors, and each tensor that is no factor."""
    pairs = factor_names(other)
    for b, a in pairs:
        yield f"product of {b} and its A", one[b] @ one[a], other[b] @ other[a]
    for name in other.keys() - {name for pair in pairs for name in pair}:
        yield name, one[name], other[name]


@law
def the_order_of_the_fleet_does_not_matter(subject: Subject) -> str | None:
    """Devices that train apart from each other end with one adapter, in whatever order the fleet lists them."""
    if not subject.build().round.divisible:
        return "what a device trains depends on others, so their order may count"
    base, fleet = tiny_base(), fleet_of(4)
    turned = fleet.model_copy(update={"devices": tuple(reversed(fleet.devices))})
    adapters = []
    for one in (fleet, turned):
        streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)
        adapters.append(play(base, subject.build(), one, streams, rounds=ROUNDS, local_steps=STEPS).adapter)
    expect_same(adapters[0], adapters[1], "the fleet in its order against the fleet in reverse")
    return None


@law
def who_leaves_holds_up_nobody(subject: Subject) -> str | None:
    """A device that is gone in the middle of a round holds up nobody: the others take all of their steps."""
    base, fleet = tiny_base(), fleet_of(3)
    streams = streams_for(fleet, base.settings.task, steps=ROUNDS * STEPS)

    def leaving(device: str, link: Link) -> Link:
        return LeavingLink(link, device, round=0, after=1) if device == "device-1" else link

    run = play(base, subject.build(), fleet, streams, rounds=ROUNDS, local_steps=STEPS, link_of=leaving)
    for device in ("device-0", "device-2"):
        steps, planned = [record.steps for record in run.logbook.history.of(device)], _planned_steps(run, device)
        expect(steps == planned, f"device-1 left, and {device} took {steps} steps, of {planned} that were planned")
    return None


@law
def devices_may_come_and_go(subject: Subject) -> str | None:
    """Every round ends under every policy where devices come and go, and none is refused; waited for, all counts."""
    fleet = fleet_that_comes_and_goes(subject.run.rows[0]["virtual_seconds"])
    _expect_all_counted(_on(subject, fleet, wait_all()))
    _expect_all_counted(_on(subject, fleet_half_of_which_is_there(), wait_all(), rounds=2 * ROUNDS))
    method = subject.build()
    late: list[Late] = ["drop", "use"]
    plan = method.make_plan(0, _situation(3))
    stays = not (method.fold or method.moved or method.round.shape.at_sites)
    if stays and all(device.alone for device in plan.devices):
        late.append("keep")
    quorums = [] if method.round.together else [quorum(0.5, what) for what in late]
    for policy in (deadline(0.6 * subject.run.rows[0]["virtual_seconds"], "use"), *quorums):
        try:
            run = _on(subject, fleet, policy)
        except ExceptionGroup as group:  # a deadline that nobody has met says so
            closes = policy.seconds is not None or plan.deadline_seconds is not None
            if not closes or not all(isinstance(error, StragglersError) for error in leaves(group)):
                raise
        else:
            expect(len(run.rows) == ROUNDS, f"with {policy}, {len(run.rows)} of {ROUNDS} rounds have ended")
            counted = sum(row["samples"] for row in run.rows)
            expect(0 < counted <= sum(_drawn(run)), f"with {policy}, {counted} samples count of {sum(_drawn(run))}")
    return None


def fleet_that_comes_and_goes(seconds: float) -> Fleet:
    """A device that is there in most rounds, one that leaves in every half of these seconds, and one that stays.

    Args:
      seconds: What a round takes where nobody leaves.
    """
    fleet = fleet_of(3)
    trace = Trace(here_seconds=((0.0, seconds / 3),), every_seconds=seconds / 2)
    availability = {"device-0": 0.7, "device-1": trace, "device-2": 1.0}
    devices = [one.model_copy(update={"availability": availability[one.name]}) for one in fleet.devices]
    return fleet.model_copy(update={"devices": tuple(devices)})


def fleet_half_of_which_is_there() -> Fleet:
    """Unequal devices each of which is there in every second round or so: what is planned for one depends on others."""
    fleet = fleet_of(4)
    devices = [one.model_copy(update={"availability": 0.5}) for one in fleet.devices]
    return fleet.model_copy(update={"devices": tuple(devices)})


class _AsAsked(ListedBatches):
    """A stream that gives of each prepared batch as many samples as it is asked for, at most."""

    def next(self, batch_size: int | None = None) -> Batch:
        batch = super().next()
        most = batch.num_samples if batch_size is None else min(batch_size, batch.num_samples)
        self._batches[self._next - 1], _ = parts_of(batch, [most, batch.num_samples - most])
        return self._batches[self._next - 1]


def _on(subject: Subject, fleet: Fleet, policy: Stragglers, rounds: int = ROUNDS) -> Played:
    """A run whose server looks at each message as that of a real fleet does: batches are no larger than it has said."""
    streams = streams_for(fleet, "classification", steps=(rounds + 2) * STEPS)
    return play(
        tiny_base(),
        subject.build(),
        fleet,
        {device: _AsAsked(stream.all) for device, stream in streams.items()},
        rounds=rounds,
        local_steps=STEPS,
        stragglers=policy,
        stores={device.name: MemoryStore() for device in fleet.devices},
        guard=Guard,
    )


@law
def only_the_chosen_take_part(subject: Subject) -> str | None:
    """Two of five devices take part in a round with fraction=0.4; nobody else computes or sends."""
    if "fraction" not in subject.row.options:
        return "it has no option `fraction`"
    run = played(subject.build(fraction=0.4), num_devices=5, rounds=4, local_steps=STEPS)
    for round in range(4):
        cohort = {record.device for record in run.logbook.history.records if record.round == round}
        expect(len(cohort) == 2, f"round {round} has {len(cohort)} of five devices: {sorted(cohort)}")
        at_work = {event.who for event in run.events if event.round == round} - {"server"}
        expect(at_work == cohort, f"round {round} is planned for {sorted(cohort)}, and {sorted(at_work)} work in it")
    return None


# ------------------------------------------------------------------ again and again


@law
def the_same_seed_is_the_same_run(subject: Subject) -> str | None:
    """Two runs with one seed are one run: the same adapter, the same events."""
    one, other = subject.run, played(subject.build(), rounds=ROUNDS, local_steps=STEPS)
    expect_same(one.adapter, other.adapter, "two runs with one seed")
    expect(one.events == other.events, "two runs with one seed end with one adapter, after other events")
    return None


@law
def planning_changes_nothing(subject: Subject) -> str | None:
    """Planners keep nothing: the plan of a round depends on the round and the situation alone, however often asked."""
    first = [record for record in subject.run.logbook.history.records if record.round == 0]
    asked = subject.build()
    for round, situation in ((0, _situation(3)), (1, _situation(3, History(first)))):
        fresh = subject.build().make_plan(round, situation)
        plans = [asked.make_plan(round, situation) for _ in range(2)]
        expect(plans == [fresh] * 2, f"round {round} is planned otherwise when it is planned again")
    return None


@law
def stop_and_resume_is_never_stopped(subject: Subject) -> str | None:
    """Stop after a round and resume: the run that never stopped, adapter and events to the bit."""
    here = Path(mkdtemp(dir=scratch()))
    _run(subject, here / "whole")
    with contextlib.suppress(_Stopped):
        _run(subject, here / "stopped", _StopAfterARound())
    _run(subject, here / "stopped", resume=True)
    whole, stopped = _files(here / "whole"), _files(here / "stopped")
    expect(whole.keys() == stopped.keys(), f"one of them alone has {sorted(whole.keys() ^ stopped.keys())}")
    expect(any(name.endswith(".safetensors") for name in whole), "a run leaves nothing that was trained")
    different = [name for name, content in whole.items() if stopped[name] != content]
    expect(not different, f"the stopped and resumed run has another {', '.join(different)} than the whole run")
    return None


def _files(run: Path) -> dict[str, bytes]:
    """The content of a run's files, by name, but for those that say how long it took, or where it is."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    told = {str(path.relative_to(run)): path for path in files}
    timed = ("config.yaml", "metrics.jsonl", "summary.json", "report.html", "tensorboard/", "checkpoint")
    return {name: path.read_bytes() for name, path in told.items() if not name.startswith(timed)}


class _Stopped(Exception):
    """Stands for a kill."""


class _StopAfterARound(NoProgress):
    def round_done(self, row: Mapping[str, Any]) -> None:  # noqa: ARG002
        raise _Stopped


@cache
def _inputs() -> Path:
    return save_inputs(scratch() / "inputs", rows=48)


def _run(subject: Subject, out: Path, display: NoProgress | None = None, *, resume: bool = False) -> None:
    """A run of two rounds and two devices, with all of its files."""
    machine = {"tflops": 1e-5, "efficiency": 0.3, "up_mbit": 10, "down_mbit": 20, "latency_ms": 5, "memory_gib": 1}
    values = {
        "model.name": str(_inputs() / "model"),
        "lora.targets": ["all-linear"],
        "data.path": str(_inputs() / "data"),
        "data.max_length": 16,
        "train.rounds": 3,
        "train.local_steps": STEPS,
        "train.batch_size": 4,
        "train.lr": 0.01,
        "fleet": {
            "server": {"tflops": 1, "efficiency": 0.3, "memory_gib": 4},
            "devices": [{"name": f"device-{n}", **machine, "max_blocks": 1 + n} for n in range(2)],
        },
        "out": str(out),
        "method.name": subject.row.name,
        **{f"method.{name}": value for name, value in subject.options.items()},
    }
    simulate(prepare(read_config(None, values=values)), display or NoProgress(), resume=resume)


# ------------------------------------------------------------------ what stays, what travels


@law
def frozen_weights_never_change(subject: Subject) -> str | None:
    """The base's weights are after a run what they were before it."""
    method = subject.build()
    if method.fold is not None:
        return "it folds what was learnt into the base's weights"
    if method.moved is not None:
        return "it moves the base's own weights"
    base = Base(tiny_base().settings)
    base.whole()
    before = {name: value.clone() for name, value in base.weights.loaded.items()}
    played(subject.build(), base=base, rounds=ROUNDS, local_steps=STEPS)
    after = base.weights.loaded
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    expect(not changed, f"{len(changed)} frozen tensors have changed, {changed[:1]} among them")
    return None


@law
def raw_text_never_leaves_a_device(subject: Subject) -> str | None:
    """No message of a device's holds a text: what is as long as one is floating point, or a mask."""
    run = subject.run
    texts = [ids_T for stream in run.streams.values() for batch in stream.given for ids_T in batch.input_ids_BT]
    for message in run.sent_up:
        kind = type(message).__name__
        for name, tensor in _tensors(message):
            expect(not tensor.requires_grad, f"{name} of {kind} carries the graph that made it")
            expect(not _holds_a_text(tensor, texts), f"{name} of {kind} holds the token ids of a text")
        if isinstance(message, Activations):
            expect(message.h_BTD.is_floating_point(), f"activations are {message.h_BTD.dtype}")
            expect(message.mask_BT.dtype is torch.bool, f"the mask is {message.mask_BT.dtype}, and not true or false")
    return None


def _tensors(message: Message) -> Iterator[tuple[str, Tensor]]:
    for one in dataclasses.fields(message):
        value = getattr(message, one.name)
        if isinstance(value, Tensor):
            yield one.name, value
        elif isinstance(value, Mapping):
            yield from ((f"{one.name} {name}", inner) for name, inner in value.items() if isinstance(inner, Tensor))


def _holds_a_text(tensor: Tensor, texts: Sequence[Tensor]) -> bool:
    """Whether a row of it is a text's token ids, in whatever type."""
    if tensor.dim() == 0 or tensor.dtype is torch.bool:
        return False
    rows_NT = tensor.detach().reshape(-1, tensor.shape[-1]).double()
    same = [ids_T for ids_T in texts if len(ids_T) == rows_NT.shape[1]]
    return any(bool((rows_NT == ids_T).all(dim=1).any()) for ids_T in same)


@law
def reported_bytes_are_bytes_serialised(subject: Subject) -> str | None:
    """The bytes of a run's rounds are those of the frames that were sent, up and down."""
    run = subject.run
    sent = {
        "bytes_up": sum(len(encode(message)) for message in run.sent_up),
        "bytes_down": sum(len(encode(message)) for message in run.sent_down if not isinstance(message, Finish)),
    }
    for what, num_bytes in sent.items():
        reported = sum(row[what] for row in run.rows)
        expect(reported == num_bytes, f"{reported} {what} are reported, of {num_bytes} that were sent")
    return None


# ------------------------------------------------------------------ time


@law
def times_add_up(subject: Subject) -> str | None:
    """A device is at work, on the network or waiting in every round, and its FLOPs are those that it took time for."""
    run = subject.run
    ends = [0.0, *(row["virtual_seconds"] for row in run.rows)]
    speeds = {device.name: device.effective_flops for device in fleet_of(3).devices}
    assigned = [one for one in run.sent_down if isinstance(one, Assignment)]
    clocks = {(one.device, one.round): frequency_of(one.plan) for one in assigned}
    for record in run.logbook.history.records:
        where = f"{record.device} in round {record.round}"
        duration = ends[record.round + 1] - ends[record.round]
        occupied = _length([event for event in run.events if (event.who, event.round) == (record.device, record.round)])
        _expect_close(occupied + record.waiting_seconds, duration, f"{where}, occupied and waiting, in seconds")
        expect(occupied <= record.busy_seconds + record.network_seconds + 1e-9, f"{where} is occupied with nothing")
        expect(record.busy_seconds > 0, f"{where} computes nothing")
        expect(record.network_seconds > 0, f"{where} sends nothing")
        speed = speeds[record.device] * clocks[record.device, record.round]
        _expect_close(record.flops, record.busy_seconds * speed, f"{where}, FLOPs against its speed")
    return None


def _length(events: Sequence[Event]) -> float:
    """Seconds in which at least one of them goes on."""
    total, until = 0.0, float("-inf")
    for start, end in sorted((event.start_seconds, event.end_seconds) for event in events):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _expect_close(one: float, other: float, otherwise: str) -> None:
    expect(abs(one - other) <= 1e-6 * max(abs(one), abs(other)), f"{otherwise}: {one:g} against {other:g}")
