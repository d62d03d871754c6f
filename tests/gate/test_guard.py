"""The guard: whatever honest devices send passes, of every method; whatever else is sent has its reason.

The laws run real rounds through it. The hostile ones change one field of an honest message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cutlayer.device.talks.pruned import CHANGE
from cutlayer.device.talks.shrinking import RANKS_LEFT
from cutlayer.errors import DivergedError, Refused
from cutlayer.gate.forms import MOST_EVENTS, ScriptOf
from cutlayer.gate.guard import Guard
from cutlayer.methods.table import TABLE
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.settings import ModelSettings
from cutlayer.model.structure import units_by_name
from cutlayer.packing import UNCOMPRESSED, Compression, compression
from cutlayer.policies.prune import Prune
from cutlayer.policies.repeat import Repeat
from cutlayer.policies.self_prune import SelfPrune
from cutlayer.policies.stragglers import Late, quorum
from cutlayer.rounds import local, pruned, shrinking, split, stream
from cutlayer.server.owners import one_per_device
from cutlayer.testing.playground import WAIT_ALL, fleet_of
from cutlayer.testing.tiny import LABELS, VOCABULARY, random_batch
from cutlayer.types import DevicePlan, Kept, RoundPlan
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import Activations, Assignment, Close, Finish, Gradients, Measured, Message, Recall, Update
from ends import activations_for, server_for
from turns import by_turns
from watched import guarded_run

LONGEST = 10
NAN, INF = float("nan"), float("inf")
ModelMaker = Callable[[str, str], Path]


def open_base(tiny_model: ModelMaker, family: str, task: str) -> Base:
    labels, lora = LABELS if task == "classification" else 0, LoraSettings(targets=("all-linear",))
    return Base(ModelSettings(str(tiny_model(family, task)), task, num_labels=labels, lora=lora))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model, "bert", "classification")


@pytest.fixture(scope="module")
def llama(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model, "llama", "causal-lm")


# ------------------------------------------------------------------ honest devices


@pytest.mark.parametrize("method", list(by_turns(sorted(TABLE), one_of=2)))
def test_every_method_passes(method: str, bert: Base) -> None:
    """Unchanged, and within the frame limit, which the longest message of full size reaches."""
    _, seen = guarded_run(bert, method)
    assert {type(message) for _, _, message in seen} >= {Update}
    assert all(frame_bytes(message) <= limit for _, limit, message in seen)


def test_devices_that_prune_their_ranks_pass(bert: Base) -> None:
    _, seen = guarded_run(bert, "hetlora", gamma=0.5, lam=0.1)
    assert any(isinstance(message, Update) and RANKS_LEFT in message.facts for _, _, message in seen)


@pytest.mark.parametrize("method", ["memsfl", "splitfrozen", "fedlora", "vanilla", "mergesfl"])
def test_causal_language_models_pass(method: str, llama: Base) -> None:
    guarded_run(llama, method)


@pytest.mark.parametrize("name", ["bf16", "int8", "topk:0.25"])
@pytest.mark.parametrize("method", ["memsfl", "splitfrozen", "fedspine"])
def test_packed_messages_pass(method: str, name: str, bert: Base) -> None:
    _, seen = guarded_run(bert, method, compression(activations=name, gradients=name, adapters=name))
    assert all(frame_bytes(message) <= limit for _, limit, message in seen)


@pytest.mark.parametrize("late", ["drop", "use"])
@pytest.mark.parametrize("method", ["memsfl", "splitfrozen", "fedlora", "fedspine"])
def test_late_devices_pass(method: str, late: Late, bert: Base) -> None:
    """Messages of an earlier round, or of a round that was closed, pass while they are on their way."""
    options = {"cache": False} if "cache" in TABLE[method].options else {}
    run, _ = guarded_run(bert, method, stragglers=quorum(0.3, late), **options)
    assert any(record.late for record in run.logbook.history.records)


def test_recalls_pass(bert: Base) -> None:
    _, seen = guarded_run(bert, "splitfrozen")
    assert any(isinstance(message, Recall) for _, _, message in seen)


@pytest.mark.parametrize("method", ["fedlora", "fedspine"])
def test_the_frame_limit_is_tight(method: str, bert: Base) -> None:
    """The limit is that of the longest message of its plan, but for numbers of the header that could be longer."""
    _, seen = guarded_run(bert, method)
    longest: dict[int, int] = {}
    for _, limit, message in seen:
        longest[limit] = max(frame_bytes(message), longest.get(limit, 0))
    assert [limit - length for limit, length in longest.items() if not limit - 64 <= length <= limit] == []


# ------------------------------------------------------------------ hostile devices

Rows = frozenset[int]

SPLIT = DevicePlan("device-0", cut=2, batch_size=4, local_steps=2)
WHOLE = DevicePlan("device-0", cut=3, batch_size=4, local_steps=2, top=3)
PRUNED = WHOLE.having(Prune(0.5))
KEEPING = SPLIT.having(Repeat())
EVENTS = torch.tensor([[0.0, 1.5, -1, 0, 2e9, 0], [1.5, 1.5, 1, 4096, 0, 1]], dtype=torch.float64)
MEASURED = Measured("run", 0, "device-0", ("forward", "upload"), EVENTS)


def script_for(plan: DevicePlan) -> ScriptOf:
    """The script of a shape in which such a plan is made."""
    if not plan.head:
        return stream.script if plan.clause(Repeat) else split.script
    if plan.clause(SelfPrune):
        return shrinking.script
    return pruned.script if plan.clause(Prune) else local.script


def assignment_for(base: Base, plan: DevicePlan, round: int = 0) -> Assignment:
    """The assignment of a device with this plan."""
    server = server_for(base, fleet_of(1))
    server.begin(RoundPlan(round, (plan,)), one_per_device)
    return server.assignment(plan)


def guard_for(base: Base, plan: DevicePlan, codecs: Compression = UNCOMPRESSED, rows: Rows = frozenset()) -> Guard:
    """A guard whose first round is open, of a device whose server keeps these rows."""
    guard = unopened(base, codecs, rows, script=script_for(plan))
    guard.open(assignment_for(base, plan))
    return guard


def unopened(
    base: Base, codecs: Compression = UNCOMPRESSED, rows: Rows = frozenset(), script: ScriptOf = split.script
) -> Guard:
    return Guard(
        "device-0",
        "run",
        base,
        hidden_size=16,
        longest_tokens=LONGEST,
        compression=codecs,
        holds=lambda _device, row: row in rows,
        script=script,
    )


def check(guard: Guard, *messages: Message) -> None:
    for message in messages:
        guard.check_form(message)
        guard.check_values(message)


def reason_of(guard: Guard, message: Message, *before: Message) -> str:
    """Why this message is refused, after others that are not."""
    check(guard, *before)
    with pytest.raises(Refused, match="device device-0") as error:
        check(guard, message)
    assert len(str(error.value)) < 500
    return error.value.reason


def honest(base: Base, step: int = 0, **fields: Any) -> Activations:
    return replace(activations_for(base, random_batch(base.settings.task, tokens=LONGEST), 2, step=step), **fields)


def update_of(base: Base, plan: DevicePlan = SPLIT, **fields: Any) -> Update:
    full, facts = base.initial_adapter(0), dict[str, torch.Tensor]()
    adapter = {name: full[name] for name in base.device_names(plan.cut, top=plan.top)}
    if prune := plan.clause(Prune):
        heads, channels = (tuple(range(number)) for number in base.structure.left(prune.ratio))
        kept = Kept((heads,) * 3, (channels,) * 3)
        adapter = base.structure.slice_all(adapter, kept)
        scores = {name: torch.ones(base.structure.count(name)) for name, _ in units_by_name(kept)}
        facts = {CHANGE: torch.tensor(0.5, dtype=torch.float64), **base.structure.to_tensors(kept, scores)}
    steps, loss = (2, 0.7) if plan.head else (0, 0.0)
    return replace(Update("run", 0, "device-0", adapter, steps, 8, 8, loss, 1.0, facts), **fields)


def changed(tensor: torch.Tensor, value: float, *at: int) -> torch.Tensor:
    """A copy with one element set."""
    copy = tensor.clone()
    copy[at] = value
    return copy


def batch_of(*, samples: int = 4, tokens: int = LONGEST) -> dict[str, Any]:
    """The fields of a batch of this size, consistent in itself."""
    return {
        "h_BTD": torch.zeros(samples, tokens, 16),
        "mask_BT": torch.ones(samples, tokens, dtype=torch.bool),
        "labels": torch.zeros(samples, dtype=torch.int32),
        "weight": samples,
    }


def test_the_honest_ones_of_these_tests_pass(bert: Base, llama: Base) -> None:
    check(guard_for(bert, SPLIT), honest(bert), honest(bert, 1), update_of(bert))
    check(guard_for(bert, WHOLE), update_of(bert, WHOLE))
    check(guard_for(bert, PRUNED), update_of(bert, PRUNED))
    check(guard_for(llama, SPLIT), honest(llama), honest(llama, 1), update_of(llama, weight=2 * honest(llama).weight))
    rows_B = torch.arange(4, dtype=torch.int32)
    recall = Recall("run", 0, 1, "device-0", rows_B, LONGEST)
    kept = guard_for(bert, KEEPING, rows=frozenset(range(4)))
    check(kept, honest(bert, rows_B=rows_B), recall, update_of(bert))


def test_a_round_knows_nothing_of_the_one_before(llama: Base) -> None:
    """Recalled samples have no known weight, and a device that has said what it measured sends no more batches."""
    recall = Recall("run", 0, 1, "device-0", torch.arange(4, dtype=torch.int32), LONGEST)
    guard, heavy = guard_for(llama, KEEPING, rows=frozenset(range(4))), 2 * honest(llama).weight + 1
    rows_B = torch.arange(4, dtype=torch.int32)
    check(guard, honest(llama, rows_B=rows_B), recall, replace(MEASURED, whats=(), events_E6=EVENTS[:0]))
    check(guard, update_of(llama, weight=heavy - 1))
    guard.open(assignment_for(llama, KEEPING, 1))
    check(guard, honest(llama, round=1, rows_B=rows_B), honest(llama, 1, round=1, rows_B=rows_B))
    assert reason_of(guard, update_of(llama, round=1, weight=heavy)) == "wrong-weight"


HOSTILE: dict[str, tuple[str, Callable[[Activations], dict[str, Any]]]] = {
    "another run": ("wrong-run", lambda a: {"run": "other"}),
    "a round to come": ("wrong-round", lambda a: {"round": 1}),
    "another device": ("wrong-device", lambda a: {"device": "device-1"}),
    "a step to come": ("wrong-step", lambda a: {"step": 1}),
    "a step that never is": ("wrong-step", lambda a: {"step": 2**63}),
    "nan": ("not-finite", lambda a: {"h_BTD": changed(a.h_BTD, NAN, 3, 9, 15)}),
    "infinite": ("not-finite", lambda a: {"h_BTD": changed(a.h_BTD, -INF, 0, 0, 0)}),
    "fp64": ("wrong-dtype", lambda a: {"h_BTD": a.h_BTD.double()}),
    "integers": ("wrong-dtype", lambda a: {"h_BTD": a.h_BTD.int()}),
    "less width": ("wrong-shape", lambda a: {"h_BTD": a.h_BTD[..., :8]}),
    "more width": ("wrong-shape", lambda a: {"h_BTD": torch.cat([a.h_BTD] * 2, -1)}),
    "flat": ("wrong-shape", lambda a: {"h_BTD": a.h_BTD.flatten()}),
    "fewer h than masks": ("wrong-shape", lambda a: {"h_BTD": a.h_BTD[:3]}),
    "too many samples": ("wrong-shape", lambda a: batch_of(samples=5)),
    "too many tokens": ("wrong-shape", lambda a: batch_of(tokens=LONGEST + 1)),
    "no samples": ("wrong-shape", lambda a: batch_of(samples=0)),
    "no tokens": ("wrong-shape", lambda a: batch_of(tokens=0)),
    "a flat mask": ("wrong-shape", lambda a: {"mask_BT": a.mask_BT.flatten()}),
    "a mask of numbers": ("wrong-dtype", lambda a: {"mask_BT": a.mask_BT.int()}),
    "a mask with a hole": ("wrong-mask", lambda a: {"mask_BT": changed(a.mask_BT, 0, 0, 3)}),
    "a sample that is padding": ("wrong-mask", lambda a: {"mask_BT": a.mask_BT & False}),
    "labels of int64": ("wrong-dtype", lambda a: {"labels": a.labels.long()}),
    "a label too few": ("wrong-shape", lambda a: {"labels": a.labels[:3]}),
    "a class too high": ("wrong-labels", lambda a: {"labels": changed(a.labels, LABELS, 1)}),
    "a class below 0": ("wrong-labels", lambda a: {"labels": changed(a.labels, -100, 1)}),
    "a weight too high": ("wrong-weight", lambda a: {"weight": a.weight + 1}),
    "no weight": ("wrong-weight", lambda a: {"weight": 0}),
    "rows that nobody asked for": ("wrong-rows", lambda a: {"rows_B": torch.arange(4, dtype=torch.int32)}),
}
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "rows too few": ("wrong-shape", {"rows_B": torch.zeros(3, dtype=torch.int32)}),
    "rows of int64": ("wrong-dtype", {"rows_B": torch.zeros(4, dtype=torch.int64)}),
    "a row below 0": ("wrong-rows", {"rows_B": torch.tensor([0, 1, 2, -1], dtype=torch.int32)}),
    "no rows": ("wrong-rows", {"rows_B": None}),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_activations(what: str, bert: Base) -> None:
    reason, fields = HOSTILE[what]
    message = honest(bert)
    assert reason_of(guard_for(bert, SPLIT), replace(message, **fields(message))) == reason


@pytest.mark.parametrize("what", ROWS)
def test_hostile_rows(what: str, bert: Base) -> None:
    reason, fields = ROWS[what]
    message = honest(bert, rows_B=torch.arange(4, dtype=torch.int32))
    assert reason_of(guard_for(bert, KEEPING), replace(message, **fields)) == reason


IN_PARTS = replace(SPLIT, micro_batches=2)
PARTS: dict[str, tuple[str, int, Callable[[Activations], dict[str, Any]]]] = {
    "another number": ("wrong-step", 0, lambda a: {"micro_batch": 1}),
    "the first again": ("wrong-step", 1, lambda a: {"micro_batch": 0}),
    "one more than announced": ("wrong-step", 1, lambda a: {"micro_batch": 2}),
    "more than planned": ("wrong-step", 0, lambda a: {"micro_batches": 3}),
    "none at all": ("wrong-step", 0, lambda a: {"micro_batches": 0}),
    "another number of them": ("wrong-step", 1, lambda a: {"micro_batches": 3}),
    "the next step too early": ("wrong-step", 1, lambda a: {"step": 1, "micro_batch": 0}),
    "too many samples in a part": ("wrong-shape", 0, lambda a: {**batch_of(samples=3), "others_weight": 1}),
    "a share that is too large": ("wrong-weight", 0, lambda a: {"others_weight": 0}),
    "a share that grows": ("wrong-weight", 1, lambda a: {"others_weight": 1}),
    "a share that shrinks": ("wrong-weight", 1, lambda a: {"others_weight": 3}),
}


def part_of(base: Base, number: int, **fields: Any) -> Activations:
    """One of two parts of a batch of four."""
    whole = honest(base)
    rows = slice(2 * number, 2 * number + 2)
    weights = [2, 2]
    if base.settings.task == "causal-lm":
        weights = [int((whole.labels[rows, 1:] != -100).sum()) for rows in (slice(0, 2), slice(2, 4))]
    part = {"h_BTD": whole.h_BTD[rows], "mask_BT": whole.mask_BT[rows], "labels": whole.labels[rows]}
    named = {"weight": weights[number], "others_weight": weights[1 - number], "micro_batches": 2, "micro_batch": number}
    return replace(whole, **part | named | fields)


def test_honest_parts_pass(bert: Base, llama: Base) -> None:
    for base in (bert, llama):
        parts = [part_of(base, number, step=step) for step in range(2) for number in range(2)]
        weight = sum(part.weight for part in parts)
        check(guard_for(base, IN_PARTS), *parts, update_of(base, IN_PARTS, weight=weight))


@pytest.mark.parametrize("what", PARTS)
def test_hostile_parts(what: str, bert: Base) -> None:
    reason, number, fields = PARTS[what]
    message = part_of(bert, number)
    before = [part_of(bert, 0)][:number]
    assert reason_of(guard_for(bert, IN_PARTS), replace(message, **fields(message)), *before) == reason


def test_a_step_that_never_adds_up(bert: Base) -> None:
    """A device that makes its parts count for less than they do is found out before the step is taken."""
    first, second = (part_of(bert, number, others_weight=6) for number in range(2))
    assert reason_of(guard_for(bert, IN_PARTS), second, first) == "wrong-weight"


def test_parts_of_more_samples_than_planned(bert: Base) -> None:
    plan = replace(SPLIT, batch_size=3, micro_batches=2)
    first, second = part_of(bert, 0), part_of(bert, 1)
    assert reason_of(guard_for(bert, plan), second, first) == "wrong-shape"


def test_an_update_in_the_middle_of_a_step(bert: Base) -> None:
    guard = guard_for(bert, IN_PARTS)
    assert reason_of(guard, update_of(bert), part_of(bert, 0)) == "wrong-kind"
    guard.close(Close("run", 0, wanted=True, reason="deadline"))
    check(guard, update_of(bert, samples=0, weight=0))


def test_a_round_begins_with_a_first_part(bert: Base) -> None:
    """The first part of a round passes whatever became of the last round's parts."""
    guard = guard_for(bert, IN_PARTS)
    check(guard, part_of(bert, 0))
    guard.open(assignment_for(bert, IN_PARTS))
    check(guard, part_of(bert, 0), part_of(bert, 1))


