"""Tables that benchmarks print: whole, in a pipe too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tables
from cutlayer.report.listing import Listing


def test_a_table_is_whole_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = Listing(title="wide")
    headings = [f"a long heading, number {index}" for index in range(12)]
    for heading in headings:
        table.add_column(heading)
    table.add_row(*[f"value {index}" for index in range(12)])
    tables.publish([table], tmp_path / "x.json", {"turns": 2}, {"values": [1]})
    shown = capsys.readouterr().out
    assert all(heading in shown for heading in headings)
    assert "…" not in shown
    content = json.loads((tmp_path / "x.json").read_text())
    assert (content["settings"], content["rows"]) == ({"turns": 2}, {"values": [1]})
