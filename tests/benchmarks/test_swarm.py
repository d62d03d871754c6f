"""The benchmark of failing machines runs, and what it says of replay and restart is in their order."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import swarm
from cutlayer.testing import tiny


def test_it_prints_its_table_and_writes_json(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    tiny_model: Callable[[str, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(swarm, "BLOCKS", tiny.BLOCKS)
    monkeypatch.setattr(swarm, "PROBABILITIES", (0.0, 0.05))
    real = swarm.fleet_of
    monkeypatch.setattr(swarm, "fleet_of", lambda p, s, copies, length: real(p, s, copies, 1))
    tiny.save_tiny_tokenizer(tiny_model("bert", "classification"))
    path = tmp_path / "swarm.json"
    swarm.main(["--model", str(tiny_model("bert", "classification")), "--steps", "40", "--json", str(path)])
    assert "local steps a second" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]["virtual"]
    speed = {(row["recover"], row["probability"]): row["steps_per_second"] for row in rows}
    assert speed["replay", 0.0] == speed["restart", 0.0]
    assert speed["replay", 0.0] > speed["replay", 0.05] > speed["restart", 0.05]
