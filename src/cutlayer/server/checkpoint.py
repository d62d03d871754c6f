"""The commit point between two rounds: everything a run needs to go on as if it had never stopped.

    checkpoint/state.json            round, clock, cursors, planner and order states, file positions, digests
    checkpoint/tensors.safetensors   the adapter, what the aggregate carries, folds, AdamW's moments of server and
                                     devices, what compression owes

The folder appears whole or not at all. It names the run it belongs to and the digests of what it holds, so a torn
or a foreign one is refused. What rounds measured is in metrics.jsonl, which only grows: a checkpoint that held it too
would be longer with every round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from cutlayer.errors import CheckpointError
from cutlayer.files import recover_folder, sha256, write_folder_atomically
from cutlayer.report.json_lines import Position
from cutlayer.types import Adapter

FORMAT = 4


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a run between two rounds.

    Attributes:
      rounds_done: rounds that are complete.
      clock_seconds: the virtual clock.
      adapter: the full adapter.
      aggregate: what the aggregate carries.
      folds: what was added to the base's weights.
      folds_held: how many of the folds each device has.
      counted: each device's last round that counted.
      server_moments: AdamW's moments of the server's adapters, by owner.
      device_moments: AdamW's moments of each device.
      lost: what packing each device's last update lost.
      personal: adapters that are never averaged, by device.
      cursors: each device's place in its data.
      members: of a real fleet, the devices that there are (`hub.py`).
      round_state: what the round's policies carry.
      totals: running sums of the summary.
      positions: how far the run folder's growing files are.
    """

    rounds_done: int
    clock_seconds: float
    adapter: Adapter
    aggregate: Adapter
    folds: Adapter
    folds_held: dict[str, int]
    counted: dict[str, int]
    server_moments: dict[str, Adapter]
    device_moments: dict[str, Adapter]
    lost: dict[str, Adapter]
    personal: dict[str, Adapter]
    cursors: dict[str, dict[str, Any]]
    members: list[dict[str, Any]]
    round_state: dict[str, Any]
    totals: dict[str, Any]
    positions: dict[str, Position]


def save_checkpoint(folder: Path, snapshot: Snapshot, run: str) -> None:
    """Replaces the checkpoint in `folder` by this one; a crash leaves one of the two whole."""
    tensors = {f"adapter/{name}": value for name, value in snapshot.adapter.items()}
    tensors |= {f"aggregate/{name}": value for name, value in snapshot.aggregate.items()}
    tensors |= {f"folds/{name}": value for name, value in snapshot.folds.items()}
    owned = {
        "server": snapshot.server_moments,
        "device": snapshot.device_moments,
        "lost": snapshot.lost,
        "personal": snapshot.personal,
    }
    for kind, owners in owned.items():
        for owner, held in owners.items():
            tensors |= {f"{kind}/{owner}/{name}": value for name, value in held.items()}

    def fill(temporary: Path) -> None:
        path = temporary / "tensors.safetensors"
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
        state = {
            "format": FORMAT,
            "run": run,
            "tensors_sha256": sha256(path),
            "rounds_done": snapshot.rounds_done,
            "clock_seconds": snapshot.clock_seconds,
            "folds_held": snapshot.folds_held,
            "counted": snapshot.counted,
            "cursors": snapshot.cursors,
            "members": snapshot.members,
            "round_state": snapshot.round_state,
            "totals": snapshot.totals,
            "positions": snapshot.positions,
            "owners": {kind: list(owners) for kind, owners in owned.items()},
        }
        (temporary / "state.json").write_text(json.dumps(state | {"state_sha256": _digest(state)}, sort_keys=True))

    write_folder_atomically(folder, fill)


def load_checkpoint(folder: Path, run: str) -> Snapshot | None:
    """The checkpoint in `folder`; None if no round has been completed yet.

    Raises:
      CheckpointError: It is torn, of another run, or of another version of cutlayer.
    """
    recover_folder(folder)
    if not folder.exists():
        return None
    try:
        state = json.loads((folder / "state.json").read_text())
        path = folder / "tensors.safetensors"
        _expect(folder, "format", FORMAT, state["format"], "It was written by another version: use that one")
        _expect(folder, "run", run, state["run"], "It belongs to another run, or config.yaml was changed since")
        _expect(folder, "state", state.pop("state_sha256"), _digest(state), "It is torn: start the run again")
        _expect(folder, "tensors", state["tensors_sha256"], sha256(path), "It is torn: start the run again")
        with safe_open(path, framework="pt") as file:
            tensors: Adapter = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        owned = {kind: _by_owner(_under(tensors, f"{kind}/"), owners) for kind, owners in state["owners"].items()}
        return Snapshot(
            rounds_done=state["rounds_done"],
            clock_seconds=state["clock_seconds"],
            adapter=_under(tensors, "adapter/"),
            aggregate=_under(tensors, "aggregate/"),
            folds=_under(tensors, "folds/"),
            folds_held=state["folds_held"],
            counted=state["counted"],
            server_moments=owned["server"],
            device_moments=owned["device"],
            lost=owned["lost"],
            personal=owned["personal"],
            cursors=state["cursors"],
            members=state["members"],
            round_state=state["round_state"],
            totals=state["totals"],
            positions={name: Position(*position) for name, position in state["positions"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: expected a whole checkpoint, got {type(error).__name__}: {error}. Start the run again."
        ) from error


def _expect(folder: Path, what: str, expected: object, got: object, advice: str) -> None:
    if expected != got:
        raise CheckpointError(f"{folder}: expected {what} {expected}, got {got}. {advice}.")


def _digest(state: dict[str, Any]) -> str:
    """Of what JSON keeps of it: a list for a tuple, text for a number that is a key."""
    kept = json.loads(json.dumps(state))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def _under(tensors: Mapping[str, Any], prefix: str) -> Adapter:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _by_owner(tensors: Mapping[str, Any], owners: Iterable[str]) -> dict[str, Adapter]:
    """`<owner>/<name>` taken apart, in one pass: there may be a thousand owners; one without tensors has none."""
    result: dict[str, Adapter] = {owner: {} for owner in owners}
    for key, value in tensors.items():
        owner, _, name = key.partition("/")
        result[owner][name] = value
    return result
