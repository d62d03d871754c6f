"""Updates that are packed less and less."""

from __future__ import annotations

import pytest

from cutlayer.errors import ConfigError
from cutlayer.policies.select import everyone
from cutlayer.policies.sparse_then_dense import PackedUpdate, sparse_then_dense
from cutlayer.testing.playground import planned
from cutlayer.wire.codecs import codec_by_name


def codecs(share: float, bits: int, notches: int, rounds: int) -> list[str]:
    planner = sparse_then_dense(share, bits, notches)
    plans = [planned(everyone(), planner, round=round, rounds=rounds) for round in range(rounds)]
    clauses = [{device.clause(PackedUpdate) for device in plan.devices} for plan in plans]
    assert all(len(told) == 1 for told in clauses)
    return [clause.spelled for (clause,) in clauses if clause is not None]


def test_both_go_up_by_a_notch_until_all_is_sent_as_it_is() -> None:
    told = codecs(0.1, 4, notches=5, rounds=10)
    assert told[::2] == told[1::2] == ["sparse:0.1:4", "sparse:0.25:8", "sparse:0.5:16", "none", "none"]
    for name in told:
        codec_by_name(name, rows=False)


def test_a_share_between_two_notches_goes_to_the_next() -> None:
    assert codecs(0.3, 8, notches=4, rounds=4) == ["sparse:0.3:8", "sparse:0.5:16", "none", "none"]
    assert codecs(1.0, 8, notches=3, rounds=3) == ["sparse:1:8", "sparse:1:16", "none"]


def test_one_notch_stays() -> None:
    assert set(codecs(0.25, 8, notches=1, rounds=7)) == {"sparse:0.25:8"}
    assert set(codecs(1.0, 32, notches=6, rounds=7)) == {"none"}


@pytest.mark.parametrize(
    ("share", "bits", "notches", "option"),
    [(0, 8, 2, "share"), (1.5, 8, 2, "share"), (0.5, 3, 2, "bits"), (0.5, 8, 0, "notches")],
)
def test_what_it_cannot_be(share: float, bits: int, notches: int, option: str) -> None:
    with pytest.raises(ConfigError, match=rf"method\.{option}: expected "):
        sparse_then_dense(share, bits, notches)
