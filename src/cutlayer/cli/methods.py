"""`cutlayer methods`: the published systems that there are, and what one of them is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cutlayer.cli.terminal import console, table
from cutlayer.errors import ConfigError

if TYPE_CHECKING:
    from cutlayer.methods.table import MethodRow


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[METHOD]", help="Show this one: a name, FILE.py:FUNCTION or MODULE:FUNCTION.", show_default=False
        ),
    ] = None,
) -> None:
    """List the methods, with their options and defaults; with a name, show what one is and what its options decide."""
    from cutlayer.methods.table import TABLE, found, offered

    if name is not None:
        _show(found(name))
        return
    shown = table("method", "what it does", "options (-o method.KEY=VALUE)", "paper", "evidence")
    problems = []
    for known in [*TABLE, *offered()]:
        try:
            row = found(known)
            options = " ".join(f"{key}={option.typed}" for key, option in row.description.options.items())
        except ConfigError as error:
            problems.append(f"{known}: {error}")
        else:
            shown.add_row(known, row.summary, options, row.paper, row.evidence)
    console().print(shown)
    for problem in problems:
        console().print(f"offered by an installed package, but no method: {problem}", soft_wrap=True, highlight=False)


def _show(row: MethodRow) -> None:
    """One method: title, origin, options, notes."""
    said, terminal = row.description, console()
    for line in (
        said.title,
        f"paper: {said.paper}; evidence: {said.evidence}",
        f"text: {row.source.path}" + ("" if row.ours else f", SHA-256 {row.source.sha256}"),
    ):
        terminal.print(line, soft_wrap=True, highlight=False)
    if said.options:
        shown = table("option (-o method.KEY=VALUE)", "kind", "default", "what it decides")
        for key, option in said.options.items():
            shown.add_row(key, option.kind, option.typed, option.help)
        terminal.print(shown)
    for note in said.notes:
        terminal.print(note, highlight=False)
