"""`cutlayer recommend`: of all methods those that fit a model, data and fleet, and what a round of each would take."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutlayer.cli.flags import Given
from cutlayer.cli.resumed import check_words
from cutlayer.cli.terminal import console, progress_console, starting
from cutlayer.errors import ConfigError
from cutlayer.methods.described import spelled
from cutlayer.reading import counted
from cutlayer.report.human import human_bytes, human_seconds

if TYPE_CHECKING:
    from cutlayer.report.listing import Listing
    from cutlayer.run.inputs import RunInputs
    from cutlayer.run.recommended import Choice, Fits, OnDevice, Unfit

OWN = " *"
"""Behind the run's own method, in the table."""


def recommend(
    given: Given,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print every figure as JSON, in place of the table.")] = False,
) -> None:
    """Show which methods fit this model, data and fleet, sorted by the time of a round, and why others do not.

    Every method is rehearsed with its default options, the run's own with those of the run file. Reads no weight and
    trains nothing.
    """
    config, progress = given.config(), progress_console()
    check_words(config)
    with starting(progress, quiet=not progress.is_interactive):
        from cutlayer.cli.plan import typical_tokens
        from cutlayer.run.inputs import gathered
        from cutlayer.run.recommended import Fits, Unfit, choices, judged

    with progress.status("reading the data") as status:
        inputs = gathered(config.self_contained())
        fleet = config.fleet if isinstance(config.fleet, str) else inputs.fleet.name
        num_tokens, found = typical_tokens(inputs), list[Fits | Unfit]()
        for choice in choices(inputs):
            status.update(f"rehearsing {choice.label}")
            found.append(judged(choice, inputs, num_tokens))
    fits = sorted((one for one in found if isinstance(one, Fits)), key=lambda one: (one.seconds, one.choice.label))
    unfit = [one for one in found if isinstance(one, Unfit)]
    if as_json:
        named = {"model": config.model.name, "fleet": fleet}
        print(json.dumps({**named, **figures(inputs, num_tokens, fits, unfit)}, indent=2))
    else:
        number = f"{len(inputs.fleet.devices)} device{'s' if len(inputs.fleet.devices) > 1 else ''}"
        _tell(f"{config.model.name} on fleet {fleet}, {number}", inputs, num_tokens, fits, unfit)
    if not fits:
        raise ConfigError(
            f"recommend: expected a method that fits fleet {fleet}, got none of {len(found)}. Choose a "
            "smaller model, batch (--batch-size) or length (--max-length), or leave out the smallest devices."
        )


def _tell(where: str, inputs: RunInputs, num_tokens: int, fits: Sequence[Fits], unfit: Sequence[Unfit]) -> None:
    train, terminal = inputs.config.train, console()

    def say(line: str) -> None:
        terminal.print(line, soft_wrap=True)

    steps = counted(train.local_steps, "step")
    say(f"{where}; a round of {steps} with batches of {train.batch_size} x {num_tokens} tokens")
    if fits:
        terminal.print(fits_table(fits))
        for line in _legend(fits):
            say(line)
    if unfit:
        say("does not fit:")
        for one in unfit:
            say(f"  {_marked(one.choice)}: {one.why}")


def _legend(fits: Sequence[Fits]) -> list[str]:
    own = "* the run's method, with the options that the run gives it; the others have their defaults."
    return [
        "busy, idle: mean over devices; server: part of the round in which it computes; memory: the fullest device.",
        "leaves: what goes up beside activations and adapters; backward: whether devices run backward passes.",
        *([own] if any(one.choice.own for one in fits) else []),
        _advice(fits),
    ]


def _advice(fits: Sequence[Fits]) -> str:
    """The first of all whose text stays where it is; whoever uses this has text that must."""
    private = next((one for one in fits if one.text is None), None)
    where = "The shortest round in which no text leaves a device" if private else "The shortest round"
    command = command_of((private or fits[0]).choice)
    return f"{where}: {command}. It may teach less than a longer one (docs/choosing.md)."


def _marked(choice: Choice) -> str:
    return f"{choice.label}{OWN if choice.own else ''}"


