"""Help as a person reads it: what a value is called, not its type in Python, and sentences without line breaks."""

from __future__ import annotations

import re
from inspect import cleandoc
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup, TyperOption

CALLED = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
"""Names of values where their options do not say one, by the type of the value."""


class _Plain:
    """The part that commands and groups of them share: each parameter, and `--help` itself, is named plainly."""

    params: list[Any]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for parameter in self.params:
            _name_plainly(parameter)

    def get_help_option(self, ctx: Any) -> Any:
        return _name_plainly(super().get_help_option(ctx))  # type: ignore[misc]


class PlainCommand(_Plain, TyperCommand):
    """A command whose help names values plainly, and switches not at all."""


class PlainGroup(_Plain, TyperGroup):
    """A group whose help does."""


def _name_plainly(parameter: Any) -> Any:
    if isinstance(parameter, TyperOption) and parameter.metavar is None:
        parameter.metavar = "" if parameter.is_flag else CALLED.get(parameter.type_descriptor.annotation)
    return parameter


def sentences(text: str) -> str:
    """A docstring as help: each paragraph in one line, which the terminal breaks.

    Example:
      >>> sentences("Start a run, and\\n    end it.\\n\\n    It may stop.")
      'Start a run, and end it.\\n\\nIt may stop.'
    """
    return re.sub(r"(?<!\n)\n(?!\n)", " ", cleandoc(text))
