"""The compression benchmark runs, and its bytes are those of the codecs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import compress


def test_it_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_this_process: Callable[[Any], None]
) -> None:
    in_this_process(compress)
    path = tmp_path / "results" / "compress.json"
    compress.main(["--shape", "2", "4", "100", "--turns", "2", "--json", str(path)])
    shown, written = capsys.readouterr().out, json.loads(path.read_text())
    assert "a MiB of fp32 activations, 2 x 4 x 100" in shown
    left = {name: row["bytes_left"] for name, row in written["rows"].items()}
    assert left == {"none": 1.0, "bf16": 0.5, "int8": 0.26, "topk:0.1": 0.2, "topk:0.01": 0.02}
    assert all(row["pack_ms"] >= 0 for row in written["rows"].values())
