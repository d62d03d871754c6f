"""The facts that are known of a real fleet before its devices come."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

from cutlayer.config import read_config
from cutlayer.device.probe import Probed
from cutlayer.run.inputs import prepare_server
from cutlayer.run.measured import fleet_of
from cutlayer.testing.tiny import save_inputs


def test_where_nobody_described_machines_the_server_measures_itself(tmp_path: Path) -> None:
    here = save_inputs(tmp_path, rows=24)
    values = {"model.name": str(here / "model"), "data.path": str(here / "data"), "data.max_length": 16}
    measured = prepare_server(read_config(None, values={**values, "fleet": "measured"}))
    with mock.patch("cutlayer.run.measured.probe", return_value=Probed(2**30, 3.5e10)):
        fleet = fleet_of(measured)
    assert (fleet.devices, fleet.server.effective_flops, fleet.server.memory_bytes) == ((), 3.5e10, 2**30)
    declared = fleet_of(prepare_server(read_config(None, values={**values, "fleet": "memsfl-six"})))
    assert (declared.name, len(declared.devices)) == ("memsfl-six", 6)
