"""The common part of commands that hold a run: the config of one that goes on, and what is said at its end."""

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
    """The config of a new run, or of the run that goes on, wherever its folder stands by now. Imports no torch.

    What can be told without it is told here: a person should not wait for it to hear of a word that is misspelt.

    Raises:
      UserError: Something in it cannot be, or something describes a run that is there already.
    """
    from cutlayer.config import read_config
    from cutlayer.report.run_folder import RunFolder
    from cutlayer.run.longer import free_folder, lengthen
    from cutlayer.run.unsaid import on_real_machines

    if resume is None:
        config = given.config()
        if "out" not in config.model_fields_set:  # nobody named a folder, so the next free one does
            config = config.model_copy(update={"out": str(free_folder(Path(config.out)))})
        RunFolder.check_free(Path(config.out))  # here rather than after the data has been read
        if command != "train":
            config = on_real_machines(config, declared=command == "up")
        check_words(config)
        return config
    more = given.alone("train.rounds")
    if more is None and given.spelled():
        raise ConfigError(
            f"--resume: expected nothing that describes a run beside it but more --rounds, got "
            f"{', '.join(given.spelled())}. "
            f"The run goes on as {resume / 'config.yaml'} says: leave them out, or start a new run."
        )
    folder = RunFolder.reopen(resume)
    folder.check_command(command)
    if more is not None and (line := lengthen(folder, more)):
        say(line)
    return read_config(folder.path / "config.yaml", values={"out": str(resume)})


LOST = 3
"""The exit code of a run that ended as it should, but for devices that took part and were lost."""


def check_words(config: RunConfig) -> None:
    """Looks at the words of a config: method and options, fleet, hardware, and whether data and model are there.

    Raises:
      UserError: There is none such.
    """
    from cutlayer.data.source import check_place
    from cutlayer.fleet.profile import MEASURED, load_fleet
    from cutlayer.methods.table import found
    from cutlayer.model.place import check_place as check_model
    from cutlayer.reading import check_hardware

    found(config.method.name, config.method.sha256).check_options(config.method.options)
    if config.fleet != MEASURED:
        load_fleet(config.fleet)
    check_place(config.data.path)
    check_model(config.model.name, config.model.revision)
    check_hardware(config.hardware)


def remarks(outcome: Outcome) -> list[str]:
    """Lines on what somebody should not overlook in an ended run, and on how its figures are meant."""
    from cutlayer.report.human import human_bytes
    from cutlayer.report.remarks import idle_lines

    *devices, server = outcome.devices
    blocks = outcome.summary["blocks"]
    split = server.busy_seconds > 0 and any(row.cut is not None and row.cut < blocks for row in devices)
    lines = idle_lines(outcome.devices, split=split)
    if (wire := outcome.summary.get("on_the_wire")) is not None:
        up, down = human_bytes(wire["bytes_up"]), human_bytes(wire["bytes_down"])
        lines.append(
            "up and down above are the rounds' messages, over the whole run; with parts of the model, repeats and "
            f"signs of life it was {up} up and {down} down since this process began"
        )
    return lines


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
    terminal.print(device_table(outcome.devices, outcome.summary["blocks"]))
    changes = [
        f"{name} {outcome.before[name]:.4g} -> {value:.4g}"
        for name, value in outcome.metrics.items()
        if name != "tokens"  # of the validation set: the same before and after
    ]
    terminal.print(", ".join(changes), soft_wrap=True)
    for line in remarks(outcome):
        terminal.print(line, soft_wrap=True)
    saved = outcome.summary["totals"]
    if saved["saved_bytes"]:
        work, sent = f"{saved['saved_flops'] / 1e9:.3g} GFLOP", human_bytes(saved["saved_bytes"])
        terminal.print(f"kept activations saved {work} on devices and {sent} up", soft_wrap=True)
    best, rounds = outcome.summary["exported_round"] + 1, saved["rounds"]
    if best != rounds:
        terminal.print(f"exported: round {best}, the best of {rounds}", soft_wrap=True)
    terminal.print(f"{outcome.adapter.name}: {outcome.adapter}", soft_wrap=True)
    terminal.print(f"run folder: {outcome.folder}", soft_wrap=True)
