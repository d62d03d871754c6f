"""`cutlayer up`: a server and processes of devices; the adapter is that of `cutlayer train`."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

import cutlayer.run.up as bring_up
from commands import FLEET, World, run
from cutlayer.config import read_config
from cutlayer.gate.children import Children
from cutlayer.server.ledger import Ledger
from cutlayer.wire.messages import Activations


def test_up_trains_the_adapter_of_train(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of either is for anybody but its owner, nor is a token where others could read it."""
    tokens, started, make = list[str](), list[Any](), asyncio.create_subprocess_exec

    class Noted(Children):
        def __init__(self, names: Iterable[str]) -> None:
            super().__init__(names)
            tokens.extend(self.tokens.values())

    async def start(*words: Any, **how: Any) -> Any:
        started.append((words, how["env"]["CUTLAYER_TOKEN"]))
        return await make(*words, **how)

    monkeypatch.setattr(bring_up, "Children", Noted)
    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    flags, before = world.classification(), os.umask(0o022)
    cut = ["-o", "method.cut=latency"]  # what a real fleet takes where nobody says
    trained = run("train", *flags, *cut, "--out", world.folder / "simulated", "--quiet")
    assert trained.code == 0, trained.err
    brought = run("up", *flags, "--out", world.folder / "real")
    assert brought.code == 0, brought.err
    assert read_config(world.folder / "real" / "config.yaml").method.options["cut"] == "latency"
    check_that_numbers_are_real(brought.out, json.loads((world.folder / "real" / "summary.json").read_text()))
    clocks = {"simulated": ("virtual_seconds", "seconds"), "real": ("seconds", "virtual_seconds")}
    for folder, (has, has_not) in clocks.items():
        rows = [json.loads(line) for line in (world.folder / folder / "metrics.jsonl").read_text().splitlines()]
        assert all(has in row and has_not not in row for row in rows)
    assert "leaves a device: activations at the cut" in brought.progress
    adapters = [world.folder / name / "adapter" / "adapter_model.safetensors" for name in ("simulated", "real")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert os.umask(before) == 0o022
    assert sorted(token for _, token in started) == sorted(tokens)
    for folder in ("simulated", "real"):
        paths = [world.folder / folder, *(world.folder / folder).rglob("*")]
        assert len(paths) > 20
        wrong = {str(path): oct(path.stat().st_mode) for path in paths if path.stat().st_mode & 0o077}
        assert not wrong
        for path in paths:
            content = path.read_bytes() if path.is_file() else b""
            assert not any(token.encode() in content for token in tokens), f"{path} holds a token"
    assert {path.name for path in (world.folder / "real").iterdir()} >= {"shares", "devices", "checkpoint"}
    assert not any(token in str(words) for words, _ in started for token in tokens)


def check_that_numbers_are_real(said: str, summary: dict[str, Any]) -> None:
    """Checks that numbers are what machines measured, and not what a fleet file says of others."""
    assert "virtual_seconds" not in summary["totals"]
    assert summary["on_the_wire"]["bytes_up"] > summary["totals"]["bytes_up"]
    table = said[said.rindex(" device ") :]
    (slow,) = (line for line in table.splitlines() if line.startswith(" slow "))
    assert "FLOP/s" in slow
    assert "10 MFLOP/s" not in slow, "as declared"
    (server,) = (line for line in table.splitlines() if line.startswith(" server "))
    assert "not measured" in server
    assert "signs of life" in said


@pytest.mark.slow
@pytest.mark.parametrize("method", [("epsl",), ("reindsplit", "cut=1"), ("memsfl", "labels=device")], ids="-".join)
def test_a_device_that_is_killed_half_way_changes_nothing(
    method: tuple[str, ...], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is killed in the middle of the second round, and another begun in its place."""
    started, make, trained = list[Any](), asyncio.create_subprocess_exec, Ledger.trained

    async def start(*words: Any, **how: Any) -> Any:
        started.append((words, await make(*words, **how)))
        return started[-1][1]

    def killing(ledger: Ledger, arrived: Activations, loss: float) -> None:
        trained(ledger, arrived, loss)
        if (arrived.device, arrived.round, arrived.step) == ("quick", 1, 0) and len(started) == 2:
            [process] = [process for words, process in started if "quick" in words]
            process.kill()

    monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
    name, *options = method
    flags = [*world.classification(), "--method", name, *(w for o in options for w in ("-o", f"method.{o}")), "--quiet"]
    ran = run("train", *flags, "--out", tmp_path / "simulated")
    assert ran.code == 0, ran.err
    monkeypatch.setattr(Ledger, "trained", killing)
    ran = run("up", *flags, "--out", tmp_path / "real")
    assert ran.code == 0, ran.err
    assert [words[words.index("--name") + 1] for words, _ in started[2:]] == ["quick"]
    adapters = [tmp_path / folder / "adapter" / "adapter_model.safetensors" for folder in ("simulated", "real")]
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
