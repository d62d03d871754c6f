"""A whole fleet in one process: one base, and what each device adds. Whole runs, stopped and not: test_resume.py."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import cutlayer.run.run as run
import cutlayer.run.simulated as simulation
from cutlayer.config import read_config
from cutlayer.fleet.modes import speed_mode
from cutlayer.model.part import WholePart
from cutlayer.report.progress import NoProgress
from cutlayer.report.run_folder import RunFolder
from cutlayer.run.inputs import RunInputs, prepare
from cutlayer.server.checkpoint import load_checkpoint
from cutlayer.testing.tiny import save_inputs
from real import simulated, values_for
from turns import by_turns


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A thousand reviews, for eighty devices."""
    return save_inputs(tmp_path_factory.mktemp("inputs"), rows=1000)


def run_inputs(inputs: Path, out: Path, fleet: str, *, rounds: int = 1, **options: Any) -> RunInputs:
    values = {
        "model.name": str(inputs / "model"),
        "data.path": str(inputs / "data"),
        "data.max_length": 16,
        "train.rounds": rounds,
        "train.local_steps": 1,
        "train.batch_size": 2,
        "fleet": fleet,
        "out": str(out),
        **{f"method.{name}": value for name, value in options.items()},
    }
    return prepare(read_config(None, values=values))


def tensor_bytes() -> int:
    """Bytes of all tensors of this process; those that share their storage count once."""
    gc.collect()
    tensors = [made for made in gc.get_objects() if type(made) in (Tensor, nn.Parameter) and made.device.type == "cpu"]
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("method", [pytest.param("fedlora", marks=pytest.mark.slow), "memsfl"])
def test_eighty_devices_share_one_base(
    method: str, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device adds its adapter, AdamW's two moments and the update that it sent last; no weight of the base."""
    added: dict[str, int] = {}
    read: dict[str, int] = {}
    commit = run.Run._commit

    async def measure(self: Any, *given: Any) -> None:
        await commit(self, *given)
        added[fleet] = tensor_bytes() - before

    monkeypatch.setattr(run.Run, "_commit", measure)
    for fleet in ("memsfl-six", "jetson-80"):
        before = tensor_bytes()
        made = run_inputs(inputs, tmp_path / fleet, fleet, name=method)
        simulation.simulate(made, NoProgress())
        read[fleet] = made.base.weights.bytes_read
        adapter = made.costs.model.adapter_bytes(made.base.shapes)
        del made
    assert read["jetson-80"] == read["memsfl-six"] > 0
    assert (added["jetson-80"] - added["memsfl-six"]) / (80 - 6) < 4.1 * adapter


def test_a_device_that_waits_holds_no_graph(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where devices train alone, the activations of one at a time are alive, however many train at once."""
    losses: list[weakref.ref[Tensor]] = []
    compute = WholePart.loss

    def loss(self: WholePart, batch: Any) -> Tensor:
        assert not [alive for alive in losses if alive() is not None]
        result = compute(self, batch)
        losses.append(weakref.ref(result))
        return result

    monkeypatch.setattr(WholePart, "loss", loss)
    simulation.simulate(run_inputs(inputs, tmp_path / "run", "jetson-80", name="fedlora"), NoProgress())
    assert len(losses) >= 80, "and the cost model's"


def test_a_thousand_phones_of_whom_a_few_join(inputs: Path, tmp_path: Path) -> None:
    """Each works in the mode of its round; who did not join leaves only its place in its data in the checkpoint."""
    made = run_inputs(inputs, tmp_path / "run", "phones-1000", name="legend", fraction=0.003, rounds=2)
    outcome = simulation.simulate(made, NoProgress())
    assert outcome.summary["totals"]["steps"] == 2 * 3
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoint", made.run_id)
    assert checkpoint is not None
    history = list(RunFolder(tmp_path / "run").read_records())
    assert len(history) == 2 * 3
    speeds = {device.name: (device.effective_flops, speed_mode(device)) for device in made.fleet.devices}
    for record in history:
        flops, mode = speeds[record.device]
        assert record.flops / record.busy_seconds == pytest.approx(flops * mode(record.round))
    assert len({speeds[record.device][1](record.round) for record in history}) > 1
    trained = {record.device for record in history}
    devices = {name: kept.branch("device") for name, kept in checkpoint.branch("devices").branches().items()}
    assert len(devices) == 1000
    assert {name for name, device in devices.items() if device.branch("moments").tensors} == trained
    assert {name for name, device in devices.items() if device.tensors} == trained
    assert all(device.branch("data").facts.keys() == {"epoch", "position"} for device in devices.values())


BY_CHANCE = {
    "teasq_fed": {},
    "fedsl": {"prune": 0.3},
    "fedkseed": {"seeds": 8},
    "prge": {"queries": 2},
    "ho_sfl": {},
    "sfpl": {},
}
"""Methods that draw something, with options."""


@pytest.mark.parametrize("method", list(by_turns(BY_CHANCE, one_of=6, always=["teasq_fed"])))
def test_a_run_is_the_same_wherever_its_files_lie(method: str, tmp_path: Path) -> None:
    """Nothing is drawn from the run's identifier, which knows the paths of the model and of the data."""
    left = list[dict[str, bytes]]()
    for place in ("here", "elsewhere"):
        inputs = save_inputs(tmp_path / place, rows=60)
        options = {f"method__{name}": value for name, value in BY_CHANCE[method].items()}
        out = tmp_path / f"{place}-run"
        simulated(values_for(inputs, method__name=method, lora__targets=["all-linear"], **options), out)
        files = [*out.glob("adapter/*.safetensors"), *out.glob("model/*.safetensors"), out / "events.jsonl"]
        left.append({file.name: file.read_bytes() for file in files})
    assert left[0].keys() == left[1].keys()
    assert len(left[0]) > 1
    assert [name for name in left[0] if left[0][name] != left[1][name]] == []
