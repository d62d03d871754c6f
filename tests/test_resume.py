"""Law 5: stop anywhere, resume, and the run is the one that never stopped, byte for byte."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import cutlayer.run.run as whole_run
import cutlayer.run.simulated as simulation
import cutlayer.sealed as sealed
from cutlayer.config import RunConfig, read_config
from cutlayer.errors import CheckpointError
from cutlayer.methods.method import Method
from cutlayer.methods.table import TABLE, build_method
from cutlayer.policies.scope import personal_below_the_cut
from cutlayer.report.progress import NoProgress
from cutlayer.run.inputs import method_of, prepare
from cutlayer.state import State
from cutlayer.types import Event
from turns import by_turns

ROUNDS = 3
FLEET = {
    "server": {"tflops": 52.2, "efficiency": 0.3, "memory_gib": 16},
    "defaults": {"efficiency": 0.3, "up_mbit": 100, "down_mbit": 100, "latency_ms": 5, "memory_gib": 4},
    "devices": [{"name": "nano", "tflops": 0.472}, {"name": "tx2", "tflops": 1.33}, {"name": "m3", "tflops": 3.533}],
}


class Stopped(Exception):
    """Stands for a kill: nothing of the process's memory goes on."""


class StopAt(NoProgress):
    """A display that stops the run at its n-th event."""

    def __init__(self, event: int) -> None:
        self._left = event

    def event(self, event: Event) -> None:  # noqa: ARG002  any event will do
        self._left -= 1
        if self._left < 0:
            raise Stopped


def config_for(inputs: Path, out: Path, *options: str) -> RunConfig:
    return read_config(None, (*overrides_for(inputs, out), *options))


def overrides_for(inputs: Path, out: Path) -> tuple[str, ...]:
    return (
        f"model.name={inputs / 'model'}",
        f"data.path={inputs / 'data'}",
        "data.spread=dirichlet:0.5",
        f"train.rounds={ROUNDS}",
        "data.max_length=32",
        "train.local_steps=3",
        "train.batch_size=4",
        "train.lr=0.01",
        f"fleet={json.dumps(FLEET)}",
        f"out={out}",
    )


def run(config: RunConfig, display: NoProgress | None = None, *, resume: bool = False) -> None:
    simulation.simulate(prepare(config), display or NoProgress(), resume=resume)


def result_of(folder: Path) -> dict[str, Any]:
    """Everything in a run folder that must not depend on how often it was stopped."""
    without_wall = [
        {key: value for key, value in json.loads(line).items() if not key.startswith("wall_")}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "adapter": files_in(folder / "adapter"),
        "adapters": files_in(folder / "adapters"),
        "pruned": files_in(folder / "pruned"),
        "metrics": without_wall,
        "events": (folder / "events.jsonl").read_bytes(),
        "summary": {key: summary[key] for key in ("metrics", "metrics_before", "totals", "run")},
        "report": (folder / "report.svg").read_bytes(),
        "tensors": (folder / "checkpoint" / "tensors.safetensors").read_bytes(),
    }


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def num_events(folder: Path) -> int:
    return len((folder / "events.jsonl").read_text().splitlines())