def test_a_device_has_more_to_tell_of_parts(bert: Base) -> None:
    def told(plan: DevicePlan) -> Measured:
        once, each = MOST_EVENTS
        each += plan.cut  # a device may go back through its blocks one at a time
        events_E6 = torch.zeros(once + each * plan.local_steps * plan.micro_batches, 6, dtype=torch.float64)
        return Measured("run", 0, "device-0", ("upload",), events_E6)

    parts = [part_of(bert, number, step=step) for step in range(2) for number in range(2)]
    check(guard_for(bert, IN_PARTS), *parts, told(IN_PARTS))
    assert reason_of(guard_for(bert, SPLIT), told(IN_PARTS), honest(bert), honest(bert, 1)) == "wrong-events"


def test_the_frame_limit_is_that_of_a_part(bert: Base) -> None:
    plan, rows_B = replace(KEEPING, batch_size=400, micro_batches=4), torch.arange(100, dtype=torch.int32)
    part = honest(bert, step=1, rows_B=rows_B, **batch_of(samples=100), micro_batch=3, micro_batches=4)
    assert 0 <= guard_for(bert, plan).frame_limit() - frame_bytes(replace(part, others_weight=300)) <= 16


@pytest.mark.parametrize("codec", ["none", "int8", "topk:0.25"])
@pytest.mark.parametrize("late", ["drop", "use", None])
def test_devices_that_send_parts_pass(late: Late | None, codec: str, bert: Base) -> None:
    stragglers = WAIT_ALL if late is None else quorum(0.3, late)
    codecs = compression(activations=codec, gradients=codec)
    run, seen = guarded_run(bert, "memsfl", codecs, stragglers, micro_batches=3)
    assert any(isinstance(message, Activations) and message.micro_batch == 1 for _, _, message in seen)
    assert all(frame_bytes(message) <= limit for _, limit, message in seen)
    assert late is None or any(record.late for record in run.logbook.history.records)


