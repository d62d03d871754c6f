"""Moments that begin anew in every round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bases import open_base
from cutlayer.methods.method import Method
from cutlayer.methods.table import build_method
from cutlayer.model.base import Base
from cutlayer.model.trainable import OptimizerSettings, TrainSettings
from cutlayer.policies.moments import fresh_moments
from cutlayer.testing.playground import fleet_of, play, streams_for
from cutlayer.types import Adapter


@pytest.fixture(scope="module")
def bert(tiny_model: Callable[[str, str], Path]) -> Base:
    return open_base(tiny_model("bert", "classification"), "classification")


@pytest.mark.parametrize("method", ["fedlora", "memsfl"])
def test_it_is_the_run_that_keeps_none(method: str, bert: Base) -> None:
    """On the device and on the server."""
    built = build_method(method, {}, seed=0)
    kept, dropped = (TrainSettings(OptimizerSettings(), keep_moments=keep) for keep in (True, False))

    def adapter(method: Method, settings: TrainSettings) -> Adapter:
        streams = streams_for(fleet_of(2), "classification", steps=4)
        return play(bert, method, fleet_of(2), streams, settings=settings).adapter

    planned = adapter(replace(built, plan=(*built.plan, fresh_moments())), kept)
    expected, other = adapter(built, dropped), adapter(built, kept)
    assert all(torch.equal(planned[name], value) for name, value in expected.items())
    assert not any(torch.equal(planned[name], value) for name, value in other.items())
