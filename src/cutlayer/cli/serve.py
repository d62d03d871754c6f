"""`cutlayer serve`: the server of a real fleet, from a run file to an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutlayer.cli.flags import Given
from cutlayer.cli.resumed import config_of, tell
from cutlayer.cli.signals import run_until_signalled
from cutlayer.cli.terminal import progress_console, starting
from cutlayer.cli.threads import fit_threads

if TYPE_CHECKING:
    from cutlayer.config import RunConfig


def serve(
    given: Given,
    *,
    host: Annotated[
        str | None,
        typer.Option(
            "--host",
            metavar="HOST",
            help="The address to listen on, 127.0.0.1 by default; 0.0.0.0 for every network.",
            show_default=False,
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", min=0, max=65535, help="The port, 7070 by default; 0 takes a free one.", show_default=False
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--roster", metavar="FOLDER", help="The fleet folder of `cutlayer fleet init`.", show_default=False
        ),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option(
            "--insecure/--no-insecure",
            help="Listen to others without TLS and proof. Says what that risks.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=1,
            metavar="N",
            help="Serve devices by N processes, each with the model, one per GPU; by Ray (cutlayer[ray]). "
            "For methods whose server trains an adapter for each device, or none.",
            show_default=False,
        ),
    ] = None,
    min_devices: Annotated[
        int | None,
        typer.Option(
            "--min-devices", min=1, help="The first round waits for so many devices, 1 by default.", show_default=False
        ),
    ] = None,
    patience: Annotated[
        float | None,
        typer.Option(
            "--patience",
            min=1,
            metavar="SECONDS",
            help="A round goes on without a device that is away for so long; by default it waits.",
            show_default=False,
        ),
    ] = None,
    span: Annotated[
        str | None,
        typer.Option(
            "--span",
            metavar="FIRST:END",
            help="Run these blocks for the devices of a run that another process serves (petals), such as 4:8.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN_DIR",
            help="Go on with the run in this folder, served as it was but for what is said anew.",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the adapter's path and nothing else.")] = False,
) -> None:
    """Serve a run to devices that join by network; ends with a PEFT adapter and a report of what each device did."""
    if span is not None:  # the run's folder is the other process's
        _lend(given.config(), span, {"host": host, "port": port, "roster": folder, "insecure": insecure})
        return
    terminal = progress_console()
    with starting(terminal, quiet=quiet):
        config = config_of(resume, given, "serve")
        from cutlayer.api.serve import Listening, serving
        from cutlayer.report.fleet_progress import FleetProgress
        from cutlayer.report.progress import NoProgress
        from cutlayer.settings import slow_dtype
        from cutlayer.transport.address import joined

        fit_threads()
        said = {"host": host, "port": port, "roster": folder, "insecure": insecure, "workers": workers}
        how = Listening.of({**said, "min_devices": min_devices, "patience": patience}, resume)
    if not quiet and (warning := slow_dtype(config)):
        terminal.print(warning, soft_wrap=True)
    display = NoProgress() if quiet else FleetProgress(terminal)

    def opened(port: int) -> None:
        terminal.print(f"listening on {joined(how.host, port)}, waiting for {how.min_devices} devices", highlight=False)

    def noticed(line: str) -> None:
        if not quiet:
            terminal.print(line, soft_wrap=True, markup=False)

    with display:
        display.stage("reading the data")
        work = serving(config, display, opened, how, resume=resume is not None, noticed=noticed)
        outcome = run_until_signalled(work, f"cutlayer serve --resume {config.out}")
    tell(outcome, quiet=quiet)


def _lend(config: RunConfig, span: str, said: Mapping[str, Any]) -> None:
    """Runs blocks until this process is told to stop."""
    from cutlayer.api.serve import Listening, lending
    from cutlayer.fleet.profile import parse_blocks
    from cutlayer.transport.address import joined

    terminal = progress_console()
    first, end = parse_blocks(span, "--span")
    how = Listening.of(said, None)

    def opened(port: int) -> None:
        terminal.print(f"listening on {joined(how.host, port)}, running blocks {first} to {end - 1}", highlight=False)

    with terminal.status("reading the model"):
        work = lending(config, (first, end), opened, how)
    run_until_signalled(work, f"cutlayer serve --span {span}")
