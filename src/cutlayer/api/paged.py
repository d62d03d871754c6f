"""A page beside a run that Python has started."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from cutlayer.config import RunConfig
from cutlayer.page.asked import NO_PAGE, PageAsked
from cutlayer.page.session import beside
from cutlayer.report.fleet_progress import FleetDisplay

OnPage = Callable[[str], None]
"""Called with where the page is, in a line."""


def page_of(
    page: str | bool | None, tls: str | Path | None, run: Path | None, roster: Path | None = None
) -> PageAsked | None:
    """The page that a caller asks for.

    Args:
      page: HOST:PORT; True for the default address, False for no page, None for what is left as it is.
      tls: A folder with server.crt and server.key.
      run: The folder of a run that goes on; None for a new run.
      roster: A fleet folder, whose certificate serves where no other is named.

    Raises:
      UserError: TLS is said of no page, or the folder says something that no run was told.
    """
    address = {True: "", False: NO_PAGE}[page] if isinstance(page, bool) else page
    asked = PageAsked.of(address, None if tls is None else Path(tls), run)
    return replace(asked, tls=roster) if asked is not None and asked.tls is None and roster is not None else asked


def beside_told(
    told: FleetDisplay, config: RunConfig, page: PageAsked | None, on_page: OnPage | None, *, simulated: bool
) -> AbstractContextManager[FleetDisplay]:
    """The display that is told of the run, with the page beside it; see `page.session.beside`.

    Args:
      told: Of the run.
      config: Of the run.
      page: None for no page.
      on_page: Called with where it is, with its token; None tells nobody.
      simulated: Whether the run's time is that of a modelled fleet.
    """
    said = on_page if on_page is not None else lambda _line: None
    return beside(told, config, page, said, shows_token=on_page is not None, simulated=simulated)
