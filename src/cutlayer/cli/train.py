"""`cutlayer train`: a run from its file or its flags to an adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cutlayer.cli.flags import Given
from cutlayer.cli.log import say
from cutlayer.cli.page import PageOption, PageTlsOption, asked_page, shown_beside
from cutlayer.cli.resumed import config_of, tell
from cutlayer.cli.terminal import noticing, progress_console, starting
from cutlayer.cli.threads import fit_threads


def train(
    given: Given,
    *,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN_DIR", help="Go on with the run in this folder.", show_default=False),
    ] = None,
    page: PageOption = None,
    page_tls: PageTlsOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the adapter's path and nothing else.")] = False,
) -> None:
    """Fine-tune a model on a fleet; ends with a PEFT adapter and a report of what each device did."""
    terminal = progress_console()
    with starting(terminal, quiet=quiet):
        config, watched = config_of(resume, given, "train"), asked_page(page, page_tls, resume)
        from cutlayer.page.asked import started_of
        from cutlayer.report.progress import NoProgress, Progress
        from cutlayer.run.inputs import prepare
        from cutlayer.run.simulated import simulate
        from cutlayer.settings import slow_dtype

        fit_threads()
    if not quiet and (warning := slow_dtype(config)):
        terminal.print(warning, soft_wrap=True)
    noticed = noticing(terminal, quiet=quiet)
    beside = NoProgress() if quiet else Progress(terminal)
    with _interruptible(Path(config.out)), shown_beside(beside, config, watched, simulated=True) as display:
        inputs = prepare(config, display.stage)
        for line in (f"training data: {inputs.train.line}", *inputs.notices):
            noticed(line)
        outcome = simulate(inputs, display, resume=resume is not None, noticed=noticed, started=started_of(watched))
    tell(outcome, quiet=quiet)


@contextmanager
def _interruptible(out: Path) -> Iterator[None]:
    """Says what Ctrl-C leaves behind."""
    try:
        yield
    except KeyboardInterrupt:
        if (out / "config.yaml").exists():
            say(f"interrupted: go on with cutlayer train --resume {out}")
        raise
