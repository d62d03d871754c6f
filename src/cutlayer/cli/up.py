"""`cutlayer up`: a real fleet on this machine in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutlayer.cli.flags import Given
from cutlayer.cli.page import PageOption, PageTlsOption, asked_page, shown_beside
from cutlayer.cli.resumed import config_of, tell
from cutlayer.cli.signals import run_until_signalled
from cutlayer.cli.terminal import noticing, progress_console, starting
from cutlayer.errors import ConfigError


def up(
    given: Given,
    *,
    devices: Annotated[
        int | None,
        typer.Option("--devices", min=1, help="So many of the fleet's devices; by default all.", show_default=False),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN_DIR", help="Go on with the run in this folder.", show_default=False),
    ] = None,
    page: PageOption = None,
    page_tls: PageTlsOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the adapter's path and nothing else.")] = False,
) -> None:
    """Start a server and a process for each device and site on this machine, over a real network; ends with a PEFT
    adapter."""
    terminal = progress_console()
    with starting(terminal, quiet=quiet):
        config, watched = config_of(resume, given, "up"), asked_page(page, page_tls, resume)
        from cutlayer.fleet.profile import first_devices, load_fleet
        from cutlayer.page.asked import started_of
        from cutlayer.report.fleet_progress import FleetProgress
        from cutlayer.report.progress import NoProgress
        from cutlayer.run.inputs import prepare, prepare_server, write_shares
        from cutlayer.run.up import up as bring_up
        from cutlayer.settings import slow_dtype
        from cutlayer.transport.allocator import keep_freed_memory

    if devices is not None:
        if resume is not None:
            raise ConfigError("--resume: expected no --devices beside it, got one. The run has its devices.")
        config = config.model_copy(update={"fleet": first_devices(config.fleet, devices)})
    keep_freed_memory()
    if not quiet and (warning := slow_dtype(config)):
        terminal.print(warning, soft_wrap=True)
    noticed = noticing(terminal, quiet=quiet)
    with shown_beside(NoProgress() if quiet else FleetProgress(terminal), config, watched) as display:
        if resume is None:
            simulated = prepare(config, display.stage)
            shares, config = write_shares(simulated, Path(config.out) / "shares")
            for line in (f"training data: {simulated.train.line}", *simulated.notices):
                noticed(line)
        else:
            shares = {file.stem: file for file in (Path(config.data.path) / "devices").iterdir()}
        inputs, fleet = prepare_server(config, display.stage), load_fleet(config.fleet)
        outcome = run_until_signalled(
            bring_up(
                inputs,
                fleet,
                shares,
                display,
                resume=resume is not None,
                noticed=noticed,
                started=started_of(watched),
            ),
            f"cutlayer up --resume {config.out}",
        )
    tell(outcome, quiet=quiet)
