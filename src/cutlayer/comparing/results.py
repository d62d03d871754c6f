"""Run folders to figures: curves, what the target cost, totals, predicted memory; mean and spread over seeds.

Everything here was counted by the runs (metrics.jsonl, summary.json). Nothing depends on this machine's speed, so the
same comparison gives the same compare.json whether it was stopped on its way or not. A curve begins with the untrained
adapter at round 0, and its point k is after k rounds; what was spent is cumulative.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cutlayer.comparing.comparison import Comparison, Run
from cutlayer.comparing.metric import Metric
from cutlayer.report.json_lines import JsonLines


@dataclass(frozen=True, slots=True)
class Spent:
    """The cost of a run so far.

    Attributes:
      round: rounds done.
      virtual_seconds: on the fleet's clock.
      bytes: of all devices, both directions.
      flops: that devices computed.
      busy_seconds: that devices took for it, summed over devices: what stands for their energy.
    """

    round: float
    virtual_seconds: float
    bytes: float
    flops: float
    busy_seconds: float


KEYS = tuple(Spent.__annotations__)


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation: what was spent until then, and every metric (None where it is not finite)."""

    spent: Spent
    metrics: dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Stat:
    """One figure over seeds.

    Attributes:
      mean: None where a seed has no such figure.
      spread: the sample standard deviation; None with one seed.
      low, high: the least and the most of any seed.
    """

    mean: float | None
    spread: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One run.

    Attributes:
      seed, folder: which.
      best: of the metric, over its curve.
      to_target: what was spent when it first reached the target; None if it never did.
      samples, bytes_up, bytes_down: of the whole run.
      server_bytes: the most that the server needs in any round, as the cost model predicts it.
      device_bytes, device: the same of the device that needs most.
      curve: every evaluation, the untrained adapter's first.
    """

    seed: int
    folder: str
    best: float | None
    to_target: Spent | None
    samples: int
    bytes_up: int
    bytes_down: int
    server_bytes: int
    device_bytes: int
    device: str
    curve: tuple[Point, ...]

    @property
    def total(self) -> Spent:
        return self.curve[-1].spent


@dataclass(frozen=True, slots=True)
class MethodFigures:
    """One method over its seeds.

    Attributes:
      label: as it was typed.
      method, options: what that means.
      before, final: every metric of the untrained adapter and of the last evaluation.
      best: of the metric.
      reached: runs that reached the target.
      to_target: what they had spent; None unless all did: a mean over those that made it would favour a method that
        seldom does.
      totals: what the whole budget cost.
      samples, bytes_up, bytes_down: of the whole budget.
      server_bytes, device_bytes, device: the most over seeds.
      curve: the mean of the runs' evaluations, round by round.
      band: the least and the most of the metric of any seed, round by round.
      runs: one per seed.
    """

    label: str
    method: str
    options: dict[str, Any]
    before: dict[str, Stat]
    final: dict[str, Stat]
    best: Stat
    reached: int
    to_target: dict[str, Stat] | None
    totals: dict[str, Stat]
    samples: Stat
    bytes_up: Stat
    bytes_down: Stat
    server_bytes: int
    device_bytes: int
    device: str
    curve: tuple[Point, ...]
    band: tuple[Stat, ...]
    runs: tuple[RunFigures, ...]


@dataclass(frozen=True, slots=True)
class Results:
    """The content of compare.json.

    Attributes:
      metric, more_is_better, target: what is compared.
      seeds: of the runs.
      shared: what the runs share, as compare.yaml says it.
      versions: of the packages that decide a result.
      methods: in the order in which they were asked for; without those of which a run failed.
      failed: by the name of a run, what it said last.
    """

    metric: str
    more_is_better: bool
    target: float | None
    seeds: tuple[int, ...]
    shared: dict[str, Any]
    versions: dict[str, str]
    methods: tuple[MethodFigures, ...]
    failed: dict[str, str] = field(default_factory=dict)


def read_results(comparison: Comparison, failed: Mapping[str, str]) -> Results:
    """Reads the run folders.

    Args:
      comparison: all of whose runs are done.
      failed: see `Results`.
    """
    runs, metric, target = comparison.runs(), comparison.metric, comparison.target
    figures = {run.name: read_run(run, metric, target) for run in runs}
    by_entry = [[run for run in runs if run.entry == entry] for entry in comparison.entries]
    return Results(
        metric=metric.name,
        more_is_better=metric.more_is_better,
        target=target,
        seeds=comparison.seeds,
        shared=comparison.shared_content(),
        versions=_summary(runs[0])["versions"],
        methods=tuple(over_seeds(same[0], [figures[run.name] for run in same], metric) for same in by_entry),
        failed=dict(failed),
    )


def read_run(run: Run, metric: Metric, target: float | None) -> RunFigures:
    """The figures of one run."""
    rows, summary = list(JsonLines(run.folder / "metrics.jsonl").read()), _summary(run)
    points, totals = curve(rows, summary["metrics_before"]), summary["totals"]
    held = [(device["memory_bytes"], name) for row in rows for name, device in row["devices"].items()]
    device_bytes, device = max(held)
    return RunFigures(
        seed=run.seed,
        folder=f"runs/{run.name}",
        best=metric.best(point.metrics[metric.name] for point in points),
        to_target=first_at(points, metric, target),
        samples=totals["samples"],
        bytes_up=totals["bytes_up"],
        bytes_down=totals["bytes_down"],
        server_bytes=max(row["server_memory_bytes"] for row in rows),
        device_bytes=device_bytes,
        device=device,
        curve=points,
    )


def _summary(run: Run) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run.folder / "summary.json").read_text(encoding="utf-8"))
    return content


def curve(rows: Iterable[Mapping[str, Any]], before: Mapping[str, float]) -> tuple[Point, ...]:
    """A point for the untrained adapter and for each round that was evaluated.

    Args:
      rows: of metrics.jsonl.
      before: metrics of the untrained adapter.
    """
    points = [Point(Spent(0, 0.0, 0, 0.0, 0.0), dict(before))]
    num_bytes, flops, busy_seconds = 0, 0.0, 0.0
    for row in rows:
        devices = row["devices"].values()
        num_bytes += row["bytes_up"] + row["bytes_down"]
        flops += sum(device["flops"] for device in devices)
        busy_seconds += sum(device["busy_seconds"] for device in devices)
        if row["validation"]:
            spent = Spent(row["round"] + 1, row["virtual_seconds"], num_bytes, flops, busy_seconds)
            points.append(Point(spent, row["validation"]))
    return tuple(points)


def first_at(points: Iterable[Point], metric: Metric, target: float | None) -> Spent | None:
    """The cost up to the first evaluation that reached the target; None without one."""
    if target is None:
        return None
    return next((point.spent for point in points if metric.reaches(point.metrics[metric.name], target)), None)


def over_seeds(run: Run, figures: Sequence[RunFigures], metric: Metric) -> MethodFigures:
    """Mean and spread of one method.

    Args:
      run: any of its runs: which method it is.
      figures: of each.
      metric: what is compared.
    """
    rounds = list(zip(*(one.curve for one in figures), strict=True))
    reached = [one.to_target for one in figures if one.to_target is not None]
    largest = max(figures, key=lambda one: one.device_bytes)
    return MethodFigures(
        label=run.entry.label,
        method=run.config.method.name,
        options=run.config.method.options,
        before=_stats([one.curve[0].metrics for one in figures]),
        final=_stats([one.curve[-1].metrics for one in figures]),
        best=stat([one.best for one in figures]),
        reached=len(reached),
        to_target=_stats([_counted(spent) for spent in reached]) if len(reached) == len(figures) else None,
        totals=_stats([_counted(one.total) for one in figures]),
        samples=stat([one.samples for one in figures]),
        bytes_up=stat([one.bytes_up for one in figures]),
        bytes_down=stat([one.bytes_down for one in figures]),
        server_bytes=max(one.server_bytes for one in figures),
        device_bytes=largest.device_bytes,
        device=largest.device,
        curve=tuple(_mean_point(points) for points in rounds),
        band=tuple(stat([point.metrics[metric.name] for point in points]) for points in rounds),
        runs=tuple(figures),
    )


def stat(values: Sequence[float | None]) -> Stat:
    """Mean and spread; nothing where a value is missing.

    Example:
      >>> stat([1.0, 3.0])
      Stat(mean=2.0, spread=1.4142135623730951, low=1.0, high=3.0)
    """
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values) or not numbers:
        return Stat(None, None, None, None)
    spread = statistics.stdev(numbers) if len(numbers) > 1 else None
    return Stat(statistics.fmean(numbers), spread, min(numbers), max(numbers))


def _stats(each: Sequence[Mapping[str, float | None]]) -> dict[str, Stat]:
    return {key: stat([one[key] for one in each]) for key in each[0] if key != "tokens"}


def _counted(spent: Spent) -> dict[str, float | None]:
    return {key: getattr(spent, key) for key in KEYS}


def _mean_point(points: Sequence[Point]) -> Point:
    spent = {key: statistics.fmean(getattr(point.spent, key) for point in points) for key in KEYS}
    metrics = {name: stat([point.metrics[name] for point in points]).mean for name in points[0].metrics}
    return Point(Spent(**spent), metrics)
