"""The settings that a real fleet takes where nobody said anything, and those that stay as they were said."""

from __future__ import annotations

from typing import Any

import pytest

from cutlayer.config import RunConfig
from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import MEASURED, load_fleet, write_out
from cutlayer.methods.table import TABLE
from cutlayer.run.inputs import completed
from cutlayer.run.unsaid import on_real_machines


def config(**content: Any) -> RunConfig:
    return RunConfig.model_validate(content)


def test_a_method_that_fills_memory_is_cut_by_time_and_machines_measure_themselves() -> None:
    served = on_real_machines(config(), declared=False)
    assert (served.method.options, served.fleet) == ({"cut": "latency"}, "measured")
    assert on_real_machines(config(), declared=True).fleet == "memsfl-six"
    assert completed(served).method.options["cut"] == "latency"


@pytest.mark.parametrize("cut", [2, "memory", None])
def test_what_somebody_said_stays(cut: int | str | None) -> None:
    said = config(method={"name": "memsfl", "cut": cut}, fleet="jetson-80")
    assert on_real_machines(said, declared=False) == said


def test_what_a_run_has_written_down_stays() -> None:
    written = completed(config())
    again = RunConfig.model_validate(written.model_dump(mode="json"))
    assert again.method.options["cut"] == "memory"
    assert on_real_machines(again, declared=False) == again


def test_only_methods_that_would_fill_memory_are_changed() -> None:
    changed = {
        name
        for name in TABLE
        if on_real_machines(config(method={"name": name}), declared=True).method.options.get("cut") == "latency"
    }
    assert changed == {"memsfl", "ho_sfl"}


def test_a_fleet_that_measures_itself_is_none_to_simulate() -> None:
    assert write_out(MEASURED) == MEASURED
    with pytest.raises(ConfigError, match="a real fleet measures itself when it is there"):
        load_fleet(MEASURED)
