"""`cutlayer serve`: the server of a real fleet, from a run file to an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutlayer.cli.flags import Given
from cutlayer.cli.resumed import config_of, tell
from cutlayer.cli.signals import run_until_signalled
from cutlayer.cli.terminal import console

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
    from cutlayer.api.serve import serving
    from cutlayer.report.fleet_progress import FleetProgress
    from cutlayer.report.progress import NoProgress

    terminal = console()
    display = NoProgress() if quiet else FleetProgress(terminal)

    def opened(port: int) -> None:
        terminal.print(f"listening on {host}:{port}, waiting for {min_devices} devices", highlight=False)

    with terminal.status("reading the data"):
        work = serving(
            config,
            display,
            opened,
            host=host,
            port=port,
            roster=folder,
            insecure=insecure,
            workers=workers,
            min_devices=min_devices,
            resume=resume is not None,
        )
    with display:
        outcome = run_until_signalled(work, f"cutlayer serve --resume {config.out}")
    tell(outcome, quiet=quiet)
