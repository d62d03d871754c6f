"""The papers' claims: what is made of the figures of a comparison."""

from __future__ import annotations

from typing import Any

import pytest

import claims


def figures(label: str, *, accuracy: float, seconds: float, sooner: float | None = None) -> dict[str, Any]:
    """A method's entry in compare.json, as far as it is read."""
    spent = {key: {"mean": seconds} for key in ("virtual_seconds", "bytes", "flops")}
    return {
        "label": label,
        "final": {"accuracy": {"mean": accuracy}},
        "totals": spent,
        "to_target": None if sooner is None else {"virtual_seconds": {"mean": sooner}},
        "server_bytes": int(seconds * 100),
    }


def test_savings_and_speed_ups() -> None:
    system = figures("a", accuracy=0.8, seconds=5.0, sooner=2.0)
    other = figures("b", accuracy=0.5, seconds=20.0, sooner=5.0)
    assert claims.less(system, other, "flops") == "-75.0 %"
    assert claims.less(other, system, "bytes") == "+300.0 %"
    assert claims.speedup(system, other) == "2.50 x"
    assert claims.speedup(system, figures("c", accuracy=0.1, seconds=1.0)) == "not reached by the other"
    assert claims.speedup(figures("c", accuracy=0.1, seconds=1.0), system) == "not reached by the system"


@pytest.mark.parametrize("system", sorted(claims.CLAIMS))
def test_every_system_has_lines_against_every_other(system: str) -> None:
    figure, trials = claims.CLAIMS[system]
    for trial in trials:
        entries = [figures(word, accuracy=0.5, seconds=1.0, sooner=1.0) for word in trial.methods]
        lines = figure(trial, entries)
        assert {word for word in trial.methods[1:] if any(word in line.against for line in lines)} == {
            *trial.methods[1:]
        }
    names = [trial.name for trial in trials]
    assert len(set(names)) == len(names), "each trial has a folder of its own"
    assert not [name for name in names if "/" in name]


def test_the_gain_of_splitfrozen_is_relative() -> None:
    figure, (trial, *_) = claims.CLAIMS["splitfrozen"]
    system = figures("splitfrozen", accuracy=0.9, seconds=1.0)
    first, *_ = figure(trial, [system, figures("fedlora", accuracy=0.6, seconds=2.0)])
    assert first.ours == "+50.0 % (0.900 / 0.600)"
