"""`cutlayer methods`: the published systems that there are."""

from __future__ import annotations

from cutlayer.cli.terminal import console, table


def methods() -> None:
    """List the methods, with their options and defaults."""
    from cutlayer.methods.described import described
    from cutlayer.methods.table import TABLE

    shown = table("method", "what it does", "options (-o method.KEY=VALUE)", "paper", "evidence")
    for name, row in TABLE.items():
        options = " ".join(f"{key}={option.typed}" for key, option in described(name).options.items())
        shown.add_row(name, row.summary, options, row.paper, row.evidence)
    console().print(shown)
