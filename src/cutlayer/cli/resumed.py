"""What commands that hold a run share: the config of one that goes on, and what is said at its end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cutlayer.cli.flags import Given
from cutlayer.cli.log import say
from cutlayer.cli.terminal import console
from cutlayer.errors import ConfigError

if TYPE_CHECKING:
    from cutlayer.config import RunConfig
    from cutlayer.run.ending import Outcome


def config_of(resume: Path | None, given: Given, command: str) -> RunConfig:
    """The config of a new run, or of the run that goes on, wherever its folder stands by now.

    Raises:
      ConfigError: Something in it cannot be, or something describes a run that is there already.
    """
    from cutlayer.config import read_config
    from cutlayer.report.run_folder import RunFolder

    if resume is None:
        config = given.config()
        RunFolder.check_free(Path(config.out))  # here rather than after the data has been read
        return config
    if given.spelled():
        raise ConfigError(
            f"--resume: expected nothing that describes a run beside it, got {', '.join(given.spelled())}. "
            f"The run goes on as {resume / 'config.yaml'} says: leave them out, or start a new run."
        )
    folder = RunFolder.reopen(resume)
    folder.check_command(command)
    return read_config(folder.path / "config.yaml", values={"out": str(resume)})


LOST = 3
"""The exit code of a run that ended as it should, but for devices that took part and were lost."""


def tell(outcome: Outcome, *, quiet: bool) -> None:
    """Says what a run ended with.

    Raises:
      typer.Exit: With `LOST`, where devices were lost.
    """
    if quiet:
        print(outcome.adapter)
    else:
        _tell(outcome)
    if outcome.lost:
        say("lost: " + ", ".join(f"{device} ({why})" for device, why in outcome.lost.items()))
        raise typer.Exit(LOST)


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
    best, rounds = outcome.summary["exported_round"] + 1, saved["rounds"]
    if best != rounds:
        terminal.print(f"exported: round {best}, the best of {rounds}", soft_wrap=True)
    terminal.print(f"{outcome.adapter.name}: {outcome.adapter}", soft_wrap=True)
    terminal.print(f"run folder: {outcome.folder}", soft_wrap=True)
