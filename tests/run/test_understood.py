"""The lines that a run tells before its first round, and what it does not let anybody overlook."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from commands import FLEET
from cutlayer.config import read_config
from cutlayer.report.listing import Listing
from cutlayer.run.inputs import RunInputs, method_of, prepare
from cutlayer.run.leaving import assigned, leaving
from cutlayer.run.loop import Logbook
from cutlayer.run.run import first_plan, situation_of
from cutlayer.run.start import starting_adapter
from cutlayer.run.understood import loud, understood, unnoticed
from cutlayer.testing.tiny import save_inputs

READ_BACK = "a curious server can read the texts"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inputs(tmp_path_factory.mktemp("inputs"), rows=48)


def inputs_of(here: Path, **values: Any) -> RunInputs:
    common = {"model.name": str(here / "model"), "data.path": str(here / "data"), "data.max_length": 16, "fleet": FLEET}
    return prepare(read_config(None, values=common | {key.replace("__", "."): value for key, value in values.items()}))


def told(inputs: RunInputs) -> list[str | Listing]:
    method, situation = method_of(inputs.config), situation_of(inputs, Logbook())
    plan = first_plan(inputs, method, situation)
    adapter = starting_adapter(inputs, method, plan.ranks)
    rows = {device.name: len(part) for device, part in zip(inputs.fleet.devices, inputs.parts, strict=True)}
    return list(understood(inputs, method, situation, plan, rows, adapter))


def test_rows_classes_blocks_method_and_what_leaves(here: Path) -> None:
    inputs = inputs_of(here)
    method, trained, shown, leaves, read_back = told(inputs)
    assert str(method).startswith("method: memsfl (order=longest_tail, cut=memory, ")
    assert str(trained).startswith("trained: ")
    assert " parameters, LoRA of rank 8 beside " in str(trained)
    assert isinstance(shown, Listing)
    assert [row[0] for row in shown.cells] == ["slow", "quick"]
    assert [row[shown.headings.index("blocks")] for row in shown.cells] == ["1 of 3", "2 of 3"]
    counts = [row[shown.headings.index("classes")] for row in shown.cells]
    rows = [int(row[shown.headings.index("rows")]) for row in shown.cells]
    assert [sum(int(word.split()[-1]) for word in count.split(", ")) for count in counts] == rows
    assert str(leaves) == "leaves a device: activations at the cut, the padding mask, labels, adapters."
    assert READ_BACK in str(read_back)


def test_devices_that_train_alone_send_no_activations(here: Path) -> None:
    lines = [line for line in told(inputs_of(here, method__name="fedlora")) if isinstance(line, str)]
    assert lines[-1] == "leaves a device: adapters and what is measured. Stays there: the text."


def test_a_device_without_a_block_sends_its_text(here: Path) -> None:
    lines = [line for line in told(inputs_of(here, method__cut=0)) if isinstance(line, str)]
    assert lines[-1].startswith("Devices without a block send embeddings")


def test_a_large_fleet_is_a_line(here: Path) -> None:
    fleet = {**FLEET, "devices": [{"name": "pi", "tflops": 0.001, "count": 20}]}
    (line,) = (
        line for line in told(inputs_of(here, fleet=fleet)) if "devices" in str(line) and "rows each" in str(line)
    )
    assert str(line).startswith("20 devices: ")


def test_where_every_device_holds_everything_it_is_said_loud(here: Path) -> None:
    fleet = {**FLEET, "devices": [{"name": "pc", "tflops": 1, "count": 2}]}
    inputs = inputs_of(here, fleet=fleet)
    assert any("NOTHING IS SPLIT: every device holds all 3 of 3 blocks" in str(line) for line in told(inputs))
    assert not any("NOTHING IS SPLIT" in str(line) for line in told(inputs_of(here)))
    assert not any(
        "NOTHING IS SPLIT" in str(line) for line in told(inputs_of(here, fleet=fleet, method__name="fedlora"))
    )


def test_a_wild_learning_rate_is_said_loud(here: Path) -> None:
    inputs = inputs_of(here, train__lr=1e6)
    plan = first_plan(inputs, method_of(inputs.config), situation_of(inputs, Logbook()))
    assert [line.partition(":")[0] for line in loud(inputs, plan)] == ["A WILD LEARNING RATE"]
    assert list(loud(inputs_of(here), replace(plan, devices=()))) == []
    unnoticed("nothing comes of it")


def test_what_leaves_is_asked_of_each_kind_of_part_once(here: Path) -> None:
    inputs = inputs_of(here)
    method, situation = method_of(inputs.config), situation_of(inputs, Logbook())
    plan = first_plan(inputs, method, situation)
    alike = replace(plan, devices=(*plan.devices, replace(plan.devices[0], device="other")))
    assert len(assigned(alike, "run")) == 2
    found = leaving(assigned(plan, "run"), inputs, method)
    assert (found.activations, found.labels, found.text) == (True, True, None)