OPTIONS = {
    "plain": (),
    "random order": ("method.order=random",),
    "optimal order, momentum": ("method.order=optimal", "method.momentum=0.5"),
    "dropout": ("model.base_dropout=true", "lora.dropout=0.1"),
    "fresh moments": ("train.keep_moments=false",),
    "clipped, by a norm over all tensors": ("train.clip=0.05", "train.rounds=4"),
    "evaluated seldom": ("train.eval_every=2",),
    "pruned, compressed": ("method.name=fedspine", "lora.targets=[all-linear]", "wire.adapters=topk:0.1"),
    "weights in 4 bits": ("model.dtype=nf4",),
    "pruned, weights in 8 bits": ("model.dtype=int8", "method.name=fedspine", "lora.targets=[all-linear]"),
    "compressed": ("wire.activations=int8", "wire.gradients=bf16", "wire.adapters=topk:0.1"),
    "activations kept in 8 bits": ("method.name=splitfrozen", "method.cache_dtype=int8", "method.window=7"),
    "stragglers stop inside a step": (
        "method.name=salf",
        "method.reach=0.3",
        "wire.adapters=topk:0.5",
        "fleet={server: {tflops: 1, efficiency: 0.3, memory_gib: 4}, "
        "defaults: {efficiency: 0.3, up_mbit: 10, down_mbit: 10, latency_ms: 5, memory_gib: 1}, "
        "devices: [{name: a, tflops: 0.00001}, {name: b, tflops: 0.00003, count: 2}]}",
    ),
    "frozen, with dropout": ("method.name=splitfrozen", "method.cache=false", "model.base_dropout=true"),
    "ranks pruned by devices": (
        "method.name=hetlora",
        "method.gamma=0.5",
        "method.lam=2",
        "train.rounds=4",
        "wire.adapters=topk:0.5",
    ),
    "labels on the devices": ("method.labels=device", "method.cut=1"),
    "late gradients": ("method.name=gan_hfsl", "method.search=enumerate", "method.delay=2"),
    "folds, a part of the fleet": ("method.name=flora", "method.fraction=0.5", "train.rounds=4"),
    "a connection that is shared": (
        "fleet={server: {tflops: 1, efficiency: 0.3, memory_gib: 4, up_mbit: 0.5, down_mbit: 0.3}, "
        "defaults: {efficiency: 0.3, up_mbit: 1, down_mbit: 1, latency_ms: 5, memory_gib: 1}, "
        "devices: [{name: a, tflops: 0.00001}, {name: b, tflops: 0.00003, count: 2}]}",
        "method.cut=latency",
    ),
    "a part of the fleet": ("method.name=sfl_v2", "method.fraction=0.5"),
    "gradients averaged at one device's": (
        "method.name=epsl",
        "method.variant=sample",
        "model.base_dropout=true",
        "lora.dropout=0.1",
    ),
    "cohorts by labels, batches by speed": (
        "method.name=mergesfl",
        "method.fraction=0.5",
        "method.d_max=8",
        "method.max_kl=0.01",
        "method.ingress_mbit=1",
    ),
}


