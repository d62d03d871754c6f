"""Law 6: a fleet that dials in over gRPC trains the adapter of the simulated one, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from cutlayer.run import Outcome
from real import served, simulated, values_for
from tiny import reviews, save_tiny_model, save_tiny_tokenizer, write_jsonl


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_model("bert", "classification", folder / "model")
    save_tiny_tokenizer(folder / "model")
    write_jsonl(folder / "data" / "train.jsonl", reviews(100, seed=1))
    write_jsonl(folder / "data" / "validation.jsonl", reviews(20, seed=2))
    return folder


def bytes_of(outcome: Outcome) -> bytes:
    return (outcome.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("overlap", [True, False])
def test_micro_batches_over_a_real_wire(overlap: bool, inputs: Path, tmp_path: Path) -> None:
    """With two of them on their way at a time or one: the adapter of the simulated run."""
    values = values_for(inputs, train__micro_batches=3, train__overlap=overlap)
    other = values_for(inputs, train__micro_batches=3, train__overlap=not overlap)
    assert bytes_of(served(values, tmp_path / "real")) == bytes_of(simulated(other, tmp_path / "simulated"))


@pytest.mark.parametrize("method", ["memsfl", "splitfrozen", "fedlora", "sl", "flora"])
def test_the_adapter_of_the_simulated_run(method: str, inputs: Path, tmp_path: Path) -> None:
    values = values_for(inputs, method__name=method)
    assert bytes_of(served(values, tmp_path / "real")) == bytes_of(simulated(values, tmp_path / "simulated"))
