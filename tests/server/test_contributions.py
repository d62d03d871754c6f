from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from cutlayer.policies.aggregate import Contribution
from cutlayer.server.contributions import fair, fairly_weighed, log_outliers, table_of
from cutlayer.types import Adapter, DevicePlan, RoundPlan

BEGAN: Adapter = {"w": torch.tensor([1.0, 1.0]), "v": torch.tensor([0.0])}


def moved(device: str, *change: float, weight: float = 1.0) -> Contribution:
    adapter = {"w": BEGAN["w"] + torch.tensor(change)}
    return Contribution(adapter, {"w": weight}, device=device)


def rows_of(*parts: Contribution) -> dict[str, dict[str, float]]:
    return {row["device"]: row for row in table_of(parts, lambda _: BEGAN, 7)}


def test_norms_cosines_and_shares() -> None:
    rows = rows_of(moved("a", 3.0, 4.0, weight=6.0), moved("b", 3.0, 4.0, weight=3.0), moved("c", -3.0, -4.0))
    assert [row["norm"] for row in rows.values()] == pytest.approx([5.0] * 3)
    assert [row["times"] for row in rows.values()] == pytest.approx([1.0] * 3)
    assert [row["share"] for row in rows.values()] == pytest.approx([0.6, 0.3, 0.1])
    assert rows["c"]["cosine"] == pytest.approx(-1.0)
    assert rows["a"]["cosine"] == 0.0, "the others' changes add up to none"
    assert [row["outlier"] for row in rows.values()] == [False, False, True]
    assert {row["round"] for row in rows.values()} == {7}


def test_ten_times_the_step_of_the_others_is_an_outlier(caplog: pytest.LogCaptureFixture) -> None:
    rows = rows_of(moved("a", 1.0, 0.1), moved("b", 1.0, -0.1), moved("c", 10.0, 0.0))
    assert [name for name, row in rows.items() if row["outlier"]] == ["c"]
    assert rows["c"]["times"] == pytest.approx(10.0, rel=0.01)
    with caplog.at_level(logging.WARNING, "cutlayer.contributions"):
        log_outliers(list(rows.values()))
    [record] = caplog.records
    assert "round 7: device c changed the adapter by 9.95 times the median, at a cosine of 1.00" in record.getMessage()


def test_of_two_nobody_is_an_outlier_and_of_one_there_is_no_other() -> None:
    assert not any(row["outlier"] for row in rows_of(moved("a", 1.0, 0.0), moved("b", -90.0, 0.0)).values())
    [row] = rows_of(moved("a", 1.0, 0.0)).values()
    assert (row["cosine"], row["times"], row["share"]) == (0.0, 1.0, 1.0)


def test_what_several_trained_together_and_what_nobody_moved_has_no_row_and_no_norm() -> None:
    of_all = replace(moved("", 5.0, 5.0), device="")
    rows = rows_of(of_all, moved("a", 0.0, 0.0), moved("b", 0.0, 0.0), moved("c", 0.0, 0.0))
    assert [(row["norm"], row["times"], row["cosine"], row["outlier"]) for row in rows.values()] == [
        (0, 1, 0, False)
    ] * 3


def test_lower_ranks_lie_where_they_belong() -> None:
    began = {"q.lora_A.weight": torch.zeros(4, 2)}

    def of_rank(device: str, rank: int) -> Contribution:
        return Contribution({"q.lora_A.weight": torch.ones(rank, 2)}, {"q.lora_A.weight": 1.0}, device=device)

    low, high = table_of([of_rank("low", 2), of_rank("high", 4)], lambda _: began, 0)
    assert (low["norm"], high["norm"]) == pytest.approx((2.0, 8**0.5))
    assert low["cosine"] == pytest.approx(1.0), "of what it has itself"
    assert high["cosine"] == pytest.approx(2**-0.5)


# ------------------------------------------------------------------ weights


def test_a_device_that_says_that_its_texts_are_long_counts_for_twice_the_others_at_most() -> None:
    weights = fair({"a": 100.0, "b": 120.0, "liar": 1016.0}, {"a": 8, "b": 8, "liar": 8})
    assert weights == {"a": 100.0, "b": 120.0, "liar": 240.0}
    assert fair({"a": 100.0, "liar": 1016.0}, {"a": 8, "liar": 8}) == {"a": 100.0, "liar": 200.0}
    assert fair({"liar": 1016.0}, {"liar": 8}) == {"liar": 1016.0}, "alone it decides anyway"
    assert fair({"a": 100.0, "b": 150.0}, {"a": 8, "b": 8}) == {"a": 100.0, "b": 150.0}


def test_only_who_has_the_labels_is_weighed_again() -> None:
    whole, cut = DevicePlan("whole", cut=3, top=3), DevicePlan("cut", cut=1)
    plan = RoundPlan(0, (whole, replace(whole, device="liar"), replace(whole, device="other"), cut))
    parts = [moved(device, 1.0, 1.0, weight=weight) for device, weight in
             (("whole", 10.0), ("liar", 900.0), ("other", 12.0), ("cut", 900.0))]  # fmt: skip
    samples = dict.fromkeys(("whole", "liar", "other", "cut"), 2)
    again = fairly_weighed(parts, plan, samples)
    assert [part.weights["w"] for part in again] == pytest.approx([10.0, 24.0, 12.0, 900.0])
    assert [one is other for one, other in zip(parts, again, strict=True)] == [True, False, True, True]