@pytest.mark.parametrize(
    ("reason", "token"),
    [("wrong-labels", VOCABULARY), ("wrong-labels", -1), ("wrong-labels", -99), ("wrong-weight", -100)],
)
def test_hostile_tokens(reason: str, token: int, llama: Base) -> None:
    message = honest(llama)
    assert reason_of(guard_for(llama, SPLIT), replace(message, labels=changed(message.labels, token, 0, 5))) == reason


def test_a_sample_without_a_token_to_predict(llama: Base) -> None:
    """Its loss would be 0 / 0 where it is alone in a batch. The first token is predicted from nothing."""
    message = honest(llama)
    labels = message.labels.clone()
    labels[0, 1:], labels[0, 0] = -100, 7
    weight = int((labels[:, 1:] != -100).sum())
    assert reason_of(guard_for(llama, SPLIT), replace(message, labels=labels, weight=weight)) == "wrong-labels"


def test_the_frame_limit_is_that_of_a_full_batch(bert: Base) -> None:
    plan, rows_B = replace(KEEPING, batch_size=400), torch.arange(400, dtype=torch.int32)
    full = honest(bert, step=1, rows_B=rows_B, **batch_of(samples=400))
    assert 0 <= guard_for(bert, plan).frame_limit() - frame_bytes(full) <= 16


