"""`cutlayer serve` from Python."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from cutlayer.api.apart import run_apart
from cutlayer.api.given import Given, config_from, goes_on
from cutlayer.api.told import OnRound, Told
from cutlayer.config import RunConfig
from cutlayer.errors import ConfigError
from cutlayer.fleet.profile import load_fleet
from cutlayer.gate.door import door_of
from cutlayer.gate.roster import Roster
from cutlayer.report.fleet_progress import FleetDisplay
from cutlayer.run.ending import Outcome
from cutlayer.run.inputs import prepare_server
from cutlayer.run.served import Workers
from cutlayer.run.served import serve as serve_run
from cutlayer.run.span_served import serve_span
from cutlayer.transport.allocator import keep_freed_memory
from cutlayer.transport.exposure import check_exposure

DEFAULT_PORT = 7070


def serve(
    run: Given = None,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    roster: str | Path | None = None,
    insecure: bool = False,
    workers: int = 1,
    min_devices: int = 1,
    on_listening: Callable[[int], None] = lambda _port: None,
    on_round: OnRound | None = None,
    resume: bool = False,
    patience: float | None = None,
    **sections: Any,
) -> Outcome:
    """Serves a run to devices that join by network, waits for its end and exports the adapter.

    Args:
      run: A run file, a config, its sections by name, or the folder of a run; None for the defaults.
      host: The address to listen on; 0.0.0.0 for every network.
      port: The port; 0 takes a free one.
      roster: The fleet folder of `cutlayer fleet init`, without which nobody on another machine may come in.
      insecure: Listen to other machines without TLS and proof.
      workers: Processes that serve the devices, by Ray.
      min_devices: The first round waits for so many.
      on_listening: Called with the port, as soon as devices may come.
      on_round: Called with the row of each round when its checkpoint is on the disk. An error in it ends the run,
        which `resume` goes on with.
      resume: Go on with the run that is in the folder `out`, if one is; else one that is there is an error.
      patience: Seconds after which a round goes on without a device that is away; None waits for ever.
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
    config = config_from(run, sections, "serve")
    work = serving(
        config,
        Told(on_round),
        on_listening,
        host=host,
        port=port,
        roster=None if roster is None else Path(roster),
        insecure=insecure,
        workers=workers,
        min_devices=min_devices,
        resume=goes_on(config, resume=resume),
        patience=patience,
    )
    return run_apart(work)


def serving(
    config: RunConfig,
    display: FleetDisplay,
    opened: Callable[[int], None],
    *,
    host: str,
    port: int,
    roster: Path | None,
    insecure: bool,
    workers: int,
    min_devices: int,
    resume: bool,
    patience: float | None = None,
) -> Coroutine[Any, Any, Outcome]:
    """Finds what a person got wrong and reads the data, and returns what then serves the run.

    Args:
      config: Of the run.
      display: Told of every event and round, and of devices that come and go.
      opened: Called with the port, as soon as devices may come.
      host: See `serve`, as for the others.
      port: The port.
      roster: The fleet folder.
      insecure: Whether others may come without proof.
      workers: Processes that serve the devices.
      min_devices: The first round waits for so many.
      resume: Whether to go on with the run in its folder.
      patience: Seconds after which a device that is away counts as gone.

    Raises:
      UserError: Something cannot be.
    """
    check_exposure(host, tls=roster is not None, authenticated=roster is not None, insecure=insecure)
    expected = [] if roster is None else _names(roster)
    team = _team(workers, host, port, roster)
    keep_freed_memory()
    inputs, fleet = prepare_server(config), load_fleet(config.fleet)
    door = door_of(f"{host}:{port}", roster, opened)
    return serve_run(
        inputs,
        fleet,
        display,
        door,
        min_devices=min_devices,
        expected=expected,
        resume=resume,
        workers=team,
        patience=patience,
    )


def lending(
    config: RunConfig,
    blocks: tuple[int, int],
    opened: Callable[[int], None],
    *,
    host: str,
    port: int,
    roster: Path | None,
    insecure: bool,
) -> Coroutine[Any, Any, None]:
    """Finds what a person got wrong, and returns what then runs blocks for the devices of a run, until it is stopped.

    Args:
      config: Of the run: the server's.
      blocks: Those that are run here, [first, end).
      opened: Called with the port, as soon as devices may come.
      host: See `serve`, as for the others.
      port: The port.
      roster: The fleet folder.
      insecure: Whether others may come without proof.

    Raises:
      UserError: Something cannot be.
    """
    check_exposure(host, tls=roster is not None, authenticated=roster is not None, insecure=insecure)
    keep_freed_memory()
    return serve_span(prepare_server(config), blocks, door_of(f"{host}:{port}", roster, opened))


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
