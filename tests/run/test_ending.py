"""The end of a run: which adapter is written, the sums of the summary, a disk that is full."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from safetensors.torch import load_file

from bases import moved_adapter
from cutlayer.config import read_config
from cutlayer.errors import CheckpointError
from cutlayer.fleet.machine import ModelledMachine
from cutlayer.methods.method import Method
from cutlayer.policies.scope import EVERYONE, Scope, personal
from cutlayer.run.ending import Outcome, export, in_need_of_room, result_of
from cutlayer.run.inputs import ServerInputs, method_of, prepare
from cutlayer.run.run import server_of
from cutlayer.server.server import Server
from cutlayer.testing.tiny import BLOCKS
from cutlayer.types import Adapter, DevicePlan, Kept, RoundPlan
from real import simulated, values_for


@pytest.fixture(scope="module")
def prepared(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> ServerInputs:
    values = values_for(inputs, lora__targets=["all-linear"], lora__rank=8)
    return prepare(read_config(None, values={**values, "out": str(tmp_path_factory.mktemp("out") / "run")}))


def server_with(inputs: Any, scope: Scope | None = None) -> Server:
    method = method_of(inputs.config)
    machine = ModelledMachine("server", 1e12, lambda _event: None)
    adapter = inputs.base.initial_adapter(0)
    server = server_of(inputs, method, adapter, machine, inputs.fleet, Path("scratch"))
    if scope is not None:
        server.adapters._scope = scope
    return server


def exported(
    folder: Path,
    inputs: ServerInputs,
    server: Server,
    method: Method | None = None,
    losses: Mapping[str, float] = MappingProxyType({}),
) -> Path:
    """Exports what a run ends with now."""
    method = method or method_of(inputs.config)
    return export(folder, inputs, result_of(server, losses, method), method)


def written(folder: Path) -> Adapter:
    return load_file(folder / "adapter_model.safetensors")


def test_where_all_share_one_adapter_it_is_the_one_that_is_written(prepared: ServerInputs, tmp_path: Path) -> None:
    server = server_with(prepared)
    server.adapter = moved_adapter(prepared.base)
    where = exported(tmp_path, prepared, server)
    assert where == tmp_path / "adapter"
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    assert len(written(where)) == len(prepared.base.shapes)


def test_of_views_each_is_written_and_the_best_is_the_runs(prepared: ServerInputs, tmp_path: Path) -> None:
    server, names = server_with(prepared, personal), ("slow", "quick", "third")
    own = {name: moved_adapter(prepared.base, seed=seed) for seed, name in enumerate(names)}
    plan = RoundPlan(0, tuple(DevicePlan(name, 1) for name in names))
    server.adapters.put({EVERYONE: server.adapter, **own}, plan)
    where = exported(tmp_path, prepared, server, losses={"slow": 0.7, "quick": 0.3, "third": 0.5})
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == sorted(names)
    files = {name: (tmp_path / "adapters" / name / "adapter_model.safetensors").read_bytes() for name in names}
    assert len(set(files.values())) == 3
    assert (where / "adapter_model.safetensors").read_bytes() == files["quick"]


def test_of_a_pruned_model_what_is_left_is_written_too(prepared: ServerInputs, tmp_path: Path) -> None:
    kept = Kept(((0, 2),) * BLOCKS, (tuple(range(0, 32, 2)),) * BLOCKS)
    method = replace(method_of(prepared.config), structure=lambda: kept)
    exported(tmp_path, prepared, server_with(prepared), method)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "pruned"]
    assert any((tmp_path / "pruned").iterdir())


def test_folds_are_taken_back_before_it_is_written(prepared: ServerInputs, tmp_path: Path) -> None:
    server = server_with(prepared)
    stack = {name: value for name, value in moved_adapter(prepared.base).items() if ".lora_" in name}
    server.folds.add(stack)
    where = exported(tmp_path, prepared, server)
    ranks = {value.shape[0] for name, value in written(where).items() if "lora_A" in name}
    assert ranks == {16}, "its own and the fold's"
    prepared.base.unfold()


# ------------------------------------------------------------------ the summary


@pytest.fixture(scope="module")
def outcome(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return simulated(values_for(inputs, method__name="local_only"), tmp_path_factory.mktemp("run") / "run")


def test_a_run_ends_with_its_figures(outcome: Outcome) -> None:
    summary = json.loads((outcome.folder / "summary.json").read_text())
    assert summary["totals"] == outcome.summary["totals"]
    totals, *_, server = summary["totals"], *outcome.devices
    devices = outcome.devices[:-1]
    assert server.device not in {row.device for row in devices}
    for name in ("samples", "steps", "bytes_up", "bytes_down", "late"):
        assert totals[name] == sum(getattr(row, name) for row in devices), "the server's row repeats the devices'"
    assert totals["rounds"] == 2
    assert totals["virtual_seconds"] > 0
    assert (totals["saved_flops"], totals["saved_bytes"]) == (0, 0)
    assert summary["metrics"] == pytest.approx(outcome.metrics)
    assert summary["metrics_before"] == pytest.approx(outcome.before)
    assert outcome.metrics != outcome.before
    assert summary["refusals"] == {}
    assert (outcome.folder / "report.svg").read_text().startswith("<svg")
    assert (outcome.folder / "report.html").read_text().startswith("<!doctype html>")


def test_devices_of_their_own_end_with_an_adapter_each(outcome: Outcome) -> None:
    own = {
        path.name: (path / "adapter_model.safetensors").read_bytes() for path in (outcome.folder / "adapters").iterdir()
    }
    assert own.keys() == {"slow", "quick"}
    assert own["slow"] != own["quick"]
    assert (outcome.adapter / "adapter_model.safetensors").read_bytes() in own.values()


# ------------------------------------------------------------------ room


def test_a_full_disk_says_what_is_whole_and_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(
            CheckpointError, match=r"run, round 3: expected room for its checkpoint, got No space .* --resume"
        ),
        in_need_of_room(tmp_path / "run", "round 3", "its checkpoint"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(ZeroDivisionError), in_need_of_room(tmp_path, "round 3", "its checkpoint"):
        raise ZeroDivisionError
