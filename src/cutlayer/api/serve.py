"""`cutlayer serve` from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from random import Random
from typing import Any

from cutlayer.api.apart import run_apart
from cutlayer.api.given import Given, config_from, goes_on
from cutlayer.api.join import way_to
from cutlayer.api.paged import OnPage, beside_told, page_of
from cutlayer.api.told import OnRound, Told
from cutlayer.config import RunConfig
from cutlayer.errors import CheckpointError, ConfigError
from cutlayer.gate.children import Children
from cutlayer.gate.door import Admission, GrpcDoor, door_of
from cutlayer.gate.roster import Roster
from cutlayer.page.asked import PageAsked, started_of
from cutlayer.report.fleet_progress import FleetDisplay
from cutlayer.report.run_folder import RunFolder
from cutlayer.run.ending import Outcome
from cutlayer.run.inputs import prepare_server
from cutlayer.run.measured import fleet_of
from cutlayer.run.served import Workers
from cutlayer.run.served import serve as serve_run
from cutlayer.run.site_served import Siting, serve_site
from cutlayer.run.span_served import serve_span
from cutlayer.run.understood import Noticed, unnoticed
from cutlayer.run.unsaid import on_real_machines
from cutlayer.transport.address import joined
from cutlayer.transport.allocator import keep_freed_memory
from cutlayer.transport.exposure import check_exposure

DEFAULT_PORT = 7070


def serve(
    run: Given = None,
    /,
    *,
    host: str | None = None,
    port: int | None = None,
    roster: str | Path | None = None,
    insecure: bool | None = None,
    workers: int | None = None,
    min_devices: int | None = None,
    on_listening: Callable[[int], None] = lambda _port: None,
    on_round: OnRound | None = None,
    resume: bool = False,
    patience: float | None = None,
    page: str | bool | None = None,
    page_tls: str | Path | None = None,
    on_page: OnPage | None = None,
    **sections: Any,
) -> Outcome:
    """Serves a run to devices that join by network, waits for its end and exports the adapter.

    Args:
      run: A run file, a config, its sections by name, or the folder of a run; None for the defaults.
      host: The address to listen on, 127.0.0.1 by default; 0.0.0.0 for every network. A run that goes on is served as
        it was, also in what follows, where nothing else is said.
      port: The port, 7070 by default; 0 takes a free one.
      roster: The fleet folder of `cutlayer fleet init`, without which nobody on another machine may come in.
      insecure: Listen to other machines without TLS and proof.
      workers: Processes that serve the devices, by Ray; 1 by default.
      min_devices: The first round waits for so many; 1 by default.
      on_listening: Called with the port, as soon as devices may come.
      on_round: Called with the row of each round when its checkpoint is on the disk. An error in it ends the run,
        which `resume` goes on with.
      resume: Go on with the run that is in the folder `out`, if one is; else one that is there is an error.
      patience: Seconds after which a round goes on without a device that is away; None waits for ever.
      page: Serve a page of the run at this address, True for port 7072 of this machine or a free one; False for none,
        and None for what a run that goes on was told.
      page_tls: A folder with server.crt and server.key for a page that others can reach; by default the roster.
      on_page: Called with the page's address, and with its token where it has one; without it that is the one in
        CUTLAYER_PAGE_TOKEN.
      sections: Of a run file, laid over `run`: `train={"rounds": 2}`, `method="memsfl"`, `out="runs/mine"`.

    Returns:
      Metrics, rows of the rounds, paths.

    Raises:
      UserError: Something in the config, the data or the model cannot be, or the run is another than it was.

    Example:
      >>> import subprocess, sys, tempfile
      >>> from pathlib import Path
      >>> from cutlayer import serve
      >>> from cutlayer.testing.tiny import save_inputs
      >>> here = save_inputs(Path(tempfile.mkdtemp()), rows=24)  # a tiny model, and texts to classify
      >>> started = []
      >>> def start_a_device(port: int) -> None:
      ...     words = ["join", f"127.0.0.1:{port}", "--name", "pi-1", "--data", here / "data", "--folder", here / "pi"]
      ...     command = [sys.executable, "-m", "cutlayer", *words]
      ...     started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
      >>> outcome = serve(
      ...     model=here / "model",
      ...     data={"path": here / "data", "max_length": 16},
      ...     train={"rounds": 1, "local_steps": 1, "batch_size": 4},
      ...     port=0,
      ...     on_listening=start_a_device,
      ...     out=here / "run",
      ... )
      >>> [list(row["devices"]) for row in outcome.rows], started[0].wait()
      ([['pi-1']], 0)
    """
    config = on_real_machines(config_from(run, sections, "serve"), declared=False)
    given = {
        "host": host,
        "port": port,
        "roster": roster,
        "insecure": insecure,
        "workers": workers,
        "min_devices": min_devices,
        "patience": patience,
    }
    again = goes_on(config, resume=resume)
    folder = Path(config.out) if again else None
    how = Listening.of(given, folder)
    how = replace(how, page=page_of(page, page_tls, folder, how.roster))
    with beside_told(Told(on_round), config, how.page, on_page, simulated=False) as told:
        return run_apart(serving(config, told, on_listening, how, resume=again))


@dataclass(frozen=True)
class Listening:
    """The settings with which a server is there for its devices. They are kept with the run: whoever goes on with one
    says only what changes.

    Attributes:
      host, port: where it listens.
      roster: the fleet folder.
      insecure: whether others may come without proof.
      workers: processes that serve the devices.
      min_devices: the first round waits for so many.
      patience: seconds after which a round goes on without a device that is away; None waits for ever.
      page: the page beside the run; None for none.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    roster: Path | None = None
    insecure: bool = False
    workers: int = 1
    min_devices: int = 1
    patience: float | None = None
    page: PageAsked | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any], run: Path | None, page: PageAsked | None = None) -> Listening:
        """Lays the settings that are given over those with which the run in its folder was served; a new run has none.

        Args:
          given: By attribute, what somebody says now; None for what is left as it is.
          run: The folder of a run that goes on.
          page: The page beside the run, of which the caller has looked what was kept.

        Raises:
          CheckpointError: The folder says something that no server was told.
        """
        kept = {} if run is None else RunFolder.reopen(run).read_started()
        kept = {key: value for key, value in kept.items() if key not in ("command", "page")}
        kept |= {name: value for name, value in given.items() if value is not None}
        if kept.get("roster") is not None:
            kept["roster"] = Path(kept["roster"])
        try:
            return cls(**kept, page=page)
        except TypeError:
            raise CheckpointError(
                f"{run}: expected in started.json what `cutlayer serve` was told, got {', '.join(sorted(kept))}. "
                "Delete that file, and say the flags anew."
            ) from None

    def started(self) -> dict[str, Any]:
        """The settings as the run's folder keeps them."""
        roster = None if self.roster is None else str(self.roster.resolve())
        said = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "page"}
        return {"command": "serve", **said, "roster": roster, **started_of(self.page)}


