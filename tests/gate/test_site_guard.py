"""Reports that a site may make: what its devices can have done, the mean in the model's shapes, and nothing else."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from cutlayer.errors import Refused
from cutlayer.gate.site_guard import GuardedSite, SiteGuard
from cutlayer.testing.playground import tiny_base
from cutlayer.types import Adapter, DevicePlan
from cutlayer.wire.frames import frame_bytes
from cutlayer.wire.link import Around
from cutlayer.wire.messages import Message, SiteReport, SiteRound, Update

PLANS = tuple(DevicePlan(name, cut=3, batch_size=4, local_steps=2, top=3) for name in ("pi", "phone"))
TOLD = SiteRound("run", 3, "clinic", PLANS, (), None, True, {}, 10, 2)


def row(name: str, **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "stayed": True,
        "steps": 2,
        "samples": 8,
        "weight": 8,
        "loss_sum": 3.5,
        "late": False,
        "dropped_messages": 0,
        "facts": {"change": 0.5},
        "bytes_up": 100,
        "bytes_down": 100,
        **changes,
    }


def mean() -> Adapter:
    return {name: torch.ones(shape, dtype=torch.float64) for name, shape in tiny_base().shapes.items()}


def report(*rows: dict[str, Any], **changes: Any) -> SiteReport:
    told = json.dumps(list(rows or (row("phone"), row("pi"))))
    events_E7 = torch.tensor([[0.0, 1.0, -1, 100, 0.0, 0, 0]], dtype=torch.float64)
    whole = SiteReport("run", 3, "clinic", mean(), 26, 2.0, told, ("pi",), ("upload",), events_E7)
    return replace(whole, **changes)


def guard(told: SiteRound | None = TOLD) -> SiteGuard:
    made = SiteGuard("clinic", "run", tiny_base(), 12)
    if told is not None:
        made.open(told)
    return made


def test_an_honest_report_passes_and_is_within_the_limit() -> None:
    whole = report()
    assert guard().check(whole) is whole
    assert guard(None).frame_limit() == 0
    assert frame_bytes(whole) <= guard().frame_limit()


def test_a_round_without_a_report_has_no_tensor() -> None:
    quiet = guard(replace(TOLD, reports=False))
    assert quiet.check(report(adapter={})).adapter == {}
    with pytest.raises(Refused, match="expected 0 tensors"):
        quiet.check(report())


def test_a_site_at_which_nobody_has_trained_reports_nothing() -> None:
    gone = [row(name, stayed=False, steps=0, samples=0, weight=0, loss_sum=0.0, late=True) for name in ("phone", "pi")]
    idle = guard(replace(TOLD, weight=0))
    assert idle.check(report(*gone, adapter={}, weight=0)).weight == 0
    with pytest.raises(Refused, match="expected 0 tensors"):
        idle.check(report(*gone, weight=0))


NAME = next(iter(tiny_base().shapes))
EVENT = [0.0, 1.0, -1, 100, 0.0, 0, 0]


def event(place: int, value: float) -> torch.Tensor:
    changed = list(EVENT)
    changed[place] = value
    return torch.tensor([changed], dtype=torch.float64)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (Update("run", 3, "clinic", {}, 0, 1, 1, 0.0, 0.0), "wrong-kind"),
        (report(run="other"), "wrong-run"),
        (report(device="ward"), "wrong-device"),
        (report(round=2), "wrong-round"),
        (report(row("pi")), "wrong-counts"),  # a device is missing
        (report(row("pi"), row("pi")), "wrong-counts"),
        (report(row("pi"), row("tv")), "wrong-counts"),
        (report(row("pi"), row("phone", samples=9, weight=8)), "wrong-counts"),
        (report(row("pi"), row("phone", steps=3)), "wrong-counts"),
        (report(row("pi"), row("phone", steps=-1)), "wrong-counts"),
        (report(row("pi"), row("phone", loss_sum=float("nan"))), "wrong-counts"),
        (report(row("pi"), row("phone", facts={"a": float("inf")})), "wrong-counts"),
        (report(row("pi"), row("phone", facts={"a": "x" * 20_000})), "wrong-counts"),
        (report(row("pi"), row("phone", more=1)), "wrong-counts"),
        (report(rows="no json"), "wrong-counts"),
        (report(weight=27), "wrong-weight"),
        (report(row("pi"), row("phone", stayed=False)), "wrong-weight"),
        (report(adapter={}), "wrong-tensors"),
        (report(adapter={**mean(), NAME: torch.ones(1, 1, dtype=torch.float64)}), "wrong-shape"),
        (report(adapter={**mean(), NAME: mean()[NAME].float()}), "wrong-dtype"),
        (report(adapter={**mean(), NAME: mean()[NAME] * torch.nan}), "not-finite"),
        (report(adapter={**mean(), NAME: mean()[NAME] * 1e9}), "not-finite"),
        (report(names=("tv",)), "wrong-events"),
        (report(whats=("sleep",)), "wrong-events"),
        (report(events_E7=torch.zeros(0, 6, dtype=torch.float64)), "wrong-events"),
        (report(events_E7=torch.zeros(10_000, 7, dtype=torch.float64)), "wrong-events"),
        (report(events_E7=event(0, 2.0)), "wrong-events"),  # ends before it begins
        (report(events_E7=event(5, 1)), "wrong-events"),
        (report(events_E7=event(6, 0.5)), "wrong-events"),
        (report(events_E7=event(1, float("inf"))), "not-finite"),
        (report(seconds=float("nan")), "not-finite"),
    ],
)
def test_what_cannot_be_is_refused(changed: Message, reason: str) -> None:
    with pytest.raises(Refused) as refused:
        guard().check(changed)
    assert refused.value.reason == reason
    assert "site clinic: expected" in str(refused.value)


def test_nothing_is_believed_before_a_round_is_opened() -> None:
    class Wire(Around):
        def __init__(self) -> None: ...

        async def send(self, message: Message) -> None: ...

        async def receive(self) -> Message:
            return report()

    async def work() -> None:
        link = GuardedSite(Wire(), guard(None))
        with pytest.raises(Refused, match="expected the report of a round that was opened"):
            await link.receive()
        await link.send(TOLD)
        assert isinstance(await link.receive(), SiteReport)

    asyncio.run(work())
