"""`cutlayer serve`: the server of a real fleet, from a run file to an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutlayer.cli.flags import Given
from cutlayer.cli.resumed import config_of, tell
from cutlayer.cli.signals import run_until_signalled
from cutlayer.cli.terminal import console
from cutlayer.errors import ConfigError

if TYPE_CHECKING:
    from cutlayer.gate.roster import Roster
    from cutlayer.run.served import Workers

DEFAULT_PORT = 7070


def serve(
    given: Given,
    *,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 takes a free one.")] = DEFAULT_PORT,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--roster", metavar="FOLDER", help="The fleet folder of `cutlayer fleet init`.", show_default=False
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen to others without TLS and proof. Says what that risks.")
    ] = False,
    workers: Annotated[
        int,
        typer.Option(
            "--workers",
            min=1,
            metavar="N",
            help="Serve devices by N processes, each with the model, one per GPU; by Ray (cutlayer[ray]). "
            "For methods whose server trains an adapter for each device, or none.",
        ),
    ] = 1,
    min_devices: Annotated[int, typer.Option(min=1, help="The first round waits for so many devices.")] = 1,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN_DIR", help="Go on with the run in this folder.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the adapter's path and nothing else.")] = False,
) -> None:
    """Serve a run to devices that join by network; ends with a PEFT adapter and a report of what each device did."""
    config = config_of(resume, given)
    from cutlayer.fleet.profile import load_fleet
    from cutlayer.gate.door import door_of
    from cutlayer.report.fleet_progress import FleetProgress
    from cutlayer.report.progress import NoProgress
    from cutlayer.run.inputs import prepare_server
    from cutlayer.run.served import serve as serve_run
    from cutlayer.transport.allocator import keep_freed_memory
    from cutlayer.transport.exposure import check_exposure

    check_exposure(host, tls=folder is not None, authenticated=folder is not None, insecure=insecure)
    roster = None if folder is None else _roster(folder)
    team = _team(workers, host, port, folder)
    terminal = console()
    keep_freed_memory()
    with terminal.status("reading the data"):
        inputs = prepare_server(config)

    def opened(port: int) -> None:
        terminal.print(f"listening on {host}:{port}, waiting for {min_devices} devices", highlight=False)

    door = door_of(f"{host}:{port}", folder, opened)
    with NoProgress() if quiet else FleetProgress(terminal) as display:
        outcome = run_until_signalled(
            serve_run(
                inputs,
                load_fleet(config.fleet),
                display,
                door,
                min_devices=min_devices,
                expected=[] if roster is None else roster.names(),
                resume=resume is not None,
                workers=team,
            ),
            f"cutlayer serve --resume {config.out}",
        )
    tell(outcome, quiet=quiet)


def _team(workers: int, host: str, port: int, folder: Path | None) -> Workers | None:
    if workers == 1:
        return None
    from cutlayer.run.workers.ray_workers import RayWorkers

    return RayWorkers(workers, host, port, folder)


def _roster(folder: Path) -> Roster:
    from cutlayer.gate.roster import Roster

    roster = Roster(folder)
    if roster.kind is None:
        raise ConfigError(
            f"serve: expected devices on the roster {folder}, got none: nobody could come in. "
            f"Add them (`cutlayer fleet add NAME --fleet {folder}`), then start."
        )
    return roster
