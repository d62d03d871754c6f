"""Messages that a judging device may send, and when; every field of them is tried wrongly in test_forms.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.errors import Refused
from cutlayer.gate import judging
from cutlayer.gate.guard import Guard
from cutlayer.model.base import Base
from cutlayer.packing import UNCOMPRESSED
from cutlayer.rounds.split import script
from cutlayer.types import DevicePlan
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.messages import Assignment, Close, HeldOut, Judge, Judged, Recall

ModelMaker = Callable[[str, str], Path]
PLAN = DevicePlan("pi", cut=1, batch_size=2)
ASKED = Judge("run", 3, "pi", PLAN, {}, classes=3)


@pytest.fixture(scope="module")
def base(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


@pytest.fixture
def guard(base: Base) -> Guard:
    return Guard(
        "pi",
        "run",
        base,
        hidden_size=16,
        longest_tokens=8,
        compression=UNCOMPRESSED,
        holds=lambda _device, _row: False,
        script=script,
    )


def held_out(number: int) -> HeldOut:
    mask_BT, labels = torch.ones(2, 8, dtype=torch.bool), torch.zeros(2, dtype=torch.int32)
    return HeldOut("run", 3, number, "pi", torch.zeros(2, 8, 16), mask_BT, labels, 2)


def judged(samples: int) -> Judged:
    return Judged("run", 3, "pi", samples, samples, 0.0, torch.zeros(3, 3, dtype=torch.int64))


def opened(round: int) -> Assignment:
    return Assignment("run", round, "pi", PLAN, (0.1,), {})


def reason(guard: Guard, message: HeldOut | Judged) -> str:
    with pytest.raises(Refused) as refused:
        guard.check_form(message)
    return refused.value.reason


def test_batches_then_their_sums_and_then_nothing(guard: Guard) -> None:
    assert reason(guard, judged(0)) == "wrong-kind"
    guard.judge(ASKED)
    for number in range(3):
        assert guard.check_form(held_out(number)).round == 3
    assert reason(guard, judged(4)) == "wrong-counts"
    guard.check_form(judged(6))
    for message in (judged(6), held_out(3)):
        assert reason(guard, message) == "wrong-kind"
    guard.open(opened(3))
    assert reason(guard, judged(6)) == "wrong-kind", "it was not owed any more"


def test_who_is_late_is_heard_as_one_of_a_round_that_is_over(guard: Guard) -> None:
    """It had not answered when the round was opened that comes next: what it says is dropped there."""
    guard.judge(ASKED)
    guard.check_form(held_out(0))
    guard.close(Close("run", 3, False, "deadline"))
    guard.open(opened(3))
    for message in (held_out(1), judged(10**9)):
        passed = guard.check_form(message)
        assert isinstance(passed, Recall)
        assert passed.round < 3
    guard.judge(replace(ASKED, round=4))
    assert isinstance(guard.check_form(judged(2)), Recall)
    guard.check_form(replace(held_out(0), round=4))


def test_a_frame_may_be_as_long_as_what_is_judged(guard: Guard) -> None:
    assert guard.frame_limit() == 0
    guard.judge(ASKED)
    assert guard.frame_limit() >= max(frame_bytes(held_out(0)), frame_bytes(judged(2)))
    alone = replace(ASKED, plan=DevicePlan("pi", cut=4, top=4, batch_size=2))
    assert judging.limit(alone, guard._forms_of(alone)) < 2_000, "no batch of such a device"
