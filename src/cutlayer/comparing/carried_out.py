"""A comparison from its check to its report: what `cutlayer compare` and `cutlayer.compare` share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from cutlayer.comparing.comparison import Comparison, Run, alone
from cutlayer.comparing.pool import Display, Failure, carry_out, share_out
from cutlayer.comparing.reports import write_reports
from cutlayer.comparing.results import Results
from cutlayer.fleet.profile import load_fleet


def carried_out(
    comparison: Comparison,
    jobs: int | None,
    display: Callable[[Sequence[Run], int], AbstractContextManager[Display]],
    command: str,
    checking: AbstractContextManager[object],
) -> tuple[Results | None, list[Failure]]:
    """Checks the comparison, carries its runs out and writes its reports.

    Args:
      comparison: What is asked for.
      jobs: Runs at once; None for as many as cores and memory allow.
      display: Makes what is told, of all runs and how many there are at once.
      command: By which it can be asked for again, for the reports.
      checking: Entered while the data is read.

    Returns:
      The results, if every run of a method has ended, and the runs that failed.

    Raises:
      UserError: Something that is asked for cannot be; nothing is written then.
    """
    with checking:
        inputs = comparison.check()
    comparison.write()
    runs = comparison.runs()
    share = share_out(len(runs), jobs, inputs)
    with alone(comparison.folder):
        with display(runs, share.jobs) as shown:
            failed = carry_out(runs, shown, share)
        fleet = load_fleet(comparison.shared.fleet)
        return write_reports(comparison, fleet, command, {one.run.name: one.problem for one in failed}), failed