def serving(
    config: RunConfig,
    display: FleetDisplay,
    opened: Callable[[int], None],
    how: Listening,
    *,
    resume: bool,
    noticed: Noticed = unnoticed,
) -> Coroutine[Any, Any, Outcome]:
    """Finds what a person got wrong and reads the data, and returns what then serves the run.

    Args:
      config: Of the run.
      display: Told of every event and round, and of devices that come and go.
      opened: Called with the port, as soon as devices may come.
      how: How the server is there for them.
      resume: Whether to go on with the run in its folder.
      noticed: Told what a person should know before the run.

    Raises:
      UserError: Something cannot be.
    """
    roster = how.roster
    check_exposure(how.host, tls=roster is not None, authenticated=roster is not None, insecure=how.insecure)
    expected = [] if roster is None else _names(roster)
    team = _team(how.workers, how.host, how.port, roster)
    keep_freed_memory()
    inputs = prepare_server(config)
    fleet = fleet_of(inputs)
    for line in inputs.notices:
        noticed(line)
    door = door_of(joined(how.host, how.port, "serve"), roster, opened)
    return serve_run(
        inputs,
        fleet,
        display,
        door,
        min_devices=how.min_devices,
        expected=expected,
        resume=resume,
        workers=team,
        started=how.started(),
        patience=how.patience,
        noticed=noticed,
    )


def lending(
    config: RunConfig,
    blocks: tuple[int, int],
    opened: Callable[[int], None],
    how: Listening,
) -> Coroutine[Any, Any, None]:
    """Finds what a person got wrong, and returns what then runs blocks for the devices of a run, until it is stopped.

    Args:
      config: Of the run: the server's.
      blocks: Those that are run here, [first, end).
      opened: Called with the port, as soon as devices may come.
      how: How this process is there for them.

    Raises:
      UserError: Something cannot be.
    """
    roster = how.roster
    check_exposure(how.host, tls=roster is not None, authenticated=roster is not None, insecure=how.insecure)
    keep_freed_memory()
    return serve_span(prepare_server(config), blocks, door_of(joined(how.host, how.port, "serve"), roster, opened))


@dataclass(frozen=True, slots=True)
class SiteOf:
    """The way in which a site comes to the server of the run, as a device does (`cutlayer join`).

    Attributes:
      server: where that listens, HOST:PORT.
      name: of the site.
      ca, token, certificate, key: files, as of `join`.
    """

    server: str
    name: str
    ca: Path | None = None
    token: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


def siting(
    config: RunConfig,
    site: SiteOf,
    opened: Callable[[int], None],
    how: Listening,
    notice: Callable[[str], None],
) -> Coroutine[Any, Any, None]:
    """Finds what a person got wrong, and returns what then serves a site's devices until the run is over.

    Args:
      config: Of this site: where the model is, what this process computes on, and `out`, in which its state goes.
      site: How the site comes to the server of the run.
      opened: Called with the port, as soon as devices may come.
      how: How this process is there for its devices.
      notice: Told what happens.

    Raises:
      UserError: Something cannot be.
    """
    roster, children = how.roster, Children.given(os.environ)
    check_exposure(how.host, tls=roster is not None, authenticated=roster is not None, insecure=how.insecure)
    if how.workers != 1:
        raise ConfigError(f"--workers: expected 1 at a site, got {how.workers}. Leave --workers out.")
    dial = way_to(site.server, site.name, site.ca, site.token, site.certificate, site.key, insecure=how.insecure)
    keep_freed_memory()
    folder = Path(config.out) / "sites" / site.name
    address = joined(how.host, how.port, "serve")
    if roster is None and children is not None:
        door = GrpcDoor(address, Admission(children), None, opened)
    else:
        door = door_of(address, roster, opened)
    return serve_site(Siting(site.name, config, folder, how.patience), dial, door, Random(site.name), notice)


def _team(workers: int, host: str, port: int, roster: Path | None) -> Workers | None:
    if workers == 1:
        return None
    from cutlayer.run.workers.ray_workers import RayWorkers

    return RayWorkers(workers, host, port, roster)


def _names(folder: Path) -> list[str]:
    roster = Roster(folder)
    if roster.kind is None:
        raise ConfigError(
            f"serve: expected devices on the roster {folder}, got none: nobody could come in. "
            f"Add them (`cutlayer fleet add NAME --fleet {folder}`), then start."
        )
    return roster.names()