def test_a_late_frame_may_be_as_long_as_its_own_round_allowed(bert: Base) -> None:
    guard = unopened(bert)
    assert guard.frame_limit() == 0
    for plan in (replace(SPLIT, batch_size=400), SPLIT):
        guard.open(assignment_for(bert, plan))
        assert guard.frame_limit() == guard_for(bert, replace(SPLIT, batch_size=400)).frame_limit()


def test_what_has_no_place(bert: Base) -> None:
    first, second, update = honest(bert), honest(bert, 1), update_of(bert)
    assignment, answer = assignment_for(bert, SPLIT), Gradients("run", 0, 0, "device-0", None, 0.5)
    for message in (assignment, answer, Finish("run", 0, "all is done")):
        assert reason_of(guard_for(bert, SPLIT), message) == "wrong-kind"
    assert reason_of(guard_for(bert, SPLIT), update) == "wrong-kind"  # before its steps
    assert reason_of(guard_for(bert, SPLIT), first, first) == "wrong-step"  # again
    assert reason_of(guard_for(bert, SPLIT), honest(bert, 2), first, second) == "wrong-kind"  # one more
    assert reason_of(guard_for(bert, SPLIT), update, first, second, update) == "wrong-kind"  # twice
    assert reason_of(guard_for(bert, WHOLE), first) == "wrong-kind"  # its plan has no such message
    assert reason_of(unopened(bert), first) == "wrong-round"


