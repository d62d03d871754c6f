"""`--page` of the commands that hold a run: a page to watch it by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cutlayer.cli.terminal import console
from cutlayer.errors import ConfigError

if TYPE_CHECKING:
    from cutlayer.config import RunConfig
    from cutlayer.report.fleet_progress import FleetDisplay

PANEL = "A page to watch by"
PageOption = Annotated[
    str | None,
    typer.Option(
        "--page",
        metavar="[HOST:PORT]",
        help="Serve a page of the run while it goes (cutlayer[page]), by default at http://127.0.0.1:7072 or a free "
        "port. Where others can connect, over TLS and with a token that is printed.",
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
    """
    given = list(arguments)
    for place, word in enumerate(given):
        follows = given[place + 1] if place + 1 < len(given) else "-"
        if word == "--page" and (follows.startswith("-") or not follows.rpartition(":")[2].isdecimal()):
            given[place] = "--page="
    return given


@contextmanager
def shown_beside(
    display: FleetDisplay, config: RunConfig, address: str | None, tls: Path | None, *, simulated: bool = False
) -> Iterator[FleetDisplay]:
    """A display, open, beside which a page is served if one is asked for.

    Args:
      display: what the terminal shows.
      config: of the run.
      address: of `--page`; None for no page.
      tls: of `--page-tls`.
      simulated: whether the run's time is that of a modelled fleet.

    Raises:
      ConfigError: The page cannot be there.
    """
    if address is None:
        if tls is not None:
            raise ConfigError(
                f"--page-tls: expected --page HOST:PORT beside it, got {tls} alone. Add it, or leave it out."
            )
        with display:
            yield display
        return
    from cutlayer.page.live import Watched
    from cutlayer.page.session import page_beside

    def said(line: str) -> None:
        console().print(line, soft_wrap=True, markup=False)

    with page_beside(config, address, tls, said, simulated=simulated) as live, Watched(display, live) as watched:
        yield watched
