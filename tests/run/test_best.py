"""The best round is what comes out, a run that no longer gets better ends, and a stop changes neither."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cutlayer.config import read_config
from cutlayer.errors import ConfigError
from cutlayer.report.progress import NoProgress
from cutlayer.run import run as runs
from cutlayer.run.best import BestRound, Result
from cutlayer.run.ending import Outcome
from cutlayer.run.inputs import prepare
from cutlayer.run.simulated import simulate
from cutlayer.run.trained import opened
from cutlayer.types import Kept
from real import served, simulated, values_for

LOSSES = (3.0, 2.0, 1.0, 1.5, 1.2, 0.1)
"""Losses of the untrained adapter, then after each round: the second is the best until patience ends."""


def result(value: float) -> Result:
    return Result({"a": torch.full((2,), value)}, {"pi": {"a": torch.full((2,), -value)}}, Kept(((0, 2),), ((1,),)))


@pytest.mark.parametrize(("metric", "best"), [("loss", 1), ("accuracy", 0)])
def test_low_losses_and_high_other_metrics_are_good(metric: str, best: int) -> None:
    keeper = BestRound("best", metric, 0)
    for round, value in enumerate((2.0, 1.0, 1.5)):
        keeper.evaluated(round, {metric: value}, lambda value=value: result(value))  # type: ignore[misc]
    assert keeper.best_row is not None
    assert keeper.best_result is not None
    assert keeper.best_row["round"] == best
    assert float(keeper.best_result.adapter["a"][0]) == (1.0 if metric == "loss" else 2.0)
    assert not keeper.exhausted


def test_what_is_kept_no_longer_changes_and_goes_through_a_checkpoint() -> None:
    keeper, ended = BestRound("best", "loss", 2), result(1.0)
    keeper.evaluated(0, {"loss": 1.0}, lambda: ended)
    ended.adapter["a"].zero_()
    keeper.evaluated(1, {"loss": 1.0}, lambda: result(5.0))  # as good is not better
    other = BestRound("best", "loss", 2)
    other.load(keeper.state())
    assert other.best_row == keeper.best_row == {"round": 0, "value": 1.0, "metrics": {"loss": 1.0}}
    assert other.best_result is not None
    assert other.best_result.kept == result(1.0).kept
    assert other.best_result.adapter["a"].tolist() == [1.0, 1.0]
    assert other.best_result.views["pi"]["a"].tolist() == [-1.0, -1.0]
    for each in (keeper, other):
        assert not each.exhausted
        each.evaluated(2, {"loss": 1.1}, lambda: result(6.0))
        assert each.exhausted


def test_a_metric_that_the_run_has_not() -> None:
    with pytest.raises(ConfigError, match=r"train\.metric: expected one of accuracy, loss, got 'bleu'"):
        BestRound("best", "bleu", 0).check({"loss": 1.0, "accuracy": 0.5})
    BestRound("last", "bleu", 0).check({"loss": 1.0})


# ------------------------------------------------------------------ whole runs


class Evaluations:
    """Says how good a run is, in place of its validation data."""

    def __init__(self) -> None:
        self.left: Iterator[float] = iter(LOSSES)

    def __call__(self, *_: Any, **__: Any) -> dict[str, float]:
        return {"loss": next(self.left)}

    def go_on_after(self, rounds: int) -> None:
        self.left = iter(LOSSES[rounds + 1 :])


@pytest.fixture
def evaluations(monkeypatch: pytest.MonkeyPatch) -> Evaluations:
    made = Evaluations()
    monkeypatch.setattr(runs, "evaluate", made)
    return made


@pytest.fixture
def values(inputs: Path) -> dict[str, Any]:
    keys = {"train.keep": "best", "train.patience": 2, "train.save_every": 1, "train.rounds": 5, "train.local_steps": 1}
    return values_for(inputs) | keys


class _StopAfter(NoProgress):
    def __init__(self, rounds: int) -> None:
        self._rounds = rounds

    def round_done(self, row: Mapping[str, Any]) -> None:
        if row["round"] + 1 == self._rounds:
            raise KeyboardInterrupt


def files_of(outcome: Outcome) -> dict[str, bytes]:
    """The adapters of a run, and what its checkpoint keeps of the best round."""
    found = {path: path.read_bytes() for path in sorted(outcome.folder.glob("adapter*/**/*")) if path.is_file()}
    return {str(path.relative_to(outcome.folder)): content for path, content in found.items()}


def resumed(values: Mapping[str, Any], out: Path, rounds: int, evaluations: Evaluations) -> Outcome:
    """The run, killed after so many rounds and gone on with."""
    evaluations.left = iter(LOSSES)
    inputs = prepare(read_config(None, values={**values, "out": str(out)}))
    with pytest.raises(KeyboardInterrupt):
        simulate(inputs, _StopAfter(rounds))
    evaluations.go_on_after(rounds)
    return simulate(prepare(read_config(out / "config.yaml")), NoProgress(), resume=True)


def test_the_best_round_comes_out_whenever_the_run_was_stopped(
    values: dict[str, Any], evaluations: Evaluations, tmp_path: Path
) -> None:
    whole = simulated(values, tmp_path / "whole")
    assert len(whole.rows) == 4, "two evaluations that were no better"
    assert (whole.summary["exported_round"], whole.summary["ended_early"], whole.metrics) == (1, True, {"loss": 1.0})
    files = files_of(whole)
    name = "adapter_model.safetensors"
    assert files[f"adapter/{name}"] == files[f"adapters/round-2/{name}"] != files[f"adapters/round-4/{name}"]
    assert sum(one.endswith(name) for one in files) == 5
    for rounds in (2, 4):  # after the best, and after the last that was played
        again = resumed(values, tmp_path / f"stopped-{rounds}", rounds, evaluations)
        assert files_of(again) == files
        assert again.summary["exported_round"] == 1


def test_a_stopped_run_gives_what_its_end_would_give(
    values: dict[str, Any], evaluations: Evaluations, tmp_path: Path
) -> None:
    inputs = prepare(read_config(None, values={**values, "out": str(tmp_path / "run")}))
    with pytest.raises(KeyboardInterrupt):
        simulate(inputs, _StopAfter(3))
    now, second, third = (opened(tmp_path / "run", round=round) for round in (None, 2, 3))
    assert same(now.adapter, second.adapter)
    assert not same(now.adapter, third.adapter)
    assert (now.training.rounds, now.training.metrics) == (2, {"loss": 1.0})


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_on_a_real_server_too(values: dict[str, Any], evaluations: Evaluations, tmp_path: Path) -> None:
    expected = files_of(simulated(values, tmp_path / "simulated"))
    evaluations.left = iter(LOSSES)
    assert files_of(served(values, tmp_path / "real")) == expected


def test_weights_that_move_are_no_adapter_to_keep(values: dict[str, Any], tmp_path: Path) -> None:
    moving: Sequence[tuple[str, Any]] = (("method.name", "fedkseed"), ("method.seeds", 8))
    with pytest.raises(ConfigError, match=r"train\.keep: expected last"):
        simulated(values | dict(moving), tmp_path / "run")
    assert not (tmp_path / "run").exists()