def test_a_late_message_passes_as_nothing(bert: Base) -> None:
    """The message passes whatever is in it: nobody will look. Its run and its sender are checked."""
    guard = guard_for(bert, SPLIT)
    check(guard, honest(bert))
    guard.open(assignment_for(bert, SPLIT, 3))
    for late in (honest(bert, 1), honest(bert, 9, h_BTD=torch.full((10**5,), NAN)), update_of(bert, adapter={})):
        passed = guard.check_form(late)
        assert isinstance(passed, Recall)
        assert (passed.round, passed.device, passed.rows_B.numel()) == (0, "device-0", 0)
    assert reason_of(guard, honest(bert, run="other")) == "wrong-run"
    assert reason_of(guard, honest(bert, device="device-1")) == "wrong-device"
    check(guard, honest(bert, round=3))  # the next round begins at step 0


def test_who_is_told_to_end_its_round_may(bert: Base) -> None:
    """After any step, with what was answered of it; not with more, and not twice."""
    close = Close("run", 0, True, "deadline")
    split, less = guard_for(bert, SPLIT), update_of(bert, samples=2, weight=2)
    check(split, honest(bert))
    split.close(close)
    assert reason_of(split, update_of(bert, samples=5, weight=5)) == "wrong-counts"
    assert reason_of(split, replace(less, weight=3)) == "wrong-weight"
    check(split, honest(bert, 1))  # was on its way
    check(split, less)
    assert reason_of(split, less) == "wrong-kind"
    nothing = guard_for(bert, SPLIT)
    nothing.close(close)
    check(nothing, update_of(bert, samples=0, weight=0))
    whole = guard_for(bert, WHOLE)
    one = update_of(bert, WHOLE, steps=1, samples=4, weight=4)
    assert reason_of(whole, one) == "wrong-counts"
    whole.close(replace(close, round=9))
    assert reason_of(whole, one) == "wrong-counts"
    whole.close(close)
    assert reason_of(whole, replace(one, steps=3)) == "wrong-counts"
    assert reason_of(whole, replace(one, samples=5, weight=5)) == "wrong-counts"
    check(whole, one)
    whole.open(assignment_for(bert, WHOLE, 1))
    assert reason_of(whole, replace(one, round=1)) == "wrong-counts", "the next round is held to its plan again"