def command_of(choice: Choice) -> str:
    """The flags to lay over the run file to have this choice; words instead where the run as it is has it."""
    words = choice.varied if choice.own else choice.options
    options = [f"-o method.{option}={spelled(word)}" for option, word in words.items()]
    if choice.own:
        return " ".join(options) or "the run as it is"
    return " ".join([f"--method {choice.name}", *options])


# ------------------------------------------------------------------ the table


def _mean(one: Fits, part: Callable[[OnDevice], float]) -> str:
    return f"{fmean(map(part, one.devices.values())):.0%}"


def _fullest(one: Fits) -> str:
    return f"{max(device.memory_bytes / device.of_bytes for device in one.devices.values()):.0%}"


def _cuts(one: Fits) -> str:
    """The fewest and the most blocks on a device; `all` where each holds the whole model."""
    devices = one.devices.values()
    if all(device.whole for device in devices):
        return "all"
    cuts = sorted({device.cut for device in devices})
    return str(cuts[0]) if len(cuts) == 1 else f"{cuts[0]}-{cuts[-1]}"


def _leaves(one: Fits) -> str:
    labels = one.labels_leave and one.text != "as labels"  # else they are the text
    words = [word for word, leaves in (("labels", labels), ("text", one.text is not None)) if leaves]
    return ", ".join(words) or "-"


NUMBERS: dict[str, Callable[[Fits], str]] = {
    "round": lambda one: human_seconds(one.seconds),
    "up": lambda one: human_bytes(one.bytes_up),
    "down": lambda one: human_bytes(one.bytes_down),
    "samples": lambda one: str(one.samples),
    "busy": lambda one: _mean(one, lambda device: device.busy),
    "idle": lambda one: _mean(one, lambda device: device.idle),
    "server": lambda one: f"{one.server_busy:.0%}",
    "memory": _fullest,
}
"""Columns of numbers, by their heading."""
WORDS: dict[str, Callable[[Fits], str]] = {
    "cut": _cuts,
    "leaves": _leaves,
    "backward": lambda one: "yes" if one.backward else "no",
    "waits": lambda one: one.waits,
}
"""Columns of words, by their heading."""


def fits_table(fits: Sequence[Fits]) -> Listing:
    """One row for each choice that fits, in the order given."""
    from cutlayer.report.listing import Listing

    shown = Listing("method", numbers=list(NUMBERS), most=("round", "cut", "leaves", "memory", "up", "down"))
    for heading in WORDS:
        shown.add_column(heading)
    for one in fits:
        shown.add_row(_marked(one.choice), *(cell(one) for cell in (*NUMBERS.values(), *WORDS.values())))
    return shown


# ------------------------------------------------------------------ JSON


def figures(inputs: RunInputs, num_tokens: int, fits: Sequence[Fits], unfit: Sequence[Unfit]) -> dict[str, Any]:
    """Every figure, as JSON has it: bytes, seconds, and parts from 0 to 1."""
    train, server = inputs.config.train, inputs.fleet.server
    return {
        "round": {"local_steps": train.local_steps, "batch_size": train.batch_size, "tokens": num_tokens},
        "fits": [{**_named(one.choice), **_figures(one, server.memory_bytes)} for one in fits],
        "does_not_fit": [{**_named(one.choice), "why": one.why} for one in unfit],
    }


def _named(choice: Choice) -> dict[str, Any]:
    return {"label": choice.label, "method": choice.name, "options": dict(choice.options), "own": choice.own}


def _figures(one: Fits, server_memory_bytes: int) -> dict[str, Any]:
    return {
        "seconds": one.seconds,
        "bytes_up": one.bytes_up,
        "bytes_down": one.bytes_down,
        "samples": one.samples,
        "labels_leave": one.labels_leave,
        "text_leaves": one.text,
        "devices_run_backward": one.backward,
        "waits": one.waits,
        "server": {"busy": one.server_busy, "memory_bytes": one.server_bytes, "of_bytes": server_memory_bytes},
        "devices": {name: asdict(device) for name, device in one.devices.items()},
    }
