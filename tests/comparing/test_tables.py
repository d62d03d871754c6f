"""Cells and marks of the tables."""

from __future__ import annotations

from cutlayer.comparing.tables import budget_table, target_table
from made_up_figures import results_of

CURVES = {
    "memsfl": [[0.2, 0.5, 0.6], [0.2, 0.6, 0.8]],
    "memsfl:cut=1": [[0.2, 0.3, 0.9], [0.2, 0.4, 0.9]],
    "vanilla": [[0.2, 0.2, 0.5], [0.2, 0.2, 0.3]],
    "splitlora": [[0.2, 0.2, 0.3], [0.2, 0.2, 0.3]],
}


def test_the_way_to_the_target() -> None:
    table = target_table(results_of(CURVES))
    assert table is not None
    assert table.title == "To accuracy ≥ 0.5"
    assert [[cell.whole for cell in row] for row in table.rows] == [
        ["memsfl", "2 of 2 seeds", "1", "1.0 s", "2.9 KiB", "3 GFLOP", "750 ms", "0.7 ± 0.1414"],
        ["memsfl:cut=1", "2 of 2 seeds", "2", "4.0 s", "11.7 KiB", "6 GFLOP", "1.5 s", "0.9"],
        ["vanilla", "1 of 2 seeds", "–", "–", "–", "–", "–", "0.4 ± 0.1414"],
        ["splitlora", "not reached", "–", "–", "–", "–", "–", "0.3"],
    ]
    marked = ["".join("x" if cell.best else "." for cell in row) for row in table.rows]
    assert marked == ["..xxxxx.", ".......x", "........", "........"]


def test_one_seed_needs_no_count() -> None:
    table = target_table(results_of({"memsfl": [[0.2, 0.6]], "vanilla": [[0.2, 0.3]]}))
    assert table is not None
    assert [row[1].text for row in table.rows] == ["yes", "not reached"]


def test_without_a_target_there_is_one_table() -> None:
    results = results_of(CURVES, target=None)
    assert target_table(results) is None
    assert budget_table(results).title == "The whole budget: 10 rounds of 5 steps"


def test_the_whole_budget() -> None:
    table = budget_table(results_of(CURVES))
    columns = ("method", "accuracy", "loss", "time", "bytes up", "bytes down", "device FLOPs", "device busy")
    assert table.columns == (*columns, "server memory", "device memory")
    assert [cell.whole for cell in table.rows[1]][:4] == ["memsfl:cut=1", "0.9", "0.1", "4.0 s"]
    assert [row[1].best for row in table.rows] == [False, True, False, False]
    assert [row[2].best for row in table.rows] == [False, True, False, False], "of a loss, less is better"


def test_what_is_alike_is_not_marked() -> None:
    table = budget_table(results_of({"memsfl": [[0.2, 0.6]], "vanilla": [[0.2, 0.6]]}))
    assert not any(row[1].best or row[-1].best for row in table.rows)
    assert [row[3].best for row in table.rows] == [True, False]
