"""Which runs a comparison takes, and what is refused before any of them runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cutlayer.comparing.comparison import Comparison, alone
from cutlayer.comparing.entry import parse_entries
from cutlayer.comparing.metric import Metric
from cutlayer.config import RunConfig, read_config
from cutlayer.errors import ConfigError
from cutlayer.methods.table import TABLE
from cutlayer.testing.tiny import save_inputs


def comparison(
    folder: Path, *words: str, seeds: tuple[int, ...] = (0,), for_all: Mapping[str, Any] | None = None, **content: Any
) -> Comparison:
    metric = Metric("accuracy", more_is_better=True)
    shared = RunConfig.model_validate(content)
    return Comparison(shared, for_all or {}, parse_entries(words), seeds, metric, None, folder)


def test_a_run_for_each_method_and_seed_all_methods_of_a_seed_first(tmp_path: Path) -> None:
    runs = comparison(tmp_path, "memsfl:cut=2", "vanilla", seeds=(3, 4)).runs()
    names = ["memsfl-cut=2-seed3", "vanilla-seed3", "memsfl-cut=2-seed4", "vanilla-seed4"]
    assert [run.name for run in runs] == names
    assert [run.config.train.seed for run in runs] == [3, 3, 4, 4]
    assert runs[0].folder == tmp_path / "runs" / names[0]
    assert runs[0].config.method.options["cut"] == 2
    assert runs[0].config.method.options["order"] == "longest_tail", "defaults are written out"


def test_runs_differ_in_method_seed_and_folder_only(tmp_path: Path) -> None:
    one, other = comparison(tmp_path, "memsfl", "vanilla", train={"lr": 0.01}).runs()
    assert one.config.model_dump(exclude={"method", "out"}) == other.config.model_dump(exclude={"method", "out"})


def test_an_option_for_all_gives_way_to_the_methods_own(tmp_path: Path) -> None:
    runs = comparison(tmp_path, "memsfl", "memsfl:momentum=0.25", for_all={"momentum": 0.5}).runs()
    assert [run.config.method.options["momentum"] for run in runs] == [0.5, 0.25]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["memslf"], r"compare memslf: method\.name: expected one of .*memsfl.*, got 'memslf'"),
        (
            ["vanilla:order=fifo"],
            r"compare vanilla:order=fifo: method\.order: expected an option of vanilla \(cut, labels\)",
        ),
        (["memsfl:cut=two"], r"compare memsfl:cut=two: method\.cut: expected a number of blocks, .* got 'two'"),
        (["memsfl:least=two"], r"compare memsfl:least=two: method\.least: expected int for memsfl, got 'two'"),
        (["memsfl:order=lifo"], r"compare memsfl:order=lifo: .*'lifo'"),
    ],
)
def test_a_method_or_an_option_that_is_not_there(words: list[str], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        comparison(tmp_path, *words).check()


def test_two_words_for_one_method(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"compare memsfl: expected different methods, got one that another word"):
        comparison(tmp_path, "memsfl", "memsfl:order=longest_tail").check()


def test_a_folder_of_another_comparison(tmp_path: Path) -> None:
    comparison(tmp_path, "memsfl", train={"rounds": 5}).write()
    with pytest.raises(ConfigError, match=r"whose train\.rounds is 5, not 4\. Use another --out\."):
        comparison(tmp_path, "memsfl", train={"rounds": 4}).check()


def test_runs_get_more_rounds_where_their_rate_does_not_fall(tmp_path: Path) -> None:
    flat = {"schedule": "constant", "warmup": 0}
    first = comparison(tmp_path, "memsfl", train={"rounds": 5, **flat})
    first.write()
    (run,) = first.runs()
    run.folder.mkdir()
    (run.folder / "config.yaml").write_text(run.config.to_yaml())
    (run.folder / "summary.json").write_text("{}")
    more = comparison(tmp_path, "memsfl", train={"rounds": 6, **flat})
    more._check_folder(more.runs())
    more.write()
    (longer,) = more.runs()
    assert not longer.done
    assert read_config(run.folder / "config.yaml").train.rounds == 6
    with pytest.raises(ConfigError, match=r"whose train\.rounds is 6, not 5"):
        first._check_folder(first.runs())


def test_runs_whose_rate_falls_get_no_more_rounds(tmp_path: Path) -> None:
    comparison(tmp_path, "memsfl", train={"rounds": 5}).write()
    more = comparison(tmp_path, "memsfl", train={"rounds": 6})
    with pytest.raises(ConfigError, match="--schedule constant --warmup 0"):
        more._check_folder(more.runs())


def test_methods_seeds_and_targets_may_be_added(tmp_path: Path) -> None:
    first = comparison(tmp_path, "memsfl", seeds=(0,))
    first.write()
    text = (tmp_path / "compare.yaml").read_text()
    more = comparison(tmp_path, "memsfl", "vanilla", seeds=(0, 1))
    more._check_folder(more.runs())
    more.write()
    assert (tmp_path / "compare.yaml").read_text() == text
    assert "seed" not in yaml.safe_load(text)["train"]


def test_a_key_that_there_was_not_yet_has_its_default(tmp_path: Path) -> None:
    mine = comparison(tmp_path, "memsfl")
    mine.write()
    path = tmp_path / "compare.yaml"
    content = yaml.safe_load(path.read_text())
    del content["train"]["clip"], content["hardware"]
    path.write_text(yaml.safe_dump(content))
    mine._check_folder(mine.runs())


def test_a_run_with_other_options_is_not_taken_for_this_one(tmp_path: Path) -> None:
    [run] = comparison(tmp_path, "memsfl", for_all={"momentum": 0.5}).runs()
    run.folder.mkdir(parents=True)
    (run.folder / "config.yaml").write_text(run.config.to_yaml())
    with pytest.raises(ConfigError, match=r"method\.momentum is 0\.5, not 0\.0\. Use another --out, or remove"):
        comparison(tmp_path, "memsfl").check()
    same = comparison(tmp_path, "memsfl", for_all={"momentum": 0.5})
    same._check_folder(same.runs())
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    there = comparison(moved, "memsfl", for_all={"momentum": 0.5})
    there._check_folder(there.runs())


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--out: expected a folder that can be made"):
        comparison(tmp_path / "file", "memsfl").write()


def test_one_comparison_at_a_time(tmp_path: Path) -> None:
    refused = pytest.raises(ConfigError, match="expected a folder in which no comparison is at work")
    with alone(tmp_path), refused, alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


def test_what_is_done_is_methods_of_which_every_run_is(tmp_path: Path) -> None:
    asked = comparison(tmp_path, "memsfl", "vanilla", "fedlora", seeds=(0, 1))
    assert asked.of_what_is_done() is None
    for run in asked.runs():
        if (run.entry.label, run.seed) != ("vanilla", 1):
            run.folder.mkdir(parents=True)
            (run.folder / "summary.json").write_text("{}")
    done = asked.of_what_is_done()
    assert done is not None
    assert [entry.label for entry in done.entries] == ["memsfl", "fedlora"]
    assert done.seeds == asked.seeds


def test_every_method_is_planned_by_its_own_steps(tmp_path: Path) -> None:
    """All rows of the table in one comparison: none is planned by what the steps of the first one cost."""
    here = save_inputs(tmp_path, rows=24)
    content = {
        "model": {"name": str(here / "model")},
        "data": {"path": str(here / "data"), "max_length": 16},
        "lora": {"targets": ["all-linear"]},
    }
    for first in ("ho_sfl", "prge"):
        words = [first, *(name for name in sorted(TABLE) if name != first)]
        inputs = comparison(tmp_path / "out", *words, **content).check()
        assert inputs.config.method.name == first
