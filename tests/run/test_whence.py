"""Which folder an adapter is read from, and that what is not there is told before anything is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cutlayer.errors import UserError
from cutlayer.run.whence import Whence, check_there, whence

CARD = {
    "base": "builtin:minilm",
    "task": "classification",
    "labels": ["a"],
    "pooling": "auto",
    "max_length": 8,
    "pad_id": 0,
    "columns": {},
}


def adapter_in(folder: Path, **card: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    if card:
        (folder / "cutlayer.json").write_text(json.dumps(CARD | card))
    return folder


def test_a_run_leads_to_its_adapter_and_one_that_goes_on_to_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("{}")
    assert whence(run) == Whence("checkpoint", run)
    with pytest.raises(UserError, match="at least one round that is over"):
        check_there(whence(run), model=None)
    (run / "checkpoint").mkdir()
    assert check_there(whence(run), model=None) is None
    adapter_in(run / "adapters" / "round-2")
    adapter_in(run / "adapter", task="causal-lm")
    assert whence(run) == Whence("adapter", run / "adapter")
    assert whence(run, round=2) == Whence("adapter", run / "adapters" / "round-2")
    with pytest.raises(UserError, match=r"expected adapters/round-3, got round-2"):
        whence(run, round=3)
    assert check_there(whence(run), model=None) == "causal-lm"


def test_what_the_adapter_lacks_is_named(tmp_path: Path) -> None:
    ours = adapter_in(tmp_path / "ours", base="./gone")
    with pytest.raises(UserError, match="model: expected a folder"):
        check_there(whence(ours), model=None)
    assert check_there(whence(ours), model="builtin:minilm") == "classification"
    plain = adapter_in(tmp_path / "plain")
    assert check_there(whence(plain), model=None) is None
    (plain / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"got no adapter_model\.safetensors"):
        check_there(whence(plain), model=None)
    with pytest.raises(UserError, match="expected a run's folder"):
        whence(plain, round=1)
