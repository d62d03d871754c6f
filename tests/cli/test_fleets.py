"""The list of fleets."""

from __future__ import annotations

from commands import run
from cutlayer.fleet.profile import list_fleets


def test_each_fleet_is_one_line() -> None:
    ran = run("fleets")
    assert (ran.code, ran.err) == (0, "")
    lines = {line.split()[0]: line for line in ran.out.splitlines() if line.strip()}
    assert {fleet.name for fleet in list_fleets()} <= lines.keys()
    assert all(part in lines["memsfl-six"] for part in (" 6 ", "0.472 to 3.53", "4.0 GiB to 12.0 GiB", "not confirmed"))
