"""`cutlayer up`: a server and processes of devices; the adapter is that of `cutlayer train`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from commands import World, run
from cutlayer.config import read_config


def test_up_trains_the_adapter_of_train(world: World) -> None:
    flags = world.classification()
    cut = ["-o", "method.cut=latency"]  # what a real fleet takes where nobody says
    trained = run("train", *flags, *cut, "--out", world.folder / "simulated", "--quiet")
    assert trained.code == 0, trained.err
    brought = run("up", *flags, "--out", world.folder / "real")
    assert brought.code == 0, brought.err
    assert read_config(world.folder / "real" / "config.yaml").method.options["cut"] == "latency"
    check_that_numbers_are_real(brought.out, json.loads((world.folder / "real" / "summary.json").read_text()))
    adapters = [world.folder / name / "adapter" / "adapter_model.safetensors" for name in ("simulated", "real")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def check_that_numbers_are_real(said: str, summary: dict[str, Any]) -> None:
    """What machines measured, and not what a fleet file says of others."""
    assert "virtual_seconds" not in summary["totals"]
    assert summary["on_the_wire"]["bytes_up"] > summary["totals"]["bytes_up"]
    table = said[said.rindex(" device ") :]
    (slow,) = (line for line in table.splitlines() if line.startswith(" slow "))
    assert "FLOP/s" in slow
    assert "10 MFLOP/s" not in slow, "as declared"
    (server,) = (line for line in table.splitlines() if line.startswith(" server "))
    assert "not measured" in server
    assert "signs of life" in said
    assert "leaves a device: activations at the cut" in said


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
