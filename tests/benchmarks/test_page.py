"""The benchmark of the page runs: a small fleet for a moment, and who watches is sent something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
import page


def test_it_prints_a_table_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_this_process: Callable[[Any], None]
) -> None:
    in_this_process(page)
    file = tmp_path / "page.json"
    page.main(f"--devices 3 --watchers 1 --seconds 0.4 --round 0.1 --json {file}".split())
    [(case, cost)] = json.loads(file.read_text())["rows"].items()
    assert case == "3 devices, 1 watchers"
    assert cost["bytes_per_second"] > 0
    assert 0 < cost["telling_seconds"] < 0.01
    assert "share" in capsys.readouterr().out