def test_what_was_measured_comes_before_the_update(bert: Base) -> None:
    guard = guard_for(bert, WHOLE)
    check(guard, MEASURED)
    assert reason_of(guard, MEASURED) == "wrong-kind"
    check(guard, update_of(bert, WHOLE))
    assert reason_of(guard_for(bert, SPLIT), MEASURED, honest(bert)) == "wrong-kind"
    check(guard_for(bert, WHOLE), replace(MEASURED, whats=(), events_E6=EVENTS[:0]))
    closing = guard_for(bert, SPLIT)
    closing.close(Close("run", 0, True, "deadline"))
    check(closing, MEASURED)
    assert reason_of(closing, honest(bert)) == "wrong-kind"


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("wrong-events", {"whats": ("forward", "shell")}),
        ("wrong-events", {"whats": ("forward", "forward")}),
        ("wrong-events", {"whats": ("forward",)}),
        ("wrong-dtype", {"events_E6": EVENTS.float()}),
        ("wrong-shape", {"events_E6": EVENTS[:, :5]}),
        ("wrong-shape", {"events_E6": EVENTS[0, 0]}),
        ("wrong-events", {"events_E6": EVENTS[:1].expand(10_000, 6)}),
        *(("not-finite", {"events_E6": EVENTS * torch.tensor(value)}) for value in (NAN, INF)),
        ("wrong-events", {"events_E6": EVENTS - torch.tensor([1.0, 0, 0, 0, 0, 0])}),
        ("wrong-events", {"events_E6": EVENTS + torch.tensor([2.0, 0, 0, 0, 0, 0])}),
        ("wrong-events", {"events_E6": EVENTS + torch.eye(6)[3] * 0.5}),
        *(("wrong-events", {"events_E6": EVENTS + torch.eye(6)[column] * by}) for column in (2, 5) for by in (0.5, 2)),
        *(("wrong-events", {"events_E6": EVENTS - torch.eye(6)[column]}) for column in (2, 3, 4, 5)),
    ],
)
def test_hostile_events(reason: str, fields: dict[str, Any], bert: Base) -> None:
    assert reason_of(guard_for(bert, WHOLE), replace(MEASURED, **fields)) == reason


