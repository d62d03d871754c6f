"""A run as a page shows it: the same from its folder as from what it tells, and in the words of its files."""

from __future__ import annotations

from pathlib import Path

from cutlayer.page.digest import COLUMNS, Digest, about
from cutlayer.page.run_page import digest_of
from cutlayer.report.fleet_view import DeviceNow
from made_up_runs import config, contributions, events, names, row, write_run


def read(out: Path, *, devices: int = 3, rounds: int = 4) -> Digest:
    digest = digest_of(folder := write_run(out, devices=devices, rounds=rounds, of=max(rounds, 1)))
    for _ in digest.reading(folder):
        pass
    return digest


def test_a_folder_and_what_is_told_come_to_the_same(tmp_path: Path) -> None:
    read_one, who = read(tmp_path / "run", devices=3, rounds=5), names(3)
    told = Digest(config(tmp_path, 5).model_dump(mode="json"), {"blocks": 6}, tmp_path, simulated=False)
    for round in range(5):
        for event in events(round, who):
            told.seen([event])
        for moved in contributions(round, who):
            told.contributed(moved)
        told.finished(row(round, who))
    assert told.rows() == read_one.rows()
    assert told.tiles() == read_one.tiles()
    assert told.histories() == read_one.histories()
    assert told.figures.numbers() == read_one.figures.numbers()
    assert told.timeline.whole() == read_one.timeline.whole()
    assert told.held_up() == "Last to finish most often: pi-2, in 5 of 5 rounds."


def test_what_comes_after_a_checkpoint_is_left_out(tmp_path: Path) -> None:
    digest = digest_of(folder := write_run(tmp_path / "run", rounds=5))
    for _ in digest.reading(folder, 2):
        pass
    assert digest.rounds_done == 2
    assert digest.timeline.end_seconds <= 20.0


def test_a_row_has_a_value_for_each_column(tmp_path: Path) -> None:
    digest = read(tmp_path / "run")
    digest.ended = {"refusals": {"pi-0": {"wrong-token": 3}}}
    columns = [name for name, _ in COLUMNS]
    first = dict(zip(columns, digest.rows()[0], strict=True))
    assert first["device"] == "pi-0"
    assert (first["state"], first["cut"], first["step"], first["refused"]) == ("late", [1, 6], [2, 2], 3)
    assert first["last seen"] == 0.0


def test_the_door_knows_better_than_rounds(tmp_path: Path) -> None:
    digest = read(tmp_path / "run")
    now = [
        DeviceNow("pi-1", "training", True, 3, 1, 2, 7.5, 999_999, 5, 0.4, refusals=2),
        DeviceNow("pi-9", "away"),
    ]
    rows = {row[0]: dict(zip([name for name, _ in COLUMNS], row, strict=True)) for row in digest.rows(now)}
    assert (rows["pi-1"]["state"], rows["pi-1"]["cut"], rows["pi-1"]["step"]) == ("training", [3, 6], [1, 2])
    assert (rows["pi-1"]["up"], rows["pi-1"]["refused"], rows["pi-1"]["last seen"]) == (999_999, 2, 0)
    assert (rows["pi-9"]["state"], rows["pi-9"]["last seen"]) == ("away", None)
    assert rows["pi-0"]["state"] == "late", "of whom the door knows nothing"


def test_tiles_say_what_a_run_came_to(tmp_path: Path) -> None:
    digest = read(tmp_path / "run")
    digest.ended = {"peak_memory_bytes": 2**31, "refusals": {"pi-0": {"wrong-token": 3}, "(stranger)": {"too-many": 1}}}
    tiles = {what: (figure, than) for what, figure, than in digest.tiles()}
    assert tiles["round"] == ("4 of 4", "")
    assert tiles["accuracy"][0] == "0.75"
    assert tiles["sent by devices"] == ("938 KiB", "and to them 469 KiB")
    assert tiles["memory, measured"][0] == "2.0 GiB"
    assert tiles["late"][0] == "1"
    assert tiles["refused"] == ("4", "pi-0 3, (stranger) 1")


def test_before_the_first_round_there_is_little_to_say(tmp_path: Path) -> None:
    digest = read(tmp_path / "run", rounds=0)
    assert [tile[:2] for tile in digest.tiles()] == [["round", "0 of 1"]]
    assert (digest.rows(), digest.held_up()) == ([], "")


def test_about_says_the_method_in_a_sentence(tmp_path: Path) -> None:
    said = about(config(tmp_path, 1), 6)
    assert said["blocks"] == 6
    assert "one base on the server" in said["method"]["summary"]
    assert {"cutlayer", "torch", "python"} <= set(said["versions"])
    assert "blocks" not in about(config(tmp_path, 1), None)
