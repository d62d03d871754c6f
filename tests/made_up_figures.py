"""Made-up figures of a comparison: methods with a curve each, without a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cutlayer.comparing.comparison import Run
from cutlayer.comparing.entry import parse_entry
from cutlayer.comparing.metric import Metric
from cutlayer.comparing.results import MethodFigures, Results, RunFigures, curve, first_at, over_seeds
from cutlayer.config import RunConfig

ACCURACY = Metric("accuracy", more_is_better=True)


def row(round: int, accuracy: float | None, *, seconds: float = 1.0, num_bytes: int = 3000) -> dict[str, Any]:
    """A line of metrics.jsonl: two devices; None for a round that was not evaluated."""
    return {
        "round": round,
        "bytes_up": num_bytes // 3,
        "bytes_down": num_bytes - num_bytes // 3,
        "virtual_seconds": seconds * (round + 1),
        "server_memory_bytes": 4000 + round,
        "validation": {} if accuracy is None else {"accuracy": accuracy, "loss": 1 - accuracy},
        "devices": {
            "slow": {"flops": 1e9, "busy_seconds": 0.5, "memory_bytes": 100},
            "quick": {"flops": 2e9, "busy_seconds": 0.25, "memory_bytes": 300 - round},
        },
    }


def run_figures(
    accuracies: Sequence[float | None], *, seed: int = 0, target: float | None = 0.5, **cost: Any
) -> RunFigures:
    """A run that had these accuracies, the untrained one's first."""
    rows = [row(round, accuracy, **cost) for round, accuracy in enumerate(accuracies[1:])]
    points = curve(rows, {"accuracy": accuracies[0] or 0.0, "loss": 1.0})
    best = ACCURACY.best(point.metrics["accuracy"] for point in points)
    reached = first_at(points, ACCURACY, target)
    return RunFigures(seed, f"runs/x-seed{seed}", best, reached, 10, 1000, 2000, 4002, 300, "quick", points)


def method_figures(
    word: str, seeds: Sequence[Sequence[float | None]], *, target: float | None = 0.5, **cost: Any
) -> MethodFigures:
    """A method with a run for each list of accuracies."""
    config = RunConfig.model_validate({"method": {"name": parse_entry(word).method}, "out": str(Path("runs") / "x")})
    figures = [run_figures(one, seed=seed, target=target, **cost) for seed, one in enumerate(seeds)]
    return over_seeds(Run(parse_entry(word), 0, config), figures, ACCURACY)


def results_of(methods: Mapping[str, Sequence[Sequence[float | None]]], *, target: float | None = 0.5) -> Results:
    """Methods by label; each costs more than the one before it."""
    shared = RunConfig().model_dump(mode="json", exclude={"method", "out"})
    figures = tuple(
        method_figures(word, seeds, target=target, seconds=1.0 + place, num_bytes=3000 * (1 + place))
        for place, (word, seeds) in enumerate(methods.items())
    )
    num_seeds = len(figures[0].runs)
    versions = {"cutlayer": "0", "torch": "2"}
    return Results("accuracy", True, target, tuple(range(num_seeds)), shared, versions, figures)
