"""Which way is better, and what may be asked for."""

from __future__ import annotations

import math

import pytest

from cutlayer.comparing.metric import Metric, metric_of
from cutlayer.config import METRICS
from cutlayer.errors import ConfigError
from cutlayer.report.metrics import ClassificationMetrics, LanguageMetrics


def test_the_names_are_those_of_an_evaluation() -> None:
    import torch

    classes, language = ClassificationMetrics(2), LanguageMetrics()
    classes.add(torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), 1.0)
    language.add(1.0, 1)
    assert set(METRICS["classification"]) == classes.result().keys()
    assert set(METRICS["causal-lm"]) == language.result().keys() - {"tokens"}


@pytest.mark.parametrize(("more", "values"), [(True, (0.7, 0.9)), (False, (0.9, 0.7))])
def test_a_target_is_reached_from_the_worse_side(more: bool, values: tuple[float, float]) -> None:
    metric, (worse, better) = Metric("x", more), values
    assert not metric.reaches(worse, 0.8)
    assert metric.reaches(better, 0.8)
    assert metric.reaches(0.8, 0.8)
    assert not metric.reaches(None, 0.8)
    assert metric.best([worse, None, better]) == better
    assert metric.best([None]) is None


def test_the_first_metric_of_the_task_is_the_default() -> None:
    assert metric_of("classification", None, 0.8) == Metric("accuracy", True)
    assert metric_of("causal-lm", None, 8.0) == Metric("perplexity", False)
    assert metric_of("classification", "loss", 2.0) == Metric("loss", False)


def test_a_metric_of_another_task() -> None:
    with pytest.raises(ConfigError, match=r"--metric: expected one of perplexity, loss for causal-lm, got 'accuracy'"):
        metric_of("causal-lm", "accuracy", None)


@pytest.mark.parametrize(
    ("name", "target"), [("accuracy", 80.0), ("accuracy", 0.0), ("loss", -1.0), ("loss", math.inf), ("loss", math.nan)]
)
def test_a_target_that_no_run_can_reach_or_miss(name: str, target: float) -> None:
    with pytest.raises(ConfigError, match=f"--target: expected a value of {name}, above 0"):
        metric_of("classification", name, target)
