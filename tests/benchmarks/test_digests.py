"""Digests of runs: the same run has the same ones, and what changed is named."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

import digests
from cutlayer.errors import ConfigError
from cutlayer.methods.table import TABLE

PACKED = "splitlora:packed"


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Undoes what a command has set in the environment."""
    with mock.patch.dict(os.environ):
        yield


def code_of(*words: object) -> Any:
    with pytest.raises(SystemExit) as ended:
        digests.main([str(word) for word in words])
    return ended.value.code


@pytest.mark.slow
def test_a_run_is_reproduced_and_another_table_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "digests.json"
    assert code_of("write", table, "--only", PACKED) == 0
    content = json.loads(table.read_text())
    assert list(content["lines"]) == [f"{PACKED}/bert/0"]
    assert content["lines"][f"{PACKED}/bert/0"].keys() == {"adapter", "metrics", "events"}
    assert content["broken"] == []
    capsys.readouterr()
    assert code_of("compare", table, "--only", PACKED) == 0
    content["lines"]["gone/bert/0"] = content["lines"]["sl/bert/0"] = {"adapter": "0"}
    content["lines"][f"{PACKED}/bert/0"]["adapter"] = "0"
    table.write_text(json.dumps(content))
    capsys.readouterr()
    assert code_of("compare", table, "--only", PACKED) == 1
    *differing, summary = capsys.readouterr().out.splitlines()
    assert differing == [f"{PACKED}/bert/0: other adapter", "gone/bert/0: not played"]
    assert summary.startswith("2 lines of ")


def test_a_promise_may_stay_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, lines = tmp_path / "digests.json", {"sl/bert/0": {"adapter": "1"}}
    plays = [play for play in digests.plays_of(["sl"]) if play.name == "sl/bert/0"]
    monkeypatch.setattr(digests, "play_all", lambda _plays: (lines, ["a: broken."]))
    assert not digests.write(table, plays)
    assert digests.compare(table, plays)
    assert "known: a: broken." in capsys.readouterr().out
    monkeypatch.setattr(digests, "play_all", lambda _plays: (lines, ["a: broken.", "b: broken."]))
    assert not digests.compare(table, plays)


def test_what_a_run_left_is_seen(tmp_path: Path) -> None:
    stage = digests.Stage(tmp_path)
    case = next(case for case in digests.CASES if case.name == "local_only")
    before, resumed = stage.simulate(digests.Play(case, "bert", 0))
    assert before == resumed
    assert before.keys() == {"adapter", "adapters", "metrics", "events"}
    out = tmp_path / "whole"
    for file, seen in (
        (out / "adapter" / "adapter_model.safetensors", {"adapter"}),
        (out / "adapters" / "quick" / "adapter_model.safetensors", {"adapters"}),
        (out / "events.jsonl", {"events"}),
    ):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        after = stage.digests(out)
        assert {key for key in before if before[key] != after[key]} == seen
        file.write_bytes(content)
    metrics = out / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    for key, seen in (("wall_seconds", set[str]()), ("virtual_seconds", {"metrics"})):
        rows[1][key] += 1
        metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
        after = stage.digests(out)
        assert {name for name in before if before[name] != after[name]} == seen


def test_a_run_that_moves_all_weights_leaves_a_model(tmp_path: Path) -> None:
    stage = digests.Stage(tmp_path)
    case = next(case for case in digests.CASES if case.name == "fedkseed")
    before, resumed = stage.simulate(digests.Play(case, "bert", 0))
    assert before == resumed
    assert before.keys() == {"model", "metrics", "events"}


def test_a_run_that_fails_is_named_and_the_others_go_on() -> None:
    wrong = digests.Play(digests.Case("memsfl", "wrong", ("-o", "method.order=backwards")), "bert", 0)
    lines, broken = digests.play_all([wrong])
    assert not lines
    [sentence] = broken
    assert "expected exit code 0, got 2: error: " in sentence
    assert "backwards" in sentence


def test_a_mistake_of_the_code_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def cutlayer(_words: list[str]) -> None:
        raise AssertionError("a mistake")

    monkeypatch.setattr(digests, "cutlayer", cutlayer)
    _, broken = digests.play_all([digests.Play(digests.CASES[0], "bert", 0)])
    assert "got AssertionError: a mistake" in broken[0]


def test_a_run_without_checkpoints_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "cutlayer", lambda _words: None)
    _, broken = digests.play_all([digests.Play(digests.CASES[0], "bert", 0)])
    assert "expected a checkpoint of every round" in broken[0]


def test_differences_name_what_differs() -> None:
    old = {"a": {"adapter": "1", "metrics": "1"}, "b": {"adapter": "1"}, "c": {"adapter": "1"}}
    new = {"a": {"adapter": "2", "metrics": "2"}, "b": {"adapter": "1", "pruned": "1"}}
    assert digests.differences(old, old) == []
    assert digests.differences(old, new) == ["a: other adapter, metrics", "b: other pruned", "c: not played"]


def test_promises_that_are_broken() -> None:
    simulated = {"adapter": "1", "metrics": "1", "pruned": "1"}
    assert digests.unlike("a", "it", simulated, {"adapter": "1", "bytes": "1", "pruned": "1"}) == []
    assert digests.unlike("a", "it", simulated, {"adapter": "2"}) == ["a: expected it, got other adapter, pruned."]


def test_every_method_is_played() -> None:
    plays = digests.plays_of([])
    assert len({play.name for play in plays}) == len(plays), "each line has a name of its own"
    assert {play.case.method for play in plays if not play.case.variant} == set(TABLE)
    assert {play.case.method for play in plays if not play.grpc} == set(TABLE)
    as_variants = {"legend", "mergesfl", "reindsplit"}  # of which some options decide nothing by what is measured
    assert {play.case.method for play in plays if play.grpc} == set(TABLE) - set(digests.MEASURED) | as_variants
    assert {play.case.name for play in digests.plays_of(["sl"], grpc=False)} == {"sl", "sl:micro"}


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--only: expected some of .*splitlora.*, got splitlore\. Correct it\."):
        digests.plays_of(["splitlore"])
    with pytest.raises(ConfigError, match=r"none\.json: expected a table of digests, got .* Make one with `write`\."):
        digests.compare(tmp_path / "none.json", [])
