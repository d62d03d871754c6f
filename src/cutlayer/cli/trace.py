"""`cutlayer trace`: what the machines of a run did, for Perfetto."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cutlayer.cli.terminal import console
from cutlayer.errors import ConfigError


def trace(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder; the run may still be going.")],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="By default trace.json of the run; .gz is compressed.", show_default=False
        ),
    ] = None,
    rounds: Annotated[
        str | None,
        typer.Option("--rounds", metavar="N|FIRST:LAST", help="These rounds only, from 1.", show_default=False),
    ] = None,
) -> None:
    """Write the timeline of a run, machines, links and rounds, for ui.perfetto.dev or chrome://tracing."""
    from cutlayer.config import read_config
    from cutlayer.fleet.profile import load_fleet
    from cutlayer.report.human import human_bytes
    from cutlayer.report.run_folder import RunFolder
    from cutlayer.report.trace import write_trace

    if not (run / "config.yaml").is_file() or not (run / "events.jsonl").is_file():
        raise ConfigError(
            f"RUN: expected a run folder with config.yaml and events.jsonl, got {run}. Give the --out folder of a run."
        )
    first, last = _span(rounds)
    folder, file = RunFolder(run), out or run / "trace.json"
    if not file.parent.is_dir():
        raise ConfigError(f"--out: expected a file in a folder that is there, got {file}. Make the folder.")
    config = read_config(run / "config.yaml")
    clock = "virtual" if folder.simulated else "wall"
    about = {"run": run.resolve().name, "method": config.method.name, "clock": clock}
    events = (event for event in folder.read_events() if first <= event.round + 1 <= last)
    order = [device.name for device in load_fleet(config.fleet).devices]
    count = write_trace(file, events, about, order)
    console().print(f"{file}: {count:,} events, {clock} time, {human_bytes(file.stat().st_size)}", soft_wrap=True)
    console().print("open it at ui.perfetto.dev, which reads it in the browser", soft_wrap=True)


def _span(rounds: str | None) -> tuple[int, float]:
    """The first and the last round.

    Raises:
      ConfigError: It is no such thing.
    """
    if rounds is None:
        return 1, float("inf")
    first, colon, last = rounds.partition(":")
    if not first.isdecimal() or not (last if colon else first).isdecimal():
        raise ConfigError(f"--rounds: expected N or FIRST:LAST, got {rounds!r}. Write for example 3 or 3:5.")
    span = int(first), int(last if colon else first)
    if not 1 <= span[0] <= span[1]:
        raise ConfigError(f"--rounds: expected 1 <= FIRST <= LAST, got {rounds!r}. Write for example 3 or 3:5.")
    return span