@pytest.mark.parametrize("sixths", [(3,), pytest.param((1, 5), marks=pytest.mark.slow)], ids=["half-way", "elsewhere"])
@pytest.mark.parametrize("name", list(by_turns(OPTIONS, one_of=4)))
def test_stopped_in_the_middle_of_any_round(name: str, sixths: tuple[int, ...], inputs: Path, tmp_path: Path) -> None:
    options = OPTIONS[name]
    run(config_for(inputs, tmp_path / "whole", *options))
    expected, events = result_of(tmp_path / "whole"), num_events(tmp_path / "whole")
    for part in sixths:
        config = config_for(inputs, tmp_path / f"stopped-{part}", *options)
        with pytest.raises(Stopped):
            run(config, StopAt(part * events // 6))
        run(config, resume=True)
        assert result_of(Path(config.out)) == expected


@pytest.mark.parametrize(
    ("options", "torn"),
    list(by_turns(product([(), ("method.name=flora", "wire.adapters=topk:0.5")], range(3)), one_of=2)),
    ids=str,
)
def test_from_any_checkpoint_that_is_kept(
    torn: int, options: tuple[str, ...], inputs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The newer ones have a flipped bit; one is gone and one is cut short for good measure."""
    config = config_for(inputs, tmp_path / "run", *options, "train.rounds=4")
    run(config)
    out, expected = Path(config.out), result_of(tmp_path / "run")
    places = [out / "checkpoint", out / "checkpoint.1", out / "checkpoint.2"]
    assert sorted(path.name for path in out.glob("checkpoint*")) == [path.name for path in places]
    for place in places[:torn]:
        file = place / "tensors.safetensors"
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    run(config, resume=True)
    assert result_of(out) == expected
    lines = [record.getMessage() for record in caplog.records if record.name == "cutlayer.checkpoint"]
    assert len(lines) == (torn + 1 if torn else 0)
    for place, line in zip(places, lines, strict=False):
        assert f"{'going on from' if place == places[torn] else 'left out:'} {place}" in line


def test_a_full_disk_ends_a_run_at_its_last_checkpoint(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the middle of the second checkpoint."""
    run(config_for(inputs, tmp_path / "whole"))
    config, written, save_file = config_for(inputs, tmp_path / "full"), list[Path](), sealed.save_file

    def save(tensors: Any, path: Path) -> None:
        written.append(path)
        if len(written) == 2:
            path.write_bytes(b"a part")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save_file(tensors, path)

    with monkeypatch.context() as full:
        full.setattr(sealed, "save_file", save)
        with pytest.raises(CheckpointError, match=r"round 1: expected room .* got No space left .* --resume"):
            run(config)
    run(config, resume=True)
    assert result_of(Path(config.out)) == result_of(tmp_path / "whole")


@pytest.mark.parametrize("file", ["adapter_model.safetensors", "summary.json"])
def test_a_full_disk_at_the_end(file: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rounds are done and the adapter, or the summary, finds no room."""
    run(config_for(inputs, tmp_path / "whole"))
    config, rename = config_for(inputs, tmp_path / "full"), os.replace

    def replace(old: Path, new: Path) -> None:
        if file in (Path(new).name, *(path.name for path in Path(old).glob("*"))):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(new))
        rename(old, new)

    with monkeypatch.context() as full:
        full.setattr(os, "replace", replace)
        with pytest.raises(CheckpointError, match=r"at its end: expected room .* got No space left .* --resume"):
            run(config)
    run(config, resume=True)
    assert result_of(Path(config.out)) == result_of(tmp_path / "whole")


TWICE = by_turns(sorted(TABLE), one_of=5, always=("memsfl", "teasq_fed"))


@pytest.mark.parametrize("method", list(TWICE))
def test_every_method_stopped_twice(method: str, inputs: Path, tmp_path: Path) -> None:
    """Its devices judge, where they can; without that the law is one of `cutlayer.testing.laws`."""
    options = [f"method.name={method}", "lora.targets=[all-linear]"]
    if build_method(method, {}, seed=0).moved is None:
        options += ["data.hold_out=0.1"]
    run(config_for(inputs, tmp_path / "whole", *options))
    expected, events = result_of(tmp_path / "whole"), num_events(tmp_path / "whole")
    config = config_for(inputs, tmp_path / "stopped", *options)
    with pytest.raises(Stopped):
        run(config, StopAt(events // 2))
    with pytest.raises(Stopped):
        run(config, StopAt(events // 3), resume=True)
    run(config, resume=True)
    assert result_of(tmp_path / "stopped") == expected


def test_prefixes_of_their_own(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each device has what it holds for itself, and gathers momentum there and above: no method of the table does."""

    def method_with_prefixes(config: RunConfig) -> Method:
        return replace(method_of(config), scope=personal_below_the_cut)

    monkeypatch.setattr(simulation, "method_of", method_with_prefixes)
    options = ("method.momentum=0.5", "train.late=use", "train.stragglers=quorum:0.7")
    run(config_for(inputs, tmp_path / "whole", *options))
    expected, events = result_of(tmp_path / "whole"), num_events(tmp_path / "whole")
    own = [content for name, content in expected["adapters"].items() if name.endswith(".safetensors")]
    assert len(set(own)) == len(own) > 1
    for number, stop in enumerate((events // 6, events // 2, 5 * events // 6)):
        config = config_for(inputs, tmp_path / f"stopped-{number}", *options)
        with pytest.raises(Stopped):
            run(config, StopAt(stop))
        run(config, resume=True)
        found = result_of(Path(config.out))
        assert sorted(found.pop("events").splitlines()) == sorted(expected["events"].splitlines())
        assert found == {name: value for name, value in expected.items() if name != "events"}


@pytest.mark.parametrize("method", ["legend", pytest.param("reindsplit", marks=pytest.mark.slow)])
def test_a_plan_made_of_measurements(method: str, inputs: Path, tmp_path: Path) -> None:
    """Devices change their speed, which changes their depths or cuts: a resumed run plans the same."""
    fleet = {
        "server": {"tflops": 1, "efficiency": 1.0, "memory_gib": 1},
        "defaults": {"efficiency": 1.0, "memory_gib": 1, "up_mbit": 100, "down_mbit": 100, "latency_ms": 0.1},
        "devices": [
            {"name": "slow", "count": 2, "tflops": 0.0001, "modes": [1.0, 0.1], "mode_rounds": 1},
            {"name": "fast", "tflops": 0.001},
        ],
    }
    options = (f"method.name={method}", "train.rounds=8", f"fleet={json.dumps(fleet)}")
    run(config_for(inputs, tmp_path / "whole", *options))
    rounds = [json.loads(line)["devices"] for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    plans = [tuple((device["cut"], *device["ranks"]) for device in round.values()) for round in rounds]
    assert len(set(plans)) > 2, "it goes on to learn"
    expected, events = result_of(tmp_path / "whole"), num_events(tmp_path / "whole")
    for number, stop in enumerate((events // 6, events // 2, 5 * events // 6)):
        config = config_for(inputs, tmp_path / f"stopped-{number}", *options)
        with pytest.raises(Stopped):
            run(config, StopAt(stop))
        run(config, resume=True)
        assert result_of(Path(config.out)) == expected


def test_stopped_between_report_and_checkpoint(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The round's lines are written, its checkpoint is not: resuming takes the lines back and repeats the round."""
    run(config_for(inputs, tmp_path / "whole"))
    config = config_for(inputs, tmp_path / "stopped")
    save = whole_run.save_checkpoint

    def stop_at_the_second(folder: Path, state: State, run_id: str, *, keep: int) -> None:
        if state.branch("run").facts["rounds_done"] == 2:
            raise Stopped
        save(folder, state, run_id, keep=keep)

    monkeypatch.setattr(whole_run, "save_checkpoint", stop_at_the_second)
    with pytest.raises(Stopped):
        run(config)
    assert len((tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()) == 2
    monkeypatch.undo()
    run(config, resume=True)
    assert result_of(tmp_path / "stopped") == result_of(tmp_path / "whole")


def test_stopped_before_the_first_checkpoint(inputs: Path, tmp_path: Path) -> None:
    run(config_for(inputs, tmp_path / "whole"))
    config = config_for(inputs, tmp_path / "stopped")
    with pytest.raises(Stopped):
        run(config, StopAt(2))
    run(config, resume=True)
    assert result_of(tmp_path / "stopped") == result_of(tmp_path / "whole")


def test_resuming_a_finished_run_changes_nothing(inputs: Path, tmp_path: Path) -> None:
    config = config_for(inputs, tmp_path / "whole")
    run(config)
    expected = result_of(tmp_path / "whole")
    run(config, resume=True)
    assert result_of(tmp_path / "whole") == expected


def test_a_real_kill(inputs: Path, tmp_path: Path) -> None:
    """SIGKILL of the command as its second round is reported, then `cutlayer train --resume`."""
    run(config_for(inputs, tmp_path / "whole"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cutlayer", "train"]
    flags = [part for override in overrides_for(inputs, tmp_path / "killed") for part in ("-o", override)]
    process = subprocess.Popen(
        [*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("round 2/"):
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "adapter").exists()
    subprocess.run([*command, "--resume", str(tmp_path / "killed")], check=True, env=environment, capture_output=True)
    assert result_of(tmp_path / "killed") == result_of(tmp_path / "whole")


LATE = by_turns([("memsfl", "drop"), ("fedlora", "drop"), ("memsfl", "use")], one_of=2)


@pytest.mark.parametrize(("method", "late"), list(LATE))
def test_a_run_in_which_devices_were_late(method: str, late: str, inputs: Path, tmp_path: Path) -> None:
    """Those that were dropped go back, in the run that never stopped and in the one that goes on.

    Events of the same instant may stand in another order: the clock does not say which of its timers fires first.
    """

    def outcome(folder: Path) -> dict[str, object]:
        result = result_of(folder)
        return result | {"events": sorted(result["events"].splitlines())}

    fleet = {
        "server": {"tflops": 1, "efficiency": 1.0, "memory_gib": 1},
        "defaults": {"efficiency": 1.0, "memory_gib": 1, "up_mbit": 10, "down_mbit": 10, "latency_ms": 1},
        "devices": [{"name": "fast", "count": 2, "tflops": 0.004}, {"name": "slow", "tflops": 0.0002}],
    }
    options = [f"method.name={method}", "train.rounds=5", f"fleet={json.dumps(fleet)}"]
    options += ["train.stragglers=quorum:0.6", f"train.late={late}"]
    run(config_for(inputs, tmp_path / "whole", *options))
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["late"] for row in rows)
    assert all(bool(row["devices"]["slow"]["samples"]) == (late == "use") for row in rows)
    expected, events = outcome(tmp_path / "whole"), num_events(tmp_path / "whole")
    for number, stop in enumerate((events // 3, 4 * events // 5)):
        config = config_for(inputs, tmp_path / f"stopped-{number}", *options)
        with pytest.raises(Stopped):
            run(config, StopAt(stop))
        run(config, resume=True)
        assert outcome(Path(config.out)) == expected
