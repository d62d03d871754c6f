"""A run whose server has no rows to judge by is whole: simulated or real, stopped or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cutlayer.config import read_config
from cutlayer.data.source import NO_DATA, load_validation, load_validation_if_any
from cutlayer.errors import ConfigError, DataError
from cutlayer.methods.contradictions import check_held_out_at_one
from cutlayer.report.devices import device_table
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import prepare, prepare_server
from cutlayer.run.run import Outcome
from cutlayer.run.simulated import simulate
from cutlayer.testing.tiny import save_inputs
from cutlayer.types import Event
from real import served, simulated, values_for


@pytest.fixture(scope="module")
def unjudged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and rows to train on, and none to judge by."""
    folder = save_inputs(tmp_path_factory.mktemp("unjudged"), rows=40)
    (folder / "data" / "validation.jsonl").unlink()
    return folder


def values(folder: Path, **more: Any) -> dict[str, Any]:
    return values_for(folder, data__hold_out=0.2, data__max_length=16, train__local_steps=1, **more)


def said(outcome: Outcome) -> list[dict[str, Any]]:
    """The parts of the rows that do not depend on a clock."""
    return [{key: row["held_out"][key] for key in ("metrics", "samples", "devices")} for row in outcome.rows]


def bytes_of(outcome: Outcome) -> bytes:
    return (outcome.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "method", [{"name": "fedlora"}, {"name": "memsfl"}, {"name": "memsfl", "labels": "device", "cut": 1}], ids=str
)
def test_a_real_fleet_says_what_the_simulated_one_says(method: dict[str, Any], unjudged: Path, tmp_path: Path) -> None:
    chosen = values(unjudged, **{f"method__{name}": value for name, value in method.items()})
    expected = simulated(chosen, tmp_path / "simulated")
    assert said(expected)[-1]["samples"] == 8
    assert expected.metrics == said(expected)[-1]["metrics"] == expected.rows[-1]["validation"]
    assert set(expected.before) == set(expected.metrics)
    real = served(chosen, tmp_path / "real")
    assert said(real) == said(expected)
    assert (real.metrics, real.before) == (expected.metrics, expected.before)
    assert bytes_of(real) == bytes_of(expected)
    assert not (tmp_path / "real" / "shares" / "validation.jsonl").exists()


def test_who_has_an_adapter_of_its_own_is_judged_with_it(unjudged: Path, tmp_path: Path) -> None:
    """And the best of them is the one that is exported."""
    outcome = simulated(values(unjudged, method__name="local_only"), tmp_path / "run")
    losses = {name: one["loss"] for name, one in said(outcome)[-1]["devices"].items()}
    best = min(losses, key=lambda name: losses[name])
    own = tmp_path / "run" / "adapters" / best / "adapter_model.safetensors"
    assert bytes_of(outcome) == own.read_bytes()
    others = [path.read_bytes() for path in (tmp_path / "run" / "adapters").glob("*/adapter_model.safetensors")]
    assert len(set(others)) == 2


def test_stopped_and_resumed_is_never_stopped(unjudged: Path, tmp_path: Path) -> None:
    """Stopped while devices judge, before the first round and after it."""

    class Stopped(Exception):
        pass

    class StopWhereTheyJudge(NoProgress):
        def __init__(self, number: int) -> None:
            self._left = number

        def event(self, event: Event) -> None:
            self._left -= event.step is None and event.what == "forward"
            if self._left < 0:
                raise Stopped

    expected = simulated(values(unjudged), tmp_path / "expected")
    for number in (1, 5):
        out = tmp_path / f"stopped-{number}"
        inputs = prepare(read_config(None, values={**values(unjudged), "out": str(out)}))
        with pytest.raises(Stopped):
            simulate(inputs, StopWhereTheyJudge(number))
        outcome = simulate(inputs, NoProgress(), resume=True)
        assert bytes_of(outcome) == bytes_of(expected)
        assert (outcome.metrics, outcome.before) == (expected.metrics, expected.before)
        lines = [
            [
                {key: value for key, value in json.loads(line).items() if not key.startswith("wall_")}
                for line in (folder / "metrics.jsonl").read_text().splitlines()
            ]
            for folder in (out, tmp_path / "expected")
        ]
        assert lines[0] == lines[1]
        assert (out / "events.jsonl").read_bytes() == (tmp_path / "expected" / "events.jsonl").read_bytes()
    again = simulate(inputs, NoProgress(), resume=True)  # after its last round
    assert (again.metrics, again.before) == (expected.metrics, expected.before)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["held_out"]["metrics"] == expected.metrics
    assert set(summary["held_out"]["devices"]) == {"slow", "quick"}


def test_a_server_with_rows_of_its_own_judges_too(tmp_path: Path) -> None:
    folder = save_inputs(tmp_path / "inputs", rows=40)
    outcome = simulated(values(folder, train__rounds=1), tmp_path / "run")
    (row,) = outcome.rows
    assert row["validation"] == outcome.metrics
    assert row["held_out"]["metrics"] != outcome.metrics
    assert [one.judged.get("samples") for one in outcome.devices] == [4, 4, None]
    assert device_table(outcome.devices).headings[-1] == "accuracy"
    plain = simulated(
        values_for(folder, data__max_length=16, train__local_steps=1, train__rounds=1), tmp_path / "plain"
    )
    assert plain.rows[0]["held_out"] == {}
    assert device_table(plain.devices).headings[-1] == "down"


def test_a_server_that_has_nothing_at_all(unjudged: Path, tmp_path: Path) -> None:
    """Knows the classes that it is told, and reads no row."""
    nothing = {**values(unjudged), "data.path": NO_DATA, "out": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"data\.labels: expected the class names"):
        prepare_server(read_config(None, values=nothing))
    inputs = prepare_server(read_config(None, values={**nothing, "data.labels": "bad,fair,good"}))
    assert (len(inputs.validation), inputs.labels, inputs.validation_batches()) == (0, ("bad", "fair", "good"), [])
    with pytest.raises(DataError):
        load_validation(NO_DATA)
    with pytest.raises(DataError, match="expected validation rows"):
        load_validation(str(unjudged / "data"))
    assert load_validation_if_any(str(unjudged / "data")) is None


def test_what_devices_cannot_judge_is_refused(unjudged: Path, tmp_path: Path) -> None:
    moving = {**values(unjudged, method__name="fedkseed"), "out": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"data\.hold_out: expected a method that leaves the base's weights"):
        prepare(read_config(None, values=moving))
    check_held_out_at_one(0.0)
    with pytest.raises(ConfigError, match=r"data\.hold_out: expected 0 with several workers, got 0\.1"):
        check_held_out_at_one(0.1)
