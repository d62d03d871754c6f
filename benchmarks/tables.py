"""Helpers that the scripts share beside models: a fresh process, one table, one JSON file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console

from cutlayer.cli.terminal import PIPE_COLUMNS
from cutlayer.errors import ConfigError
from cutlayer.files import write_atomically
from cutlayer.report.listing import Listing
from cutlayer.report.summary import versions

T = TypeVar("T")


def in_fresh_process(function: Callable[..., T], *args: Any) -> T:
    """`function(*args)` in an interpreter of its own, with one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"  # inherited; torch reads it when it is imported
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def require_device(device: str) -> None:
    """Raises ConfigError unless torch can compute there."""
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device: expected cpu (torch {torch.__version__} sees no CUDA device), got {device}. "
            "Run this where there is a GPU, with a CUDA build of torch."
        )


def terminal() -> Console:
    """Standard output; in a pipe a table is as wide as it needs."""
    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, markup=False)


def publish(tables: Sequence[Listing], path: Path, settings: dict[str, Any], rows: dict[str, Any]) -> None:
    """Prints the tables and writes the JSON: settings, rows, versions and the load of the machine (1, 5, 15 min)."""
    console, load = terminal(), os.getloadavg()
    for table in tables:
        console.print(table)
    console.print(f"load average: {', '.join(f'{value:.1f}' for value in load)} on {os.cpu_count()} cores")
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "rows": rows, "load_average": load, "versions": versions()}
    write_atomically(path, json.dumps(content, indent=2, default=str))
    console.print(f"written to {path}")
