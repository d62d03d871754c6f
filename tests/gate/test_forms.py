"""Forms: every script that there is, played with honest messages, and with everything that can be wrong with each.

Nothing here knows a shape: a new one is held to all of this as soon as a method builds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.device import shape as shapes
from cutlayer.errors import ConfigError, Refused
from cutlayer.gate import judging
from cutlayer.gate.forms import Form, Forms, Listed, Script, as_options, meta, outline
from cutlayer.gate.guard import Guard
from cutlayer.methods.method import Method
from cutlayer.methods.table import TABLE, build_method
from cutlayer.model.adapter import LoraSettings
from cutlayer.model.base import Base
from cutlayer.model.finite import finite
from cutlayer.packing import UNCOMPRESSED
from cutlayer.policies.sites import AtSite
from cutlayer.policies.trains import Trains
from cutlayer.types import Clause, DevicePlan
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import (
    Activations,
    Assignment,
    Close,
    Facts,
    Finish,
    Gradients,
    HeldOut,
    Hidden,
    HiddenGradients,
    Judge,
    Judged,
    Measured,
    Message,
    Recall,
    Update,
)
from turns import by_turns
from watched import guarded_run
from wrongs import wrongs

ModelMaker = Callable[[str, str], Path]
LONGEST = 10
EVENTS = torch.tensor([[0.0, 1.5, -1, 0, 2e9, 0], [1.5, 1.5, 1, 4096, 0, 1]], dtype=torch.float64)
TASKS = {"classification": "bert", "causal-lm": "llama"}


# ------------------------------------------------------------------ what is played


@dataclass(frozen=True)
class Variant:
    """A method with options that change what its devices say."""

    method: str
    options: tuple[tuple[str, Any], ...] = ()
    micro_batches: int = 1
    trains: Trains | None = None

    def build(self) -> Method:
        method = build_method(self.method, dict(self.options), 0)
        return replace(method, trains=self.trains)

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options]
        parts = [f"in {self.micro_batches} parts"] if self.micro_batches > 1 else []
        return " ".join([self.method, *options, *parts, *(["sgd"] if self.trains else [])])


def variants() -> list[Variant]:
    """One method for each script, and those in which more is said."""
    by_script: dict[object, Variant] = {}
    for name in sorted(TABLE):
        by_script.setdefault(build_method(name, {}, 0).round.script, Variant(name))
    more = [
        Variant("vanilla"),  # the relay
        Variant("vanilla", (("labels", "device"),)),
        Variant("memsfl", micro_batches=2),
        Variant("splitfrozen"),
        Variant("splitfrozen", (("cache", False),)),
        Variant("hetlora", (("gamma", 0.5), ("lam", 0.1))),
        Variant("flexlora"),
        Variant("hfl_prune"),
        Variant("teasq_fed", (("mu", 0.1), ("concurrency", 1.0), ("buffer", 1.0))),
        Variant("salf", (("cut", 2), ("deadline", 0.5))),
        Variant("fedlora", trains=Trains()),
    ]
    return list(dict.fromkeys([*by_script.values(), *more]))


VARIANTS = variants()


@dataclass(frozen=True)
class Conversation:
    """The messages of one device in one round, up to its update, and the rows of its data that the server had then."""

    base: Base
    method: Method
    assignment: Assignment | Judge
    rows: frozenset[int]
    messages: tuple[Message, ...]

    def guard(self, *before: Message) -> Guard:
        """A guard that has seen these."""
        rows = set(self.rows)
        guard = Guard(
            self.assignment.device,
            self.assignment.run,
            self.base,
            hidden_size=16,
            longest_tokens=LONGEST,
            compression=UNCOMPRESSED,
            holds=lambda _device, row: row in rows,
            script=self.method.round.script,
        )
        self.begin(guard)
        for message in before:
            check(guard, message)
            rows |= rows_of(message)
        return guard

    def begin(self, guard: Guard, *, later: int = 0) -> None:
        """Its round is opened, or it is to judge; or so many rounds later."""
        if isinstance(self.assignment, Judge):
            guard.judge(replace(self.assignment, round=self.assignment.round + later))
        else:
            guard.open(replace(self.assignment, round=self.assignment.round + later))

    @property
    def judges(self) -> bool:
        """Whether the device judges, and trains nothing."""
        return isinstance(self.assignment, Judge)

    def script(self, forms: Forms) -> Script:
        """The script of what the device may say."""
        if isinstance(self.assignment, Judge):
            return judging.script(self.assignment, forms)
        return self.method.round.script(self.assignment.plan, forms)

    def refuses(self, message: Message, *before: Message) -> str | None:
        """Why; None if it does not."""
        guard = self.guard(*before)
        try:
            check(guard, message)
        except Refused as error:
            return error.reason if len(str(error)) < 600 else "too long a sentence"
        return None

    def unknown_weight(self, what: str) -> bool:
        """Whether this is the weight of tokens of batches that were only named, or whose labels stay on the device."""
        tokens = self.base.settings.task == "causal-lm"
        untold = self.judges or any(isinstance(one, Recall | HiddenGradients) for one in self.messages)
        return what.startswith("weight: one") and tokens and untold

    def allowed(self, at: int) -> set[type[Message]]:
        """The kinds that may come at a point."""
        if at == len(self.messages):
            return set()
        kinds: set[type[Message]] = {type(self.messages[at])}
        if isinstance(self.messages[at], Activations | HiddenGradients):  # a device may be some steps ahead
            kinds |= {form.kind for form in self.guard(*self.messages[:at])._options}
        if isinstance(self.messages[at], Activations | Recall) and rows_of(self.messages[at]):
            kinds |= {Activations, Recall}
        if isinstance(self.messages[at], HeldOut | Judged) and not self.assignment.plan.alone:
            kinds |= {HeldOut, Judged}
        return kinds | ({Update} if kinds == {Measured} else set())


def check(guard: Guard, message: Message) -> None:
    guard.check_form(message)
    guard.check_values(message)


def rows_of(message: Message) -> set[int]:
    rows_B = getattr(message, "rows_B", None)
    return set() if rows_B is None else set(rows_B.tolist())


@cache
def conversations(variant: Variant, task: str, folder: Path) -> list[Conversation]:
    """Conversations of each device of a run of two rounds, those that are unlike each other."""
    base = open_base(folder, task, lora=LoraSettings(targets=("all-linear",)))
    method = variant.build()
    judges = method.moved is None
    _, seen = guarded_run(base, method, micro_batches=variant.micro_batches, devices=2, judges=judges, rounds=2)
    unlike: dict[object, Conversation] = {}
    for device in sorted({assignment.device for assignment, _, _ in seen}):
        rows: set[int] = set()
        for round in range(2):
            own = [(a, m) for a, _, m in seen if a.device == device and a.round == round == m.round]
            judged = tuple(message for asked, message in own if isinstance(asked, Judge))
            if judged:
                asked = next(asked for asked, _ in own if isinstance(asked, Judge))
                holds = "judges", asked.plan.alone, asked.plan.head, asked.classes
                unlike.setdefault(holds, Conversation(base, method, asked, frozenset(rows), judged))
            own = [(assignment, message) for assignment, message in own if isinstance(assignment, Assignment)]
            assignment, messages = own[0][0], [message for _, message in own]
            measured = Measured(assignment.run, round, device, ("forward", "upload"), EVENTS)
            said = (*messages[:-1], measured, messages[-1])
            alike = tuple((type(message), tuple(getattr(message, "facts", ()))) for message in said)
            unlike.setdefault(alike, Conversation(base, method, assignment, frozenset(rows), said))
            rows |= {row for message in messages for row in rows_of(message)}
    return list(unlike.values())


def named(of: tuple[Variant, str]) -> str:
    return "-".join(map(str, of))


@pytest.fixture(
    scope="module", params=list(by_turns([(one,) for one in product(VARIANTS, TASKS)], one_of=2)), ids=named
)
def played(request: pytest.FixtureRequest, tiny_model: ModelMaker) -> list[Conversation]:
    """The conversations of two honest devices."""
    variant, task = request.param
    try:
        return conversations(variant, task, tiny_model(TASKS[task], task))
    except ConfigError as error:
        pytest.skip(f"no {task}: {error}")


def test_every_shape_and_every_clause_is_played(tiny_model: ModelMaker) -> None:
    """A new one is, once a method of the table builds it; else it needs a line in `variants`."""
    folder = tiny_model("bert", "classification")
    said = [one for variant in VARIANTS for one in conversations(variant, "classification", folder)]
    assert {one.method.round.shape.name for one in said} == set(shapes._own())
    of_the_house = {kind for kind in Clause.kinds.values() if kind.__module__.startswith("cutlayer.")}
    of_the_house -= {AtSite}  # no device is told
    assert {type(clause) for one in said for clause in one.assignment.plan.clauses} == of_the_house, "see `variants`"
    kinds = {type(message) for one in said for message in one.messages}
    assert kinds == {Activations, HiddenGradients, Recall, Facts, Measured, Update, HeldOut, Judged}


# ------------------------------------------------------------------ the laws


def test_honest_messages_pass_and_then_nothing_more(played: Sequence[Conversation]) -> None:
    for one in played:
        guard = one.guard(*one.messages)
        assert one.judges or next(guard._script, None) is None or guard._options[0].kind is Update
        for message in (*one.messages, *strangers(one)):
            assert one.refuses(message, *one.messages), f"{type(message).__name__} after the end"


def test_a_script_has_a_form_for_each_message_and_no_other(played: Sequence[Conversation]) -> None:
    """And each message is as long as its form at most."""
    for one in played:
        forms = forms_of(one)
        walked = walk(one.script(forms), one.messages)
        messages = [message for message in one.messages if not isinstance(message, Measured)]
        for options, message in zip(walked, messages, strict=True):
            form = next(form for form in options if form.kind is type(message))
            assert frame_bytes(message) <= frame_bytes(form.largest()), form.name
            assert isinstance(form.largest(), form.kind)
        if isinstance(one.assignment, Judge):
            limit = judging.limit(one.assignment, forms)
            longest = max(frame_bytes(form.largest()) for form in sum(walked, ()))
        else:
            limit = outline(one.script(forms), forms).limit
            longest = max(frame_bytes(form.largest()) for form in (*sum(walked, ()), forms.measured()))
        assert one.guard().frame_limit() == limit == longest


def test_everything_that_can_be_wrong_is_refused(played: Sequence[Conversation]) -> None:
    """In every field of every kind of message, and in every fact that a script declares."""
    passed, tried = [], 0
    for one in played:
        for at, message in last_of_each_kind(one.messages):
            for what, wrong in wrongs(message):
                tried += 1
                if not (one.refuses(wrong, *one.messages[:at]) or one.unknown_weight(what)):
                    passed.append(f"{type(message).__name__}.{what}")
    assert sorted(set(passed)) == []
    assert tried > 50


def test_training_that_diverged_excuses_numbers_only(played: Sequence[Conversation]) -> None:
    """Where a device says that its loss is no number, its tensors need not hold numbers; all else is as it was."""
    passed, tried = [], 0
    for one in (one for one in played if not one.judges):
        *before, update = one.messages
        assert isinstance(update, Update)
        if update.steps:
            assert one.refuses(replace(update, loss=torch.nan), *before) is None
        for what, wrong in wrongs(update):
            diverged = replace(wrong, loss=torch.nan)
            number = what.rpartition(" ")[0].rpartition(": ")[2] in ("nan", "inf", "-inf")
            if what.startswith("loss") or (number and update.steps):
                continue
            tried += 1
            if not one.refuses(diverged, *before):
                passed.append(what)
    assert passed == []
    assert tried > 20


def test_each_message_has_its_place(played: Sequence[Conversation]) -> None:
    """Not too early, not again, and nothing of another kind; each is refused for just that."""
    for one in played:
        for at, message in enumerate(one.messages):
            before, allowed = one.messages[:at], one.allowed(at)
            for later, other in enumerate(one.messages[at + 1 :], at + 1):
                first = type(other) not in {type(message) for message in one.messages[at:later]}
                if type(other) in allowed and first and one.refuses(other, *before) is None:
                    continue  # a device may be some steps ahead
                if not (isinstance(other, Update) and Update in allowed):
                    # Sums may come after any batch, and then they are of the batches that came.
                    sums = isinstance(other, Judged) and Judged in allowed
                    reasons = ("wrong-counts", "wrong-weight") if sums else ("wrong-kind", "wrong-step")
                    assert one.refuses(other, *before) in reasons, f"{other} too early"
            assert one.refuses(message, *before, message) in ("wrong-kind", "wrong-step"), f"{message} again"
            for stranger in strangers(one):
                if type(stranger) not in allowed:
                    assert one.refuses(stranger, *before) == "wrong-kind", f"{stranger} in place of {message}"


def test_a_message_of_an_earlier_round_is_late_and_empty(played: Sequence[Conversation]) -> None:
    for one in played:
        guard = one.guard()
        one.begin(guard, later=1)
        for message in one.messages:
            passed = guard.check_form(message)
            assert isinstance(passed, Recall)
            assert (passed.round, passed.rows_B.numel()) == (one.assignment.round, 0)


def test_who_is_told_to_end_may_send_its_update_after_any_message(played: Sequence[Conversation]) -> None:
    """With fewer steps; not with more than the plan has, nor with facts or tensors of other forms."""
    for one in (one for one in played if not one.judges):
        *before, measured, update = one.messages
        assert isinstance(update, Update)
        for at in range(len(before) + 1):
            guard = one.guard(*before[:at])
            fewer = replace(update, steps=0, samples=0, weight=0, loss=0.0)
            whole = not any(isinstance(message, Activations | Recall | Facts) for message in before)
            if at < len(before) or whole:
                with pytest.raises(Refused):
                    check(one.guard(*before[:at]), fewer)
            guard.close(Close(one.assignment.run, one.assignment.round, True, "deadline"))
            check(guard, measured)
            with pytest.raises(Refused, match="samples"):
                check(guard, replace(fewer, samples=10**6, weight=10**6))
            with pytest.raises(Refused, match="facts"):
                check(guard, replace(fewer, facts={**fewer.facts, "another": torch.zeros(1)}))
            check(guard, fewer)
            with pytest.raises(Refused, match="nothing more"):
                check(guard, fewer)


def last_of_each_kind(messages: Sequence[Message]) -> list[tuple[int, Message]]:
    """With their places: by then most has passed that they could contradict."""
    places = {type(message): at for at, message in enumerate(messages)}
    return [(at, messages[at]) for at in sorted(places.values())]


def strangers(one: Conversation) -> Iterator[Message]:
    """A message of every kind, in the name of the device."""
    run, round, device = one.assignment.run, one.assignment.round, one.assignment.device
    h_BTD, mask_BT, labels = torch.zeros(1, 4, 16), torch.ones(1, 4, dtype=torch.bool), torch.zeros(1).int()
    yield Activations(run, round, 0, device, h_BTD, mask_BT, labels, 1)
    yield Recall(run, round, 0, device, torch.zeros(1).int(), 4)
    yield HiddenGradients(run, round, 0, device, h_BTD, 0.5)
    yield Hidden(run, round, 0, device, h_BTD)
    yield Facts(run, round, 0, device, {})
    yield Measured(run, round, device, (), EVENTS[:0])
    yield Update(run, round, device, {}, 0, 0, 0, 0.0, 0.0)
    yield HeldOut(run, round, 0, device, h_BTD, mask_BT, labels, 1)
    yield Judged(run, round, device, 0, 0, 0.0, torch.zeros(3, 3, dtype=torch.int64))
    yield one.assignment
    yield Gradients(run, round, 0, device, None, 0.5)
    yield Close(run, round, True, "deadline")
    yield Finish(run, round, "all is done")


def forms_of(one: Conversation) -> Forms:
    return Forms(
        one.assignment,
        one.base,
        hidden_size=16,
        longest_tokens=LONGEST,
        compression=UNCOMPRESSED,
        holds=lambda _device, _row: True,
    )


def walk(script: Script, messages: Sequence[Message]) -> list[tuple[Form, ...]]:
    """The forms that a script allows, point after point, where these messages come: no more points than messages."""
    walked = [as_options(next(script))]
    *before, update = [message for message in messages if not isinstance(message, Measured)]
    for message in before:
        walked.append(as_options(script.send(message)))
    with pytest.raises(StopIteration):
        script.send(update)
    return walked


# ------------------------------------------------------------------ what scripts are made of


def test_listed_facts_are_held_to_their_form(played: Sequence[Conversation]) -> None:
    forms = forms_of(played[0])

    def positive(facts: dict[str, torch.Tensor]) -> None:
        if bool((facts["numbers"] <= 0).any()):
            raise forms.refused("wrong-facts", "numbers above 0", "others")

    listed = Listed(forms, {"numbers": meta((3,), torch.float32)}, {"a": (2, 2)}, positive)
    assert listed.largest()["numbers"].shape == (3,)
    assert listed.shapes(None) == listed.shapes({}) == {"a": (2, 2)}
    listed.check({"numbers": torch.ones(3)}, diverged=False)
    for reason, facts in [
        ("wrong-facts", {}),
        ("wrong-facts", {"numbers": torch.ones(3), "more": torch.ones(3)}),
        ("wrong-shape", {"numbers": torch.ones(4)}),
        ("wrong-dtype", {"numbers": torch.ones(3, dtype=torch.float64)}),
        ("not-finite", {"numbers": torch.ones(3) * torch.nan}),
        ("wrong-facts", {"numbers": torch.zeros(3)}),
    ]:
        with pytest.raises(Refused) as error:
            listed.check(facts, diverged=False)
        assert error.value.reason == reason


def test_a_script_ends_with_an_update(played: Sequence[Conversation]) -> None:
    forms = forms_of(played[0])

    def endless(_plan: DevicePlan) -> Script:
        yield forms.facts(0, {})

    with pytest.raises(AssertionError, match="ends with an update"):
        outline(endless(played[0].assignment.plan), forms)


def test_finite() -> None:
    for value, expected in ((1.0, True), (torch.inf, False), (-torch.inf, False), (torch.nan, False)):
        assert finite(torch.tensor([0.0, value, 1.0])) is expected
    assert finite(torch.zeros(0))
    assert finite(torch.tensor([2**31 - 1], dtype=torch.int32))
