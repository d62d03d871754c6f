"""`cutlayer methods`: the published systems that there are, and what one of them is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cutlayer.cli.terminal import AsJson, console, print_json
from cutlayer.errors import ConfigError

if TYPE_CHECKING:
    from cutlayer.methods.table import MethodRow


def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="METHOD", help="Show this one: a name, FILE.py:FUNCTION or MODULE:FUNCTION.", show_default=False
        ),
    ] = None,
    *,
    as_json: AsJson = False,
) -> None:
    """List the methods, with their options and defaults; with a name, show what one is and what its options decide."""
    from cutlayer.methods.table import TABLE, found, offered
    from cutlayer.report.listing import Listing

    if name is not None and as_json:
        print_json(_figures(found(name), name))
        return
    if name is not None:
        _show(found(name))
        return
    options = "options (-o method.KEY=VALUE)"
    shown = Listing("method", "what it does", options, "paper", "evidence", prose=("what it does", options))
    problems, rows = [], []
    for known in [*TABLE, *offered()]:
        try:
            row = found(known)
            typed = " ".join(f"{key}={option.typed}" for key, option in row.description.options.items())
        except ConfigError as error:
            problems.append(f"{known}: {error}")
        else:
            shown.add_row(known, row.summary, typed, row.paper, row.evidence)
            rows.append(_figures(row, known))
    if as_json:
        print_json(rows)
        return
    console().print(shown)
    for problem in problems:
        console().print(f"offered by an installed package, but no method: {problem}", soft_wrap=True, highlight=False)


def _figures(row: MethodRow, name: str) -> dict[str, object]:
    """One method, for a program."""
    said = row.description
    options = {
        key: {"kind": option.kind, "default": option.typed, "help": option.help} for key, option in said.options.items()
    }
    return {
        "method": name,
        "summary": row.summary,
        "title": said.title,
        "paper": said.paper,
        "evidence": said.evidence,
        "options": options,
        "notes": list(said.notes),
        "sha256": row.source.sha256,
    }


def _show(row: MethodRow) -> None:
    """One method: title, origin, options, notes."""
    from cutlayer.methods.described import spelled
    from cutlayer.report.listing import Listing

    said, terminal = row.description, console()
    for line in (
        said.title,
        f"paper: {said.paper}; evidence: {said.evidence}",
        f"text: {row.source.path}" + ("" if row.ours else f", SHA-256 {row.source.sha256}"),
    ):
        terminal.print(line, soft_wrap=True, highlight=False)
    if said.options:
        decides = "what it decides"
        shown = Listing("option", "default", "a value is", decides, prose=(decides,), most=("default", decides))
        for key, option in said.options.items():
            shown.add_row(key, option.typed, in_words(option.kind), option.help)
        terminal.print(shown)
        terminal.print("Set one with -o method.OPTION=VALUE.", highlight=False)
    if said.neutral:
        options = ", ".join(f"{key}={spelled(value)}" for key, value in said.neutral.items())
        terminal.print(f"One device trains as ordinary training does with {options}.", highlight=False)
    for note in said.notes:
        terminal.print(note, highlight=False)


KINDS = {"int": "a whole number", "float": "a number", "str": "a word", "bool": "true or false", "None": "null"}
"""Words for the types of options, as a person says them."""


def in_words(kind: str) -> str:
    """A kind of option in words.

    Example:
      >>> in_words("int | str | None")
      'a whole number, a word or null'
    """
    *first, last = [KINDS[word.strip()] for word in kind.split("|")]
    return f"{', '.join(first)} or {last}" if first else last
