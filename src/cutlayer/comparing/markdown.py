"""compare.md: the tables as Markdown, to be pasted into notes and pull requests."""

from __future__ import annotations

from cutlayer.comparing.results import Results
from cutlayer.comparing.tables import Table, budget_table, target_table


def report_md(results: Results) -> str:
    """The whole page."""
    tables = [table for table in (target_table(results), budget_table(results)) if table is not None]
    seeds = ", ".join(map(str, results.seeds))
    notes = [
        f"Seeds: {seeds}." + (" Mean ± sample standard deviation." if len(results.seeds) > 1 else ""),
        "Bold: the best mean. Times are of the modelled fleet; memory is the cost model's prediction.",
        "`report.html` draws the curves and says how each figure is counted.",
    ]
    failed = [f"- `{name}`: {problem}" for name, problem in results.failed.items()]
    if failed:
        failed = ["Runs that failed; their methods are left out, as a mean needs every seed:", "", *failed, ""]
    return "\n".join(["# Comparison", "", *failed, *("\n".join(_lines(table)) for table in tables), *notes, ""])


def _lines(table: Table) -> list[str]:
    ruler = ["---", *["---:"] * (len(table.columns) - 1)]
    rows = [
        [f"`{label.text}`", *(f"**{cell.whole}**" if cell.best else cell.whole for cell in cells)]
        for label, *cells in table.rows
    ]
    return [f"## {table.title}", "", *("| " + " | ".join(cells) + " |" for cells in (table.columns, ruler, *rows)), ""]
