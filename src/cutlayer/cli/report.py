"""`cutlayer report`: a run, finished or not, as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.", show_default=False)],
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to; by default report.html in it.", show_default=False),
    ] = None,
) -> None:
    """Write a run as one page, which needs nothing else: loss, metrics, devices, a timeline. Every run leaves one."""
    from cutlayer.files import write_atomically
    from cutlayer.page.run_page import report_of
    from cutlayer.reading import reading
    from cutlayer.report.run_folder import RunFolder

    run = RunFolder.reopen(folder)
    html, file = report_of(run), out or folder / "report.html"
    with reading("--out", "a file that can be written"):
        write_atomically(file, html)
    print(file)
