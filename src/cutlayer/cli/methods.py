"""`cutlayer methods`: the published systems that there are."""

from __future__ import annotations

from typing import Any

from cutlayer.cli.terminal import console, table


def methods() -> None:
    """List the methods, with their options and defaults."""
    from cutlayer.methods.table import TABLE

    shown = table("method", "what it does", "options (-o method.KEY=VALUE)", "paper", "evidence")
    for name, row in TABLE.items():
        options = " ".join(f"{key}={_as_typed(value)}" for key, value in row.options.items())
        shown.add_row(name, row.summary, options, row.paper, row.evidence)
    console().print(shown)


def _as_typed(value: Any) -> str:
    """A default as -o takes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