def test_ranks_are_those_that_the_plan_leaves(bert: Base) -> None:
    def left(*ranks: int) -> dict[str, torch.Tensor]:
        return {RANKS_LEFT: torch.tensor(ranks, dtype=torch.int32)}

    plan = replace(WHOLE, ranks=(8, 8, 8)).having(SelfPrune((4, 4, 4)))
    update = update_of(bert, WHOLE)
    shrunk = replace(update, adapter=bert.at_ranks(update.adapter, (4, 4, 4)), facts=left(4, 4, 4))
    check(guard_for(bert, plan), replace(update, facts=left(8, 8, 8)))
    check(guard_for(bert, plan), shrunk)
    assert reason_of(guard_for(bert, plan), update) == "wrong-facts"
    assert reason_of(guard_for(bert, plan), replace(update, facts=left(4, 4, 4))) == "wrong-shape"
    assert reason_of(guard_for(bert, plan), replace(shrunk, facts=left(4, 4, 2))) == "wrong-facts"
    assert reason_of(guard_for(bert, plan), replace(shrunk, facts=left(4, 4))) == "wrong-shape"
    assert reason_of(guard_for(bert, WHOLE), shrunk) == "wrong-facts"


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("wrong-run", {"run": "other"}),
        ("wrong-device", {"device": "x" * 10**6}),
        ("wrong-counts", {"steps": 1}),
        ("wrong-counts", {"samples": 7}),
        ("wrong-weight", {"weight": 9}),
        ("wrong-counts", {"loss": 0.1}),
        ("wrong-counts", {"loss": NAN}),
        ("not-finite", {"busy_seconds": NAN}),
        ("not-finite", {"busy_seconds": -1.0}),
        ("wrong-facts", {"facts": {CHANGE: torch.tensor(INF, dtype=torch.float64)}}),
        ("wrong-facts", {"facts": {"kept/0.heads": torch.zeros(1, dtype=torch.int32)}}),
        ("wrong-tensors", {"adapter": {}}),
    ],
)
def test_hostile_updates(reason: str, fields: dict[str, Any], bert: Base) -> None:
    update = replace(update_of(bert), **fields)
    assert reason_of(guard_for(bert, SPLIT), update, honest(bert), honest(bert, 1)) == reason


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("wrong-shape", lambda tensor: tensor.flatten()),
        ("wrong-shape", lambda tensor: torch.cat([tensor, tensor])),
        ("wrong-dtype", lambda tensor: tensor.bfloat16()),
        ("not-finite", lambda tensor: tensor * NAN),
    ],
)
@pytest.mark.parametrize("plan", [SPLIT, WHOLE, PRUNED], ids=["split", "whole", "pruned"])
def test_hostile_adapters(
    reason: str, change: Callable[[torch.Tensor], torch.Tensor], plan: DevicePlan, bert: Base
) -> None:
    update = update_of(bert, plan)
    before = (honest(bert), honest(bert, 1)) if plan is SPLIT else ()
    matrices = [name for name, tensor in update.adapter.items() if tensor.dim() > 1]
    for name in (matrices[0], matrices[-1]):
        adapter = {**update.adapter, name: change(update.adapter[name])}
        assert reason_of(guard_for(bert, plan), replace(update, adapter=adapter), *before) == reason


def test_another_adapter(bert: Base) -> None:
    """One tensor of the server's too many, one too few, one that the model does not have."""
    full, split, whole = bert.initial_adapter(0), update_of(bert), update_of(bert, WHOLE)
    servers, first = bert.server_names(2)[0], min(split.adapter)
    more = {**split.adapter, servers: full[servers]}
    fewer = {name: value for name, value in split.adapter.items() if name != first}
    for adapter in (more, fewer):
        update = replace(split, adapter=adapter)
        assert reason_of(guard_for(bert, SPLIT), update, honest(bert), honest(bert, 1)) == "wrong-tensors"
    update = replace(whole, adapter={**whole.adapter, "x": full[servers]})
    assert reason_of(guard_for(bert, WHOLE), update) == "wrong-tensors"


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("wrong-counts", {"steps": 1}),
        ("wrong-counts", {"loss": -0.1}),
        ("wrong-counts", {"samples": 9}),
        ("wrong-counts", {"samples": 1}),
        ("wrong-weight", {"weight": 9}),
        ("wrong-weight", {"weight": 7}),
    ],
)
def test_hostile_counts_of_one_that_trains_alone(reason: str, fields: dict[str, Any], bert: Base) -> None:
    assert reason_of(guard_for(bert, WHOLE), update_of(bert, WHOLE, **fields)) == reason


