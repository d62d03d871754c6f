"""The terminal, or the pipe in its place: what a person sees of a command, and nothing that other libraries say."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from cutlayer.cli.log import progress_stream

if TYPE_CHECKING:
    from rich.console import Console

    from cutlayer.report.listing import Listing

AsJson = Annotated[bool, typer.Option("--json", help="Print every figure as JSON, in place of tables and sentences.")]
"""The flag of each command that lists something."""

PIPE_COLUMNS = 10_000
"""Columns of a pipe: nothing is wrapped there, and a row of a table is a line."""

LIBRARIES = ("transformers", "datasets", "huggingface_hub", "peft", "torch")


def quiet_libraries() -> None:
    """Silences the progress bars, logs and warnings of the libraries that we build on; call it before they load.

    What a user has set in the environment or with `python -W` stays.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DATASETS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorBoard brings a part of TensorFlow
    logging.getLogger("torch").setLevel(logging.ERROR)
    if not sys.warnoptions:
        for library in LIBRARIES:
            warnings.filterwarnings("ignore", module=library)


def console() -> Console:
    """Standard output, as wide as the terminal is."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else PIPE_COLUMNS
    return Console(width=width, markup=False, highlight=False)


def noticing(terminal: Console, *, quiet: bool) -> Callable[[str | Listing], None]:
    """The function that prints what a run tells beside its progress: a line, or a table.

    Args:
      terminal: Where.
      quiet: Print nothing.
    """

    def noticed(told: str | Listing) -> None:
        if not quiet:
            terminal.print(told, soft_wrap=isinstance(told, str), markup=False)

    return noticed


def progress_console() -> Console:
    """Standard error, where progress is: results, on standard output, may go into a pipe."""
    from rich.console import Console

    stream = progress_stream()
    width = None if stream.isatty() else PIPE_COLUMNS
    return Console(file=stream, width=width, markup=False, highlight=False)


def print_json(value: object) -> None:
    """One value, for a program that reads standard output."""
    from cutlayer.report.json_lines import to_json

    print(to_json(value, indent=1))


@contextmanager
def starting(terminal: Console, *, quiet: bool = False) -> Iterator[None]:
    """Says at once that something is going on, while what a command needs is imported: seconds of torch.

    Args:
      terminal: Where.
      quiet: Say nothing.
    """
    if quiet:
        yield
    elif terminal.is_interactive:
        with terminal.status("starting"):
            yield
    else:
        from cutlayer.report.lines import Lines
        from cutlayer.report.stage import Stage

        stage = Stage("starting", time.monotonic())
        lines = Lines(terminal, stage.text)
        lines.say(stage.what)
        lines.open()
        try:
            yield
        finally:
            lines.close()
