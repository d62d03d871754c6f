"""`--page` of the commands that hold a run: a page to watch it by."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutlayer.cli.log import as_json, say

if TYPE_CHECKING:
    from cutlayer.config import RunConfig
    from cutlayer.page.asked import PageAsked
    from cutlayer.report.fleet_progress import FleetDisplay

PANEL = "A page to watch by"
PageOption = Annotated[
    str | None,
    typer.Option(
        "--page",
        metavar="[HOST:PORT]",
        help="Serve a page of the run while it goes (cutlayer\\[page]), by default at http://127.0.0.1:7072 or a free "
        "port. Where others can connect, over TLS and with a token. A run that goes on has it again; `none` for none.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]
PageTlsOption = Annotated[
    Path | None,
    typer.Option(
        "--page-tls",
        metavar="FOLDER",
        help="Where others can connect to the page: a folder with server.crt and server.key, such as a fleet's.",
        rich_help_panel=PANEL,
        show_default=False,
    ),
]


def with_address(arguments: Sequence[str]) -> list[str]:
    """The words of a command line in which `--page` may stand without an address: then it gets an empty one.

    Example:
      >>> with_address(["train", "--page", "run.yaml"]), with_address(["train", "--page", "[::1]:7072", "--quiet"])
      (['train', '--page=', 'run.yaml'], ['train', '--page', '[::1]:7072', '--quiet'])
      >>> with_address(["train", "--page"]), with_address(["train", "--page", "none"])
      (['train', '--page='], ['train', '--page', 'none'])
    """
    given = list(arguments)
    for place, word in enumerate(given):
        follows = given[place + 1] if place + 1 < len(given) else "-"
        is_address = follows == "none" or (not follows.startswith("-") and follows.rpartition(":")[2].isdecimal())
        if word == "--page" and not is_address:
            given[place] = "--page="
    return given


def asked_page(address: str | None, tls: Path | None, run: Path | None, roster: Path | None = None) -> PageAsked | None:
    """The page of `--page` and `--page-tls`, or that of the run that goes on. Imports no torch.

    Args:
      address: of `--page`.
      tls: of `--page-tls`.
      run: the folder of `--resume`; None for a new run.
      roster: a fleet folder, whose certificate serves where no other is named.

    Raises:
      UserError: the page cannot be there.
    """
    from cutlayer.page.asked import PageAsked
    from cutlayer.page.session import check_page

    page = PageAsked.of(address, tls, run)
    if page is not None and page.tls is None and roster is not None:
        page = replace(page, tls=roster)
    check_page(page, shows_token=_on_a_terminal())
    return page


@contextmanager
def shown_beside(
    display: FleetDisplay, config: RunConfig, page: PageAsked | None, *, simulated: bool = False
) -> Iterator[FleetDisplay]:
    """A display, open, beside which a page is served if one is asked for.

    Args:
      display: what the terminal shows.
      config: of the run.
      page: of `asked_page`.
      simulated: whether the run's time is that of a modelled fleet.

    Raises:
      ConfigError: The page cannot be there.
    """
    from cutlayer.page.session import beside

    with beside(display, config, page, say, shows_token=_on_a_terminal(), simulated=simulated) as watched:
        yield watched


def _on_a_terminal() -> bool:
    """Whether what is said is for a person's eyes: elsewhere it ends in a log."""
    return sys.stderr.isatty() and not as_json()
