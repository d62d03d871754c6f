"""A run goes on from an adapter: it begins as good as the other ended, on a real fleet too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cutlayer.errors import AdapterError, ConfigError
from cutlayer.run.desk import RunHost
from real import served, simulated, values_for


def test_it_begins_as_good_as_the_other_ended(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = values_for(inputs, train__rounds=1, train__local_steps=1)
    first = simulated(values, tmp_path / "first")
    more = values | {"model.adapter": str(first.adapter), "train.seed": 3}
    second = simulated(more, tmp_path / "second")
    assert second.before == first.metrics != first.before
    wider = simulated(more | {"lora.rank": 4, "lora.alpha": 64.0}, tmp_path / "wider")
    assert wider.before == pytest.approx(first.metrics, rel=1e-5)

    told: list[str] = []
    welcome = RunHost.welcome

    def noted(self: RunHost, device: str, index: int) -> Any:
        told.append(welcome(self, device, index).config)
        return welcome(self, device, index)

    monkeypatch.setattr(RunHost, "welcome", noted)
    real = served(more, tmp_path / "real")
    name = "adapter_model.safetensors"
    assert (real.adapter / name).read_bytes() == (second.adapter / name).read_bytes()
    assert told
    assert not any(str(first.adapter) in config for config in told), "the adapter's folder is the server's own business"

    with pytest.raises(AdapterError, match=r"expected the classes \['good', 'fair', 'bad'\]"):
        simulated(more | {"data.labels": ["good", "fair", "bad"]}, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"model\.adapter: expected none with method fedkseed"):
        simulated(more | {"method.name": "fedkseed", "method.full": False, "method.seeds": 8}, tmp_path / "seeds")
    with pytest.raises(AdapterError, match="Set --rank 2"):
        simulated(more | {"lora.rank": 1}, tmp_path / "narrow")
    assert not (tmp_path / "narrow").exists()
