"""The list of methods."""

from __future__ import annotations

from commands import run
from cutlayer.methods.table import TABLE


def test_each_method_is_one_line_with_its_options() -> None:
    ran = run("methods")
    assert (ran.code, ran.err) == (0, "")
    lines = {line.split()[0]: line for line in ran.out.splitlines() if line.strip()}
    for name, row in TABLE.items():
        assert all(part in lines[name] for part in (row.summary, row.paper, row.evidence, *row.options))
    assert "order=longest_tail cut=null least=1 weighted=true" in lines["memsfl"]
