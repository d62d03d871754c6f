"""The ServerApp: serves the run in its own process, calls every node, and returns when the run is over.

    [tool.flwr.app.components]
    serverapp = "cutlayer.flower.server_app:app"

Flower brings who the nodes are, their authentication, submission and logs; what to run is in the run config
(`app_config.py`). Devices then come to a port of this process: TLS with an authority that is made for this run, and
a token for each call. Nothing per round or step travels by Flower.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from cutlayer.flower.app_config import Serving, read_serving
from cutlayer.flower.call import CALL, DECLINED, Call
from cutlayer.flower.calls import Calls, Reply
from cutlayer.flower.guests import Guests
from cutlayer.gate.door import Admission, GrpcDoor
from cutlayer.report.fleet_progress import FleetProgress
from cutlayer.run.ending import Outcome
from cutlayer.run.inputs import prepare_server
from cutlayer.run.measured import fleet_of
from cutlayer.run.served import serve
from cutlayer.run.unsaid import on_real_machines
from cutlayer.transport.address import joined
from cutlayer.transport.allocator import keep_freed_memory
from cutlayer.transport.certificates import issue_server, make_authority
from cutlayer.transport.tls import ServerTls

CALL_SECONDS = 365 * 86_400.0
"""A call is open for as long as a run lasts. Flower's own limit is twelve hours."""


def main(grid: Grid, context: Context) -> None:
    """Serves the run that the run config describes."""
    serving = read_serving(context.run_config)
    keep_freed_memory()
    outcome = asyncio.run(_hold(serving, _Flower(grid)))
    print(f"adapter: {outcome.adapter}", flush=True)


async def _hold(serving: Serving, flower: _Flower) -> Outcome:
    """The run, and beside it the calls."""
    inputs = prepare_server(on_real_machines(serving.config, declared=False))
    tls, authority = _tls(serving.host)
    guests = Guests()
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    door = GrpcDoor(serving.listen, Admission(guests), tls, port.set_result)
    with FleetProgress(Console(width=120)) as display:
        run = asyncio.create_task(
            serve(
                inputs,
                fleet_of(inputs),
                display,
                door,
                min_devices=serving.devices,
                resume=serving.resume,
                started={"command": "flower"},
            )
        )
        tasks: list[asyncio.Task[Any]] = [run]
        try:
            await asyncio.wait((run, port), return_when=asyncio.FIRST_COMPLETED)
            if run.done():
                return run.result()
            address = joined(serving.host, port.result())
            calls = Calls(flower, guests, lambda token: Call(address, authority, token), _notice)
            tasks.append(asyncio.create_task(calls.keep()))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not run.done():
                tasks[1].result()  # says why there is nobody to go on with
            outcome = run.result()
            tasks[1].cancel()
            await calls.finish()
            return outcome
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _tls(host: str) -> tuple[ServerTls, str]:
    """Makes the TLS of the run's own stream: an authority and a server certificate, which nobody has after this run."""
    with TemporaryDirectory() as folder:  # for its owner's eyes only
        path, when = Path(folder), datetime.now(UTC)
        make_authority(path, when)
        issue_server(path, [host], when)
        return ServerTls(path, require_client_certificate=False), (path / "ca.crt").read_text()


def _notice(line: str) -> None:
    print(line, flush=True)


class _Flower:
    """Flower's grid as `calls.Switchboard`."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def nodes(self) -> Collection[int]:
        return list(self._grid.get_node_ids())

    def send(self, calls: Mapping[int, Call]) -> Mapping[int, str]:
        messages = [
            Message(RecordDict({CALL: ConfigRecord(call.as_record())}), node, MessageType.TRAIN, ttl=CALL_SECONDS)
            for node, call in calls.items()
        ]
        return dict(zip(calls, self._grid.push_messages(messages), strict=True))

    def replies(self, calls: Collection[str]) -> Mapping[str, Reply]:
        return {reply.metadata.reply_to_message_id: _reply(reply) for reply in self._grid.pull_messages(calls)}


def _reply(message: Message) -> Reply:
    if message.has_error():
        return Reply(declined=f"{message.error.reason}", died=True)
    return Reply(declined=str(message.content.config_records[DECLINED]["why"]))


app = ServerApp()
app.main()(main)
