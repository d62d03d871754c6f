"""The benchmark of labels at home and of searches runs, and says what it is to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import u_shape
from cutlayer.testing import tiny


def test_it_prints_both_tables_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Callable[[str, str], Path]
) -> None:
    tiny.save_tiny_tokenizer(tiny_model("bert", "classification"))
    path = tmp_path / "u_shape.json"
    flags = ["--model", str(tiny_model("bert", "classification")), "--max-length", "32", "--devices", "2"]
    u_shape.main([*flags, "--evaluations", "64", "--seeds", "1", "--json", str(path)])
    shown = capsys.readouterr().out
    assert "labels on the server and on the devices" in shown
    assert "Hypervolume at equal evaluations" in shown
    rows = json.loads(path.read_text())["rows"]
    for fleet in {row["fleet"] for row in rows["rounds"]}:
        of = {(row["method"], row["labels"]): row for row in rows["rounds"] if row["fleet"] == fleet}
        for method in u_shape.METHODS:
            home, away = of[method, "device"], of[method, "server"]
            assert home["seconds"] > 0 < away["seconds"]
        delays = [of[f"gan_hfsl, delay {delay}", "device"] for delay in u_shape.DELAYS]
        assert delays[1]["seconds"] <= delays[0]["seconds"]
    assert all(0 <= row["worst"] <= row["mean"] <= 1 + 1e-9 for row in rows["fronts"])
