"""The page that somebody has asked for beside a run: where it is served. Kept with the run, but for its token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cutlayer.errors import CheckpointError, ConfigError
from cutlayer.report.run_folder import RunFolder

NO_PAGE = "none"
"""The word in place of an address by which a run that goes on has no page any more."""


@dataclass(frozen=True, slots=True)
class PageAsked:
    """A page, as it was asked for.

    Attributes:
      address: HOST:PORT; empty for this machine's port 7072 or, where that is taken, a free one.
      tls: a folder with server.crt and server.key, for where others can connect.
    """

    address: str
    tls: Path | None = None

    @classmethod
    def of(cls, address: str | None, tls: Path | None, run: Path | None) -> PageAsked | None:
        """Lays what is said over what the run in this folder was told; None for no page.

        Args:
          address: HOST:PORT, empty for the default, `none` for no page; None for what is left as it is.
          tls: As the attribute; None for what is left as it is.
          run: The folder of a run that goes on; None for a new run.

        Raises:
          ConfigError: TLS is said of no page.
          CheckpointError: The folder says something that no run was told.
        """
        kept = None if run is None or not (run / "started.json").exists() else _kept(run)
        if address is not None:
            kept = None if address == NO_PAGE else PageAsked(address, None if kept is None else kept.tls)
        if tls is None:
            return kept
        if kept is None:
            raise ConfigError(
                f"--page-tls: expected --page HOST:PORT beside it, got {tls} alone. Add it, or leave it out."
            )
        return replace(kept, tls=tls)

    def started(self) -> dict[str, Any]:
        """The page as started.json of a run's folder keeps it."""
        return {"address": self.address, "tls": None if self.tls is None else str(self.tls.resolve())}


def started_of(page: PageAsked | None) -> dict[str, Any]:
    """The entry of a page in started.json, beside the run's command; nothing where there is no page."""
    return {} if page is None else {"page": page.started()}


def _kept(run: Path) -> PageAsked | None:
    page = RunFolder(run).read_started().get("page")
    if page is None:
        return None
    if isinstance(page, Mapping) and isinstance(page.get("address"), str):
        tls = page.get("tls")
        return PageAsked(page["address"], None if tls is None else Path(str(tls)))
    raise CheckpointError(
        f"{run}: expected in started.json the address of the run's page, got {str(page)[:40]!r}. Delete that file, and "
        "say the flags anew."
    )
