"""Machines that run blocks, real ones: a fleet that dials them over gRPC trains the adapter of the simulated one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cutlayer.config import read_config
from cutlayer.errors import ConfigError
from cutlayer.gate.door import Admission, GrpcDoor
from cutlayer.run.inputs import prepare, prepare_server, write_shares
from cutlayer.run.run import Outcome
from cutlayer.run.span_served import longest_call, serve_span
from real import FLEET, inline, served, simulated, values_for

MACHINE = {"tflops": 0.00001, "efficiency": 0.3, "up_mbit": 10, "down_mbit": 20, "latency_ms": 5, "memory_gib": 1}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def values_of(inputs: Path, *blocks: str) -> dict[str, Any]:
    spans = [
        {"name": f"span-{n}", **MACHINE, "blocks": own, "address": f"127.0.0.1:{free_port()}"}
        for n, own in enumerate(blocks)
    ]
    return values_for(inputs, method__name="petals", fleet={**FLEET, "spans": spans})


class Lent:
    """Spans in a thread of their own, each of which can be ended."""

    def __init__(self, values: dict[str, Any], out: Path) -> None:
        self._rows = values["fleet"]["spans"]
        _, config = write_shares(prepare(read_config(None, values={**values, "out": str(out)})), out / "shares")
        self._inputs = prepare_server(config)
        self._tasks: list[asyncio.Task[None]] = []
        self._open = threading.Semaphore(0)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        for _ in self._rows:
            assert self._open.acquire(timeout=60)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        for row in self._rows:
            first, _, end = row["blocks"].partition(":")
            door = GrpcDoor(row["address"], Admission(None), None, lambda _port: self._open.release())
            work = serve_span(self._inputs, (int(first), int(end)), door, machines=inline)
            self._tasks.append(asyncio.create_task(work))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def kill(self, number: int) -> None:
        self._loop.call_soon_threadsafe(self._tasks[number].cancel)

    def end(self) -> None:
        for number in range(len(self._tasks)):
            self.kill(number)
        self._thread.join(30)


@contextlib.contextmanager
def lent(values: dict[str, Any], out: Path) -> Iterator[Lent]:
    spans = Lent(values, out)
    try:
        yield spans
    finally:
        spans.end()


def bytes_of(outcome: Outcome) -> bytes:
    return (outcome.adapter / "adapter_model.safetensors").read_bytes()


def test_the_adapter_of_the_simulated_run(inputs: Path, tmp_path: Path) -> None:
    values = values_of(inputs, "0:2", "2:3", "0:3")
    with lent(values, tmp_path / "real"):
        real = served(values, tmp_path / "real")
    assert bytes_of(real) == bytes_of(simulated(values, tmp_path / "simulated"))
    facts = [device["facts"] for row in real.rows for device in row["devices"].values()]
    assert all(fact["calls"] > 0 == fact["lost"] for fact in facts)
    assert all(fact["span_bytes_up"] > 0 < fact["span_bytes_down"] for fact in facts)


def test_a_machine_that_is_killed_changes_nothing_of_what_is_learnt(inputs: Path, tmp_path: Path) -> None:
    """It goes while devices train; the other holder of its blocks takes over."""
    values = values_of(inputs, "0:3", "0:2", "2:3") | {"train.local_steps": 8}
    with lent(values, tmp_path / "real") as spans:

        async def kill() -> None:
            while not (tmp_path / "real" / "metrics.jsonl").exists():
                await asyncio.sleep(0.02)
            spans.kill(0)

        real = served(values, tmp_path / "real", meanwhile=kill)
    assert bytes_of(real) == bytes_of(simulated(values, tmp_path / "simulated"))


def test_a_device_that_is_sent_its_part_gets_no_blocks(inputs: Path, tmp_path: Path) -> None:
    """With the model from the server: embeddings and head, and nothing in between."""
    values = values_of(inputs, "0:3")
    with lent(values, tmp_path / "real"):
        real = served(values, tmp_path / "real", model="server", folders=tmp_path / "devices")
    assert bytes_of(real) == bytes_of(simulated(values, tmp_path / "simulated"))
    whole = sum(path.stat().st_size for path in (inputs / "model").glob("*.safetensors"))
    sent = sum(path.stat().st_size for path in (tmp_path / "devices" / "slow" / "model").rglob("*") if path.is_file())
    assert sent < 0.8 * whole


def test_a_fleet_that_names_no_address_is_refused(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ExceptionGroup) as caught:
        served(values_for(inputs, method__name="petals"), tmp_path / "real")
    errors = [error for error in caught.value.exceptions if isinstance(error, ConfigError)]
    assert "fleet.spans: expected an address for each span of a real fleet" in str(errors[0])


def test_blocks_that_the_model_does_not_have_are_refused(inputs: Path, tmp_path: Path) -> None:
    made = prepare_server(prepare(read_config(None, values={**values_of(inputs, "0:3"), "out": str(tmp_path)})).config)
    door = GrpcDoor("127.0.0.1:0", Admission(None), None, lambda _: None)
    with pytest.raises(ConfigError, match="--span: expected blocks up to 3"):
        asyncio.run(serve_span(made, (2, 4), door, machines=inline))
    assert 0 < longest_call(made, (0, 1)) < longest_call(made, (0, 3))
