"""The local round: who says what, what is handed over, what stops it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.errors import DivergedError
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.types import Adapter
from cutlayer.wire.messages import Assignment, Finish, Update

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def played(base: Base) -> Played:
    fleet = fleet_of(3)
    streams = streams_for(fleet, "classification", steps=4)
    return play(base, build_method("fedlora", {}, seed=0), fleet, streams, rounds=2, local_steps=2)


def test_only_adapters_cross_the_network(bert: Base) -> None:
    run = played(bert)
    assert [type(message) for message in run.sent_up] == [Update] * 6
    assert [type(message) for message in run.sent_down] == [Assignment] * 6 + [Finish] * 3
    for message in (*run.sent_up, *run.sent_down[:6]):
        assert message.adapter.keys() == bert.shapes.keys()  # type: ignore[union-attr]


def test_devices_work_at_the_same_time_and_the_server_does_nothing(bert: Base) -> None:
    run = played(bert)
    assert not [event for event in run.events if event.who == "server"]
    starts = {event.who: event.start_seconds for event in reversed(run.events) if event.what == "forward"}
    ends = {event.who: event.end_seconds for event in run.events if event.what == "backward" and event.round == 0}
    assert max(starts.values()) < min(ends.values())


def test_a_device_reports_the_loss_of_its_steps(bert: Base) -> None:
    run = played(bert)
    for update in run.sent_up:
        assert isinstance(update, Update)
        record = next(r for r in run.logbook.history.of(update.device) if r.round == update.round)
        assert (record.steps, record.loss) == (2, pytest.approx(update.loss))
        assert update.steps == 2
        assert record.backward_seconds == pytest.approx(record.busy_seconds / 2)


def test_a_loss_that_is_not_finite_stops_the_run(bert: Base) -> None:
    broken: Adapter = {name: torch.full_like(value, torch.nan) for name, value in bert.initial_adapter(0).items()}
    original, bert.initial_adapter = bert.initial_adapter, lambda *_args: broken  # type: ignore[method-assign]
    try:
        with pytest.raises(ExceptionGroup) as caught:
            played(bert)
    finally:
        bert.initial_adapter = original  # type: ignore[method-assign]
    error = caught.value.exceptions[0]
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, DivergedError)
    assert "expected a finite loss, got nan" in str(error)
