"""HSFL: lower parts of devices' own, one upper part; cuts where rounds are short."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bases import open_base
from cutlayer.errors import ConfigError
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.testing.playground import Played, fleet_of, play, streams_for
from cutlayer.wire.messages import Assignment

ModelMaker = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def bert(tiny_model: ModelMaker) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


def played(base: Base, method: str = "hsfl", **options: Any) -> Played:
    fleet = fleet_of(3)
    return play(base, build_method(method, options, seed=0), fleet, streams_for(fleet, "classification", steps=8))


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_with_equal_cuts_and_nothing_personal_it_is_sfl_v1(cut: int, bert: Base) -> None:
    ours = played(bert, cut=cut, personal=False, server="copies", weighted=False).adapter
    theirs = played(bert, "sfl_v1", cut=cut).adapter
    assert [name for name in theirs if not torch.equal(theirs[name], ours[name])] == []


def test_what_a_device_holds_stays_its_own(bert: Base) -> None:
    """In the second round each is sent below its cut what it sent up itself; a personal prefix is never a mean."""
    run = played(bert, cut=2)
    sent = {(m.device, m.round): m.adapter for m in run.sent_down if isinstance(m, Assignment)}
    trained = {(m.device, m.round): m.adapter for m in run.sent_up if hasattr(m, "adapter")}
    for device in ("device-0", "device-1", "device-2"):
        assert sent[device, 1].keys() == trained[device, 0].keys()
        assert all(torch.equal(value, trained[device, 0][name]) for name, value in sent[device, 1].items())
    name = next(iter(bert.device_names(2)))
    assert len({tuple(sent[f"device-{index}", 1][name].flatten().tolist()) for index in range(3)}) == 3


def test_without_a_cut_devices_are_cut_where_a_round_is_short(bert: Base) -> None:
    cuts = {name: row["cut"] for name, row in played(bert).rows[0]["devices"].items()}
    assert all(1 <= cut <= 3 for cut in cuts.values())


def test_a_server_that_there_is_not(bert: Base) -> None:
    with pytest.raises(ConfigError, match=r"method.server: expected one of accumulated, copies, got 'swarm'"):
        build_method("hsfl", {"server": "swarm"}, seed=0)
