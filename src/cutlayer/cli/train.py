"""`cutlayer train`: a run from its file or its flags to an adapter."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutlayer.cli.flags import Given
from cutlayer.cli.terminal import console
from cutlayer.errors import ConfigError

if TYPE_CHECKING:
    from cutlayer.config import RunConfig
    from cutlayer.run import Outcome


def train(
    given: Given,
    *,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN_DIR", help="Go on with the run in this folder.", show_default=False),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the adapter's path and nothing else.")] = False,
) -> None:
    """Fine-tune a model on a fleet; ends with a PEFT adapter and a report of what each device did."""
    config = given.config() if resume is None else _config_of(resume, given)
    from cutlayer.prepare import prepare
    from cutlayer.report.progress import NoProgress, Progress
    from cutlayer.report.run_folder import RunFolder
    from cutlayer.simulation import simulate

    out = Path(config.out)
    if resume is None and (out / "config.yaml").exists():
        RunFolder.create(out)  # refuses, here rather than after the data has been read
    terminal = console()
    with terminal.status("reading the data"):
        ingredients = prepare(config)
    with _interruptible(out), NoProgress() if quiet else Progress(terminal) as display:
        outcome = simulate(ingredients, display, resume=resume is not None)
    if quiet:
        print(outcome.adapter)
    else:
        _tell(outcome)


def _config_of(resume: Path, given: Given) -> RunConfig:
    """The config of the run that goes on, wherever its folder stands by now."""
    from cutlayer.config import read_config
    from cutlayer.report.run_folder import RunFolder

    if given.spelled():
        raise ConfigError(
            f"--resume: expected nothing that describes a run beside it, got {', '.join(given.spelled())}. "
            f"The run goes on as {resume / 'config.yaml'} says: leave them out, or start a new run."
        )
    return read_config(RunFolder.reopen(resume).path / "config.yaml", values={"out": str(resume)})


@contextmanager
def _interruptible(out: Path) -> Iterator[None]:
    """Says what Ctrl-C leaves behind."""
    try:
        yield
    except KeyboardInterrupt:
        if (out / "config.yaml").exists():
            print(f"interrupted: go on with cutlayer train --resume {out}", file=sys.stderr)
        raise


def _tell(outcome: Outcome) -> None:
    from cutlayer.report.devices import device_table
    from cutlayer.report.human import human_bytes

    terminal = console()
    terminal.print(device_table(outcome.devices))
    changes = [
        f"{name} {outcome.before[name]:.4g} -> {value:.4g}"
        for name, value in outcome.metrics.items()
        if name != "tokens"  # of the validation set: the same before and after
    ]
    terminal.print(", ".join(changes), soft_wrap=True)
    saved = outcome.summary["totals"]
    if saved["saved_bytes"]:
        work, sent = f"{saved['saved_flops'] / 1e9:.3g} GFLOP", human_bytes(saved["saved_bytes"])
        terminal.print(f"kept activations saved {work} on devices and {sent} up", soft_wrap=True)
    terminal.print(f"adapter: {outcome.adapter}", soft_wrap=True)
    terminal.print(f"run folder: {outcome.folder}", soft_wrap=True)
