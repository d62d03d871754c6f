"""The list of families."""

from __future__ import annotations

from commands import run
from cutlayer.model.families import FAMILIES


def test_each_family_is_one_line() -> None:
    ran = run("families")
    assert (ran.code, ran.err) == (0, "")
    lines = {line.split()[0]: line for line in ran.out.splitlines() if line.strip()}
    assert FAMILIES.keys() <= lines.keys()
    for name, row in FAMILIES.items():
        assert all(part in lines[name] for part in (*row.tasks, *row.attention, *row.poolings))
