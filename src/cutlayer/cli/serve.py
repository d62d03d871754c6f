"""`cutlayer serve`: the server of a real fleet, from a run file to an adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutlayer.cli.flags import Given
from cutlayer.cli.page import PageOption, PageTlsOption, asked_page, shown_beside
from cutlayer.cli.resumed import check_words, config_of, tell
from cutlayer.cli.signals import run_until_signalled
from cutlayer.cli.terminal import noticing, progress_console, starting
from cutlayer.cli.threads import fit_threads
from cutlayer.errors import ConfigError
from cutlayer.reading import counted

if TYPE_CHECKING:
    from cutlayer.config import RunConfig


SITE = "A site: a server whose devices are another run's"


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
            help="Serve devices by N processes, each with the model, one per GPU; by Ray (cutlayer\\[ray]). "
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
    site_of: Annotated[
        str | None,
        typer.Option(
            "--site-of",
            metavar="HOST:PORT",
            help="Be a site of the run that is served there: devices join here, and only means go on (hfl_prune).",
            show_default=False,
            rich_help_panel=SITE,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="Of the site.", show_default=False, rich_help_panel=SITE)
    ] = None,
    ca: Annotated[
        Path | None,
        typer.Option(
            "--ca", metavar="FILE", help="Of a site: its server's ca.crt.", show_default=False, rich_help_panel=SITE
        ),
    ] = None,
    token: Annotated[
        Path | None,
        typer.Option(
            "--token", metavar="FILE", help="Of a site: holds its token; or CUTLAYER_TOKEN does.", rich_help_panel=SITE
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate", metavar="FILE", help="Of a site: device.crt, in place of a token.", rich_help_panel=SITE
        ),
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Of a site: device.key.", rich_help_panel=SITE)
    ] = None,
    leash: Annotated[
        bool, typer.Option("--leash", hidden=True, help="End when standard input closes: whoever started this is gone.")
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume",
            metavar="RUN_DIR",
            help="Go on with the run in this folder, served as it was but for what is said anew.",
            show_default=False,
        ),
    ] = None,
    page: PageOption = None,
    page_tls: PageTlsOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the adapter's path and nothing else.")] = False,
) -> None:
    """Serve a run to devices that join by network; ends with a PEFT adapter and a report of what each device did."""
    way = {"ca": ca, "token": token, "certificate": certificate, "key": key}
    if site_of is not None:
        theirs = {"--span": span, "--min-devices": min_devices, "--resume": resume}
        if words := [word for word, value in theirs.items() if value is not None]:
            raise ConfigError(
                f"{words[0]}: expected none beside --site-of, got one. A site goes on by the same command."
            )
        said = {"host": host, "port": port, "roster": folder, "insecure": insecure, "workers": workers}
        _site(given.config(), site_of, name, way, {**said, "patience": patience}, leash=leash, quiet=quiet)
        return
    if span is not None:  # the run's folder is the other process's
        _lend(given.config(), span, {"host": host, "port": port, "roster": folder, "insecure": insecure})
        return
    if words := [f"--{word}" for word, value in {"name": name, **way}.items() if value is not None]:
        raise ConfigError(f"{words[0]}: expected --site-of beside it, got none. Say whose site it is, or leave it out.")
    terminal = progress_console()
    with starting(terminal, quiet=quiet):
        config = config_of(resume, given, "serve")
        if resume is None:
            check_door(host or "127.0.0.1", folder, insecure=bool(insecure))
        asked = asked_page(page, page_tls, resume, folder or _kept_roster(resume))
        from cutlayer.api.serve import Listening, serving
        from cutlayer.report.fleet_progress import FleetProgress
        from cutlayer.report.progress import NoProgress
        from cutlayer.settings import slow_dtype
        from cutlayer.transport.address import joined

        fit_threads()
        said = {"host": host, "port": port, "roster": folder, "insecure": insecure, "workers": workers}
        how = Listening.of({**said, "min_devices": min_devices, "patience": patience}, resume, asked)
    if not quiet and (warning := slow_dtype(config)):
        terminal.print(warning, soft_wrap=True)
    display = NoProgress() if quiet else FleetProgress(terminal)

    def opened(port: int) -> None:
        terminal.print(
            f"listening on {joined(how.host, port)}, waiting for {counted(how.min_devices, 'device')}", highlight=False
        )

    with shown_beside(display, config, asked) as watched:
        watched.stage("reading the data")
        work = serving(config, watched, opened, how, resume=resume is not None, noticed=noticing(terminal, quiet=quiet))
        outcome = run_until_signalled(work, f"cutlayer serve --resume {config.out}", leash=leash)
    tell(outcome, quiet=quiet)


def _kept_roster(run: Path | None) -> Path | None:
    """The fleet folder with which a run was served; None where there was none."""
    from cutlayer.report.run_folder import RunFolder

    kept = None if run is None else RunFolder(run).read_started().get("roster")
    return None if kept is None else Path(str(kept))


def _site(
    config: RunConfig,
    server: str,
    name: str | None,
    way: Mapping[str, Path | None],
    said: Mapping[str, Any],
    *,
    leash: bool,
    quiet: bool,
) -> None:
    """Serves a site's devices until the run is over."""
    from cutlayer.device.token import read_token
    from cutlayer.transport.tls import credentials_for

    if name is None:
        raise ConfigError("--name: expected the site's name beside --site-of, got none. Add --name SITE.")
    check_words(config)
    check_door(said["host"] or "127.0.0.1", said["roster"], insecure=bool(said["insecure"]))
    credentials_for(server, way["ca"], way["certificate"], way["key"], insecure=bool(said["insecure"]))
    read_token(way["token"], os.environ)
    terminal = progress_console()
    with starting(terminal, quiet=quiet):
        from cutlayer.api.serve import Listening, SiteOf, siting
        from cutlayer.transport.address import joined

    fit_threads()
    how = Listening.of(said, None)

    def opened(port: int) -> None:
        terminal.print(f"{name}: listening on {joined(how.host, port)}", highlight=False)

    def notice(line: str) -> None:
        if not quiet:
            terminal.print(f"{name}: {line}", soft_wrap=True, markup=False, highlight=False)

    work = siting(config, SiteOf(server, name, **way), opened, how, notice)
    run_until_signalled(work, "the same command", leash=leash)
    notice("the run is over")


def check_door(host: str, folder: Path | None, *, insecure: bool) -> None:
    """Looks at where a server is to listen and at its fleet folder, before seconds of imports.

    Raises:
      ConfigError: It would be open to others by accident, or the folder is none.
    """
    from cutlayer.gate.roster import Roster
    from cutlayer.transport.exposure import check_exposure

    check_exposure(host, tls=folder is not None, authenticated=folder is not None, insecure=insecure)
    if folder is not None:
        _ = Roster(folder).kind


def _lend(config: RunConfig, span: str, said: Mapping[str, Any]) -> None:
    """Runs blocks until this process is told to stop."""
    from cutlayer.fleet.profile import parse_blocks

    first, end = parse_blocks(span, "--span")
    check_words(config)
    check_door(said["host"] or "127.0.0.1", said["roster"], insecure=bool(said["insecure"]))
    terminal = progress_console()
    with starting(terminal):
        from cutlayer.api.serve import Listening, lending
        from cutlayer.transport.address import joined

    how = Listening.of(said, None)

    def opened(port: int) -> None:
        terminal.print(f"listening on {joined(how.host, port)}, running blocks {first} to {end - 1}", highlight=False)

    with terminal.status("reading the model"):
        work = lending(config, (first, end), opened, how)
    run_until_signalled(work, f"cutlayer serve --span {span}")
