"""The benchmark of links runs, with real processes, and what they train is the same everywhere."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import links
from cutlayer.run.inputs import prepare, write_shares
from proxy import Proxy
from real_fleet import Job, adapter_of

WORDS = "--model tiny --cut 1 --batch 4 --tokens 16 --parts 2 --rounds 3 --steps 2 --turns 1 --mbit 50 --json"


def test_it_prints_a_table_and_writes_json(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    in_this_process: Callable[[Any], None],
) -> None:
    """Processes and slow links left out."""
    in_this_process(links)
    rates = []

    async def real(job: Job, folder: Path, bytes_per_second: float | None) -> None:
        rates.append(bytes_per_second)
        await asyncio.to_thread(links.in_process, job.config.model_copy(update={"out": str(folder / "run")}))

    monkeypatch.setattr(links, "real", real)
    path = tmp_path / "results" / "links.json"
    monkeypatch.setattr(links, "write_shares", lambda inputs, _folder: ({}, inputs.config))
    links.main([*WORDS.split(), str(path)])
    assert "two under way" in capsys.readouterr().out
    assert rates == [None, 50e6 / 8] * 3
    cells = json.loads(path.read_text())["rows"]["cells"]
    assert [(cell["how"], cell["place"]) for cell in cells] == [
        (how, place)
        for how in ("whole batches", "2 parts, one after the other", "2 parts, two under way")
        for place in ("in process", "loopback", "50 Mbit/s")
    ]
    first = cells[0]["step_ms"]
    assert all(cell["over_in_process"] == pytest.approx(cell["step_ms"] / first) for cell in cells)


@pytest.mark.slow
def test_a_real_run_on_a_slow_link(tmp_path: Path) -> None:
    settings = argparse.Namespace(model="tiny", cut=1, batch=4, tokens=16, rounds=3, steps=2)
    made = links.make_config(tmp_path, settings)
    config = made.model_copy(update={"train": made.train.model_copy(update={"micro_batches": 2})})
    files, shared = write_shares(prepare(config), tmp_path / "shares")
    asyncio.run(links.real(Job(shared, files, b""), tmp_path, 50e6 / 8))
    assert links.step_seconds(tmp_path / "run") > 0
    links.in_process(config.model_copy(update={"out": str(tmp_path / "simulated")}))
    assert adapter_of(tmp_path / "run") == adapter_of(tmp_path / "simulated")


def test_a_slow_link_is_as_slow_as_it_is_said_to_be() -> None:
    """Two megabytes at eight megabytes a second, in each direction at the same time, though sleeps are too long."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            writer.write(data)
        writer.close()

    async def program() -> float:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        proxy = Proxy(server.sockets[0].getsockname()[1])
        proxy.bytes_per_second = 8e6
        await proxy.open()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        start = time.monotonic()
        writer.write(bytes(2_000_000))
        await reader.readexactly(2_000_000)
        seconds = time.monotonic() - start
        writer.close()
        await proxy.close()
        server.close()
        return seconds

    assert 0.2 < asyncio.run(program()) < 0.6
