"""Writes what a comparison came to: compare.json, compare.md, report.html."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from cutlayer.comparing.comparison import Comparison, Run
from cutlayer.comparing.markdown import report_md
from cutlayer.comparing.page import report_html
from cutlayer.comparing.results import Results, read_results
from cutlayer.files import write_atomically
from cutlayer.fleet.profile import Fleet
from cutlayer.report.json_lines import to_json
from cutlayer.report.run_folder import RunFolder, keeping_last_round
from cutlayer.types import Event


def write_reports(asked: Comparison, fleet: Fleet, command: str, failed: Mapping[str, str]) -> Results | None:
    """Writes all three, of the methods all of whose runs are done; nothing where there is none.

    Args:
      asked: what was asked for.
      fleet: its machines.
      command: what a person types to get it again.
      failed: by the name of a run that failed, what it said last.
    """
    comparison = asked.of_what_is_done()
    if comparison is None:
        return None
    results = read_results(comparison, failed)
    first = [run for run in comparison.runs() if run.seed == comparison.seeds[0]]
    rounds = {run.entry.label: last_round(run) for run in first}
    write_atomically(comparison.folder / "compare.json", to_json(asdict(results), indent=1) + "\n")
    write_atomically(comparison.folder / "compare.md", report_md(results))
    write_atomically(comparison.folder / "report.html", report_html(results, fleet, rounds, command))
    return results


def last_round(run: Run) -> list[Event]:
    """Events of all machines in the last round of a run."""
    kept: list[Event] = []
    for _ in keeping_last_round(RunFolder(run.folder).read_events(), kept):
        pass
    return kept
