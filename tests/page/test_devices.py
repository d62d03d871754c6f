"""A row for each device: sums over rounds, what is of the last one, and a history."""

from __future__ import annotations

import pytest

from cutlayer.page.devices import MOST_POINTS, DevicesSoFar
from made_up_runs import contributions, events, names, row


def fed(rounds: int, devices: int = 3) -> DevicesSoFar:
    book, who = DevicesSoFar(), names(devices)
    for round in range(rounds):
        for event in events(round, who):
            book.seen([event])
        for moved in contributions(round, who):
            book.of(moved["device"]).contributed(moved)
        book.finished(row(round, who))
    return book


def test_sums_and_the_last_round() -> None:
    device = fed(4).by_name["pi-1"]
    assert (device.rounds, device.steps, device.samples, device.bytes_up) == (4, 8, 32, 320_000)
    assert (device.cut, device.late, device.norm) == (2, 0, 1.5)
    assert device.samples_per_second == 8 / 5.0
    assert device.seen_seconds == 40.0
    assert fed(4).by_name["pi-0"].late == 1


def test_a_links_rate_is_that_of_its_last_round() -> None:
    device = fed(1).by_name["pi-2"]
    seconds = 10.0 / 2 * 0.25 * 2
    assert device.up_rate == pytest.approx(8 * 80_000 / seconds)
    assert fed(3).by_name["pi-2"].up_rate == pytest.approx(device.up_rate)


def test_who_was_the_last_to_finish_is_counted() -> None:
    assert {name: device.held_up for name, device in fed(5).by_name.items()} == {"pi-0": 0, "pi-1": 0, "pi-2": 5}


def test_a_history_has_bounded_room() -> None:
    history = fed(500, devices=1).by_name["pi-0"].history()
    assert set(history) == {"loss", "samples_per_second", "norm"}
    assert all(len(points) <= MOST_POINTS for points in history.values())
    assert history["loss"][-1][0] == 500
    assert history["loss"][0][1] > history["loss"][-1][1]


def test_a_loss_that_is_none_leaves_no_point() -> None:
    book, one = DevicesSoFar(), row(0, ["pi"])
    one["devices"]["pi"]["loss"] = None
    book.finished(one)
    assert book.by_name["pi"].history()["loss"] == []
