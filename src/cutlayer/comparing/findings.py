"""The findings of a comparison in a few sentences: who was best at what, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cutlayer.comparing.results import MethodFigures, Results
from cutlayer.comparing.tables import NOTHING, alike, plain, whole_bytes
from cutlayer.report.human import human_flops, human_seconds

Figure = Callable[[MethodFigures], float | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One of them.

    Attributes:
      what: `least time to accuracy 0.8`.
      figure: the best value.
      who: whose it is.
      than: how the next one stands to it.
      method: the place of the method among the results; None where there is not one.
    """

    what: str
    figure: str
    who: str
    than: str
    method: int | None


def findings(results: Results) -> Iterator[Finding]:
    """The best final metric, the least time, bytes and device work (to the target, if there is one), and memory."""
    better = "highest" if results.more_is_better else "lowest"
    sign = -1.0 if results.more_is_better else 1.0
    yield _first(
        results,
        f"{better} final {results.metric}",
        lambda m: _times(sign, m.final[results.metric].mean),
        lambda value: plain(sign * value),
        ratios=False,
    )
    goal = "" if results.target is None else f" to {results.metric} {results.target:g}"
    yield _first(results, f"least time{goal}", _cost(results, "virtual_seconds"), human_seconds)
    yield _first(results, f"fewest bytes{goal}", _cost(results, "bytes"), whole_bytes)
    yield _first(results, f"least device work{goal}", _cost(results, "flops"), human_flops)
    yield _first(results, "smallest server", lambda m: m.server_bytes, whole_bytes)
    yield _first(results, "smallest device part", lambda m: m.device_bytes, whole_bytes)


def _cost(results: Results, key: str) -> Figure:
    """The cost to the target, or over the whole budget where there is none."""
    if results.target is None:
        return lambda method: method.totals[key].mean
    return lambda method: method.to_target[key].mean if method.to_target else None


def _times(sign: float, value: float | None) -> float | None:
    return None if value is None else sign * value


def _first(results: Results, what: str, figure: Figure, say: Callable[[float], str], *, ratios: bool = True) -> Finding:
    """The finding on who has the least."""
    values = [(value, place) for place, method in enumerate(results.methods) if (value := figure(method)) is not None]
    if not values:
        return Finding(what, NOTHING, "no method got there", "", None)
    (least, first), *others = sorted(values)
    label = results.methods[first].label
    if not others:
        return Finding(what, say(least), label, "no other got there", first)
    second, next_place = others[0]
    if alike(second, least):
        same = [results.methods[place].label for value, place in values if alike(value, least)]
        return Finding(what, say(least), "all alike" if len(same) == len(values) else ", ".join(same), "", None)
    next_label = results.methods[next_place].label
    ratio = f"{next_label} takes {second / least:.3g} times as much" if ratios and least > 0 else ""
    return Finding(what, say(least), label, ratio or f"then {next_label}, {say(second)}", first)
