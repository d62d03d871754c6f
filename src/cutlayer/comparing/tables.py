"""The two tables of a comparison as text: what the target cost, and what the whole budget cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cutlayer.comparing.results import MethodFigures, Results, Stat
from cutlayer.config import LOWER_IS_BETTER
from cutlayer.reading import counted
from cutlayer.report.human import human_bytes, human_flops, human_seconds

NOT_REACHED = "not reached"
NOTHING = "–"


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure.

    Attributes:
      text: its mean over seeds.
      spread: `± 1.2 s`; empty where there is one seed, or where it is under a thousandth of the mean.
      best: whether no method has a better one.
    """

    text: str
    spread: str = ""
    best: bool = False

    @property
    def whole(self) -> str:
        return f"{self.text} {self.spread}".rstrip()


@dataclass(frozen=True, slots=True)
class Table:
    """One table: a heading per column, a row per method; the first column is its label."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def plain(value: float) -> str:
    """A metric, or a count.

    Example:
      >>> plain(0.87654), plain(0.00589), plain(12.0)
      ('0.8765', '0.0059', '12')
    """
    return f"{value:.4g}" if abs(value) >= 0.1 else f"{value:.2g}"


def whole_bytes(num_bytes: float) -> str:
    """A size that may be a mean."""
    return human_bytes(round(num_bytes))


def target_table(results: Results) -> Table | None:
    """The table of what each method had spent when it first reached the target; None where none was asked for."""
    if results.target is None:
        return None
    sign = "≥" if results.more_is_better else "≤"
    cost = partial(_column, results.methods, more_is_better=False)
    columns = {
        "reached by": [Cell(_reached(method)) for method in results.methods],
        "rounds": cost(lambda method: _to_target(method, "round"), plain),
        "time": cost(lambda method: _to_target(method, "virtual_seconds"), human_seconds),
        "bytes": cost(lambda method: _to_target(method, "bytes"), whole_bytes),
        "device FLOPs": cost(lambda method: _to_target(method, "flops"), human_flops),
        "device busy": cost(lambda method: _to_target(method, "busy_seconds"), human_seconds),
        f"best {results.metric}": _column(
            results.methods, lambda method: method.best, plain, more_is_better=results.more_is_better
        ),
    }
    return _table(f"To {results.metric} {sign} {results.target:g}", results.methods, columns)


def budget_table(results: Results) -> Table:
    """The table of what each method reached and cost over all rounds."""
    methods, cost = results.methods, partial(_column, results.methods, more_is_better=False)
    columns = {
        name: _column(methods, partial(_final, name), plain, more_is_better=more)
        for name, more in _metrics(results).items()
    }
    columns |= {
        "time": cost(lambda method: method.totals["virtual_seconds"], human_seconds),
        "bytes up": cost(lambda method: method.bytes_up, whole_bytes),
        "bytes down": cost(lambda method: method.bytes_down, whole_bytes),
        "device FLOPs": cost(lambda method: method.totals["flops"], human_flops),
        "device busy": cost(lambda method: method.totals["busy_seconds"], human_seconds),
        "server memory": cost(lambda method: _alone(method.server_bytes), whole_bytes),
        "device memory": cost(lambda method: _alone(method.device_bytes), whole_bytes),
    }
    train = results.shared["train"]
    budget = f"{counted(train['rounds'], 'round')} of {counted(train['local_steps'], 'step')}"
    return _table(f"The whole budget: {budget}", methods, columns)


def _metrics(results: Results) -> dict[str, bool]:
    """The metrics of the final evaluation, the compared one first: whether more is better."""
    names = sorted(results.methods[0].final, key=lambda name: (name != results.metric, name == "loss", name))
    return {name: name not in LOWER_IS_BETTER for name in names}


def _final(name: str, method: MethodFigures) -> Stat:
    return method.final[name]


def _reached(method: MethodFigures) -> str:
    runs = len(method.runs)
    if method.reached == 0:
        return NOT_REACHED
    return "yes" if runs == 1 else f"{method.reached} of {runs} seeds"


def _to_target(method: MethodFigures, key: str) -> Stat:
    return method.to_target[key] if method.to_target else _alone(None)


def _alone(value: float | None) -> Stat:
    return Stat(value, None, value, value)


def _column(
    methods: Sequence[MethodFigures],
    figure: Callable[[MethodFigures], Stat],
    say: Callable[[float], str],
    *,
    more_is_better: bool,
) -> list[Cell]:
    """A figure of each method; the best of at least two that differ is marked."""
    stats = [figure(method) for method in methods]
    means = [stat.mean for stat in stats if stat.mean is not None]
    best = (max if more_is_better else min)(means, default=0.0)
    differ = not all(alike(mean, best) for mean in means)
    return [
        Cell(
            NOTHING if stat.mean is None else say(stat.mean),
            "" if stat.mean is None or (stat.spread or 0.0) < abs(stat.mean) / 1000 else f"± {say(stat.spread or 0.0)}",
            stat.mean is not None and differ and alike(stat.mean, best),
        )
        for stat in stats
    ]


def alike(one: float, other: float) -> bool:
    """Whether two figures differ by no more than the order in which they were added up."""
    return math.isclose(one, other, rel_tol=1e-9)


def _table(title: str, methods: Sequence[MethodFigures], columns: dict[str, list[Cell]]) -> Table:
    cells: list[Any] = [[Cell(method.label) for method in methods], *columns.values()]
    return Table(title, ("method", *columns), tuple(zip(*cells, strict=True)))
