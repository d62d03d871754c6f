"""Errors cross processes whole: a worker of Ray raises what its head reads."""

from __future__ import annotations

import pickle

import pytest

from cutlayer.errors import BudgetError, CutlayerError, DeviceGone, DivergedError, Refused


@pytest.mark.parametrize(
    "error",
    [
        DivergedError("a loss", device="pi", round=3, step=1),
        BudgetError("no room", device="pi", need_bytes=2, have_bytes=1),
        Refused("wrong-step", "a step"),
        DeviceGone("gone", device="pi", reason="deadline"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_is_pickled_comes_back(error: CutlayerError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert (str(back), vars(back)) == (str(error), vars(error))