def test_what_diverged_passes_and_is_said_by_the_server(bert: Base) -> None:
    """It is no attack but a learning rate."""
    for plan in (WHOLE, PRUNED):
        update = update_of(bert, plan, loss=NAN)
        adapter = {name: value * NAN for name, value in update.adapter.items()}
        facts = {name: value * NAN if value.is_floating_point() else value for name, value in update.facts.items()}
        check(guard_for(bert, plan), replace(update, adapter=adapter, facts=facts))
    diverged = update_of(bert, WHOLE, loss=NAN)
    server = server_for(bert, fleet_of(1))
    server.begin(RoundPlan(0, (WHOLE,)), one_per_device)
    with pytest.raises(DivergedError):
        server.accept(diverged)


Said = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("reason", "change"),
    [
        ("wrong-facts", lambda s: {}),
        ("wrong-facts", lambda s: {**s, "other/0.heads": s["kept/0.heads"]}),
        ("wrong-facts", lambda s: {name: value for name, value in s.items() if name != "kept/1.heads"}),
        ("wrong-facts", lambda s: {**s, "kept/1.heads": s["kept/1.heads"] + 100}),
        ("wrong-facts", lambda s: {**s, "kept/1.heads": s["kept/1.heads"].long()}),
        ("wrong-facts", lambda s: {**s, "kept/1.heads": torch.arange(4, dtype=torch.int32)}),  # unpruned
        ("wrong-facts", lambda s: {**s, "importance/1.heads": torch.ones(3)}),
        ("not-finite", lambda s: {**s, "importance/1.heads": torch.full((4,), NAN)}),
        ("wrong-shape", lambda s: {**s, "kept/1.heads": s["kept/1.heads"][:1]}),  # its adapter is of two
        ("wrong-facts", lambda s: {name: value for name, value in s.items() if name != CHANGE}),
        ("wrong-dtype", lambda s: {**s, CHANGE: s[CHANGE].float()}),
        ("wrong-shape", lambda s: {**s, CHANGE: s[CHANGE][None]}),
        *(("not-finite", lambda s, v=value: {**s, CHANGE: s[CHANGE] * v}) for value in (NAN, INF, -1.0)),
    ],
)
def test_hostile_structures(reason: str, change: Callable[[Said], Said], bert: Base) -> None:
    update = update_of(bert, PRUNED)
    assert reason_of(guard_for(bert, PRUNED), replace(update, facts=change(update.facts))) == reason


@pytest.mark.parametrize(
    ("reason", "fields"),
    [
        ("unknown-rows", {"rows_B": torch.tensor([0, 9], dtype=torch.int32)}),
        ("wrong-rows", {"rows_B": torch.tensor([-1], dtype=torch.int32)}),
        ("wrong-shape", {"rows_B": torch.zeros(5, dtype=torch.int32)}),
        ("wrong-shape", {"rows_B": torch.zeros(0, dtype=torch.int32)}),
        ("wrong-shape", {"rows_B": torch.zeros(2, 2, dtype=torch.int32)}),
        ("wrong-shape", {"rows_B": torch.tensor(0, dtype=torch.int32)}),
        ("wrong-dtype", {"rows_B": torch.zeros(2, dtype=torch.int64)}),
        ("wrong-shape", {"num_tokens": LONGEST + 1}),
        ("wrong-shape", {"num_tokens": 0}),
        ("wrong-step", {"step": 1}),
    ],
)
def test_hostile_recalls(reason: str, fields: dict[str, Any], bert: Base) -> None:
    recall = Recall("run", 0, 0, "device-0", torch.tensor([0, 1], dtype=torch.int32), LONGEST)
    assert reason_of(guard_for(bert, KEEPING, rows=frozenset({0, 1})), replace(recall, **fields)) == reason


@pytest.mark.parametrize("name", ["bf16", "int8", "topk:0.25"])
def test_packed_forms_are_those_of_the_plan(name: str, bert: Base) -> None:
    """Not only such as the codec could unpack: with top-k, few bytes would become many numbers."""
    codecs = compression(activations=name)
    form = codecs.activations.pack(honest(bert).h_BTD)
    check_form = guard_for(bert, SPLIT, codecs).check_form
    check_form(honest(bert, h_BTD=form))
    assert reason_of(guard_for(bert, SPLIT, codecs), honest(bert, h_BTD=torch.cat([form] * 100))) == "wrong-shape"
    assert reason_of(guard_for(bert, SPLIT, codecs), honest(bert)) == "wrong-dtype"
