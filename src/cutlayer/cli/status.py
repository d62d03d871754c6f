"""`cutlayer status`: how far a run is, and who is here, asked from another terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cutlayer.cli.terminal import AsJson, console, print_json
from cutlayer.reading import counted


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Show how far a run is, and of a real fleet who is here. Changes nothing; the run may be going on or not."""
    from cutlayer.report.fleet_view import DeviceNow, devices_table

    found = state_of(run)
    if as_json:
        print_json(found)
        return
    terminal = console()
    for line in said(found):
        terminal.print(line, soft_wrap=True)
    if found["devices"]:
        terminal.print(devices_table([DeviceNow(**row) for row in found["devices"]], drawn_again=False))


def state_of(run: Path) -> dict[str, Any]:
    """The state of a run: how far it is.

    Args:
      run: Its folder.

    Raises:
      CheckpointError: It holds no run.
      ConfigError: Its config cannot be read.
    """
    from dataclasses import asdict

    from cutlayer.config import read_config
    from cutlayer.report.here import devices_of, read_here
    from cutlayer.report.run_folder import RunFolder

    folder = RunFolder.reopen(run)
    config = read_config(folder.path / "config.yaml")
    rows, here = folder.read_rows(), read_here(folder.path)
    last = rows[-1] if rows else None
    evaluated = next((row for row in reversed(rows) if row["validation"]), None)
    return {
        "run": str(run),
        "command": folder.read_started().get("command", "train"),
        "state": "ended" if folder.ended else "running" if folder.held else "stopped",
        "method": config.method.name,
        "model": config.model.name,
        "data": config.data.path,
        "rounds_done": last["round"] + 1 if last else 0,
        "rounds": config.train.rounds,
        "loss": last["loss"] if last else None,
        "metrics": evaluated["validation"] if evaluated else {},
        "metrics_after_round": evaluated["round"] + 1 if evaluated else None,
        "devices": [asdict(device) for device in devices_of(here)] if here and folder.held else [],
    }


def said(found: dict[str, Any]) -> list[str]:
    """The same, for a person."""
    lines = [
        f"{found['run']}: {found['state']}, {found['rounds_done']} of {counted(found['rounds'], 'round')} done",
        f"{found['method']}, {found['model']} on {found['data']} (cutlayer {found['command']})",
    ]
    if found["loss"] is not None:
        lines.append(f"loss {found['loss']:.4g}")
    if found["metrics"]:
        values = ", ".join(f"{name} {value:.4g}" for name, value in found["metrics"].items() if name != "tokens")
        lines.append(f"after round {found['metrics_after_round']}: {values}")
    if found["state"] == "stopped" and found["command"] != "flower":
        lines.append(f"go on with: cutlayer {found['command']} --resume {found['run']}")
    return lines
