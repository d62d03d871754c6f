"""`cutlayer up`: a server and processes of devices; the adapter is that of `cutlayer train`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from commands import FLEET, World, run


def test_up_trains_the_adapter_of_train(world: World) -> None:
    flags = world.classification()
    trained = run("train", *flags, "--out", world.folder / "simulated", "--quiet")
    assert trained.code == 0, trained.err
    brought = run("up", *flags, "--out", world.folder / "real", "--quiet")
    assert brought.code == 0, brought.err
    adapters = [world.folder / name / "adapter" / "adapter_model.safetensors" for name in ("simulated", "real")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_on_a_gguf_file_too(dtype: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process of a device reads its part of the file, and rounds it where the run says so."""
    pytest.importorskip("gguf")
    from ggufs import save_gguf

    monkeypatch.setenv("XDG_CACHE_HOME", str(world.folder / "cache"))
    model = save_gguf(world.folder / "tiny.gguf")
    flags = [*world.causal_lm(), "--model", model, "--rounds", 1, "--dtype", dtype]
    adapters = []
    for command in ("train", "up"):
        ran = run(command, *flags, "--out", world.folder / command, "--quiet")
        assert ran.code == 0, ran.err
        adapters.append((world.folder / command / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]


@pytest.mark.slow
def test_sites_are_processes_too(world: World, tmp_path: Path) -> None:
    """And devices join where the fleet file says that they are; with another method, the server itself."""
    line = {"up_mbit": 20, "down_mbit": 50, "latency_ms": 15}
    sites = [{"name": "ward", "devices": ["slow"], **line}, {"name": "office", "devices": ["quick"], **line}]
    rows = [{key: value for key, value in row.items() if key != "max_blocks"} for row in FLEET["devices"]]
    fleet = tmp_path / "sites.yaml"
    fleet.write_text(yaml.safe_dump({**FLEET, "devices": rows, "sites": sites}))
    adapters = []
    for command in ("train", "up"):
        flags = [*world.causal_lm(), "--fleet", fleet, "--method", "hfl_prune"]
        ran = run(command, *flags, "--out", world.folder / command, "--quiet")
        assert ran.code == 0, ran.err
        adapters.append((world.folder / command / "adapter" / "adapter_model.safetensors").read_bytes())
    assert adapters[0] == adapters[1]
    assert "slow has come" in (world.folder / "up" / "sites" / "ward.log").read_text()
