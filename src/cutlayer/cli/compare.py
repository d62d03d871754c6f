"""`cutlayer compare`: several methods on the same data, fleet, budget and seeds; a table, a page, a report."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutlayer.cli.flags import Given
from cutlayer.cli.log import say
from cutlayer.cli.resumed import check_words
from cutlayer.cli.terminal import console, progress_console, starting
from cutlayer.errors import ConfigError

if TYPE_CHECKING:
    from cutlayer.comparing.comparison import Comparison
    from cutlayer.comparing.results import Results
    from cutlayer.comparing.tables import Table
    from cutlayer.report.listing import Listing

DEFAULT_OUT = "runs/compare"


def compare(
    given: Given,
    methods: Annotated[
        list[str], typer.Argument(metavar="METHOD", help="Methods; with options memsfl:order=fifo,cut=2.")
    ],
    *,
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Runs of each method, from --seed on.")] = 1,
    metric: Annotated[
        str | None,
        typer.Option("--metric", metavar="NAME", help="accuracy, macro_f1, perplexity or loss.", show_default=False),
    ] = None,
    target: Annotated[
        float | None,
        typer.Option("--target", metavar="X", help="Value whose cost is compared.", show_default=False),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", help="Runs at once; else what cores and memory allow.", show_default=False),
    ] = None,
) -> None:
    """Run methods under the same data order, spread, budget, evaluation and seeds, each run in its own process.

    Stopped at any moment, the same command goes on; runs that are done are kept. Methods of which a run failed are left
    out of the report, which names them.
    """
    terminal = progress_console()
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs: expected at least 1, got {jobs}. Change it.")
    with starting(terminal, quiet=not terminal.is_interactive):
        comparison = _comparison(given, methods, seeds, metric, target)
        from cutlayer.comparing.carried_out import carried_out
        from cutlayer.comparing.pool import error_of
        from cutlayer.comparing.progress import Progress

    with _interruptible(comparison.folder):
        results, failed = carried_out(
            comparison,
            jobs,
            lambda runs, at_once: Progress(terminal, runs, comparison.metric.name, at_once),
            _command(comparison, given),
            terminal.status("reading the data"),
        )
    if results is not None:
        _tell(results, comparison.folder)
    if failed:
        raise error_of(failed, len(comparison.runs()))


def _comparison(given: Given, methods: list[str], seeds: int, metric: str | None, target: float | None) -> Comparison:
    """The comparison that is asked for, as far as it can be told without reading the data.

    Raises:
      ConfigError: Something in it cannot be.
    """
    if seeds < 1:
        raise ConfigError(f"--seeds: expected at least 1, got {seeds}. Change it.")
    from cutlayer.comparing.entry import parse_entries
    from cutlayer.comparing.metric import metric_of
    from cutlayer.config import read_config
    from cutlayer.methods.table import found

    entries, config = parse_entries(methods), given.config()
    for entry in entries:  # told before torch is imported
        try:
            found(entry.method).check_options(entry.options)
        except ConfigError as error:
            raise ConfigError(f"compare {entry.label}: {error}") from error
    judged_by = metric_of(config.data.task, metric, target)
    check_words(config)
    from cutlayer.comparing.comparison import Comparison

    # a run file's own method and folder are not those of the comparison: only what the command line says of them counts
    said = [pair for pair in given.overrides if pair.startswith(("method.", "out="))]
    told = read_config(None, said, {key: value for key, value in given.values.items() if key == "out"})
    if "name" in told.method.model_fields_set:
        raise ConfigError("-o method.name: expected methods as words behind `compare`, got an option. Leave it out.")
    first = config.train.seed
    return Comparison(
        shared=config,
        for_all=told.method.options,
        entries=entries,
        seeds=tuple(range(first, first + seeds)),
        metric=judged_by,
        target=target,
        folder=Path(told.out if "out" in told.model_fields_set else DEFAULT_OUT),
    )


def _command(comparison: Comparison, given: Given) -> str:
    """The command that was given, but for what decides no figure."""
    words = ["cutlayer", "compare", *(entry.label for entry in comparison.entries), *given.typed()]
    words += ["--seeds", str(len(comparison.seeds)), "--metric", comparison.metric.name]
    return shlex.join(words + ([] if comparison.target is None else ["--target", f"{comparison.target:g}"]))


@contextmanager
def _interruptible(folder: Path) -> Iterator[None]:
    """Says what Ctrl-C leaves behind."""
    try:
        yield
    except KeyboardInterrupt:
        if (folder / "compare.yaml").exists():
            say(f"interrupted: the same command goes on; what was done is in {folder}")
        raise


def _tell(results: Results, folder: Path) -> None:
    from cutlayer.comparing.tables import budget_table, target_table

    terminal = console()
    for shown in (target_table(results), budget_table(results)):
        if shown is not None:
            terminal.print(listed(shown))
    terminal.print(f"report: {folder / 'report.html'}", soft_wrap=True)
    terminal.print(f"tables: {folder / 'compare.md'}, figures: {folder / 'compare.json'}", soft_wrap=True)


def listed(shown: Table) -> Listing:
    """A table of a comparison, for a terminal."""
    from cutlayer.report.listing import Listing

    drawn = Listing(shown.columns[0], numbers=shown.columns[1:], title=f"{shown.title} (* best)")
    for row in shown.rows:
        drawn.add_row(*(f"{cell.whole} *" if cell.best else cell.whole for cell in row))
    return drawn
