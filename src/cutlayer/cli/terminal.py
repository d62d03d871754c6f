"""What a person sees: the terminal, or the pipe in its place, and nothing that other libraries have to say."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PIPE_COLUMNS = 1000
"""In a pipe nothing is wrapped: a row of a table is a line."""

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

    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, markup=False, highlight=False)


def table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """An empty table in the style of the project.

    Args:
      columns: Headings of columns of text.
      numbers: Headings of columns of numbers, which follow.
    """
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in columns:
        made.add_column(column)
    for column in numbers:
        made.add_column(column, justify="right", no_wrap=True)
    return made
