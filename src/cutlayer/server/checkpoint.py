"""The commit point between two rounds: everything a run needs to go on as if it had never stopped.

    checkpoint/state.json            run, round, clock, cursors, planner and order states, file positions
    checkpoint/tensors.safetensors   the adapter, what the aggregate carries, folds, AdamW's moments of server and
                                     devices, what compression owes

The folder appears whole or not at all, and a torn or a foreign one is refused (`sealed.py`). What rounds measured is in
metrics.jsonl, which only grows: a checkpoint that held it too would be longer with every round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cutlayer.files import recover_folder
from cutlayer.report.json_lines import Position
from cutlayer.sealed import seal, unseal
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
    owned = {
        "server": snapshot.server_moments,
        "device": snapshot.device_moments,
        "lost": snapshot.lost,
        "personal": snapshot.personal,
    }
    facts = {
        "format": FORMAT,
        "run": run,
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
    tensors = {"adapter": snapshot.adapter, "aggregate": snapshot.aggregate, "folds": snapshot.folds}
    seal(folder, facts, tensors | {kind: _of_all(owners) for kind, owners in owned.items()})


def load_checkpoint(folder: Path, run: str) -> Snapshot | None:
    """The checkpoint in `folder`; None if no round has been completed yet.

    Raises:
      CheckpointError: It is torn, of another run, or of another version of cutlayer.
    """
    recover_folder(folder)
    if not folder.exists():
        return None
    facts, tensors = unseal(
        folder,
        {"format": FORMAT, "run": run},
        foreign={
            "format": "It was written by another version: use that one.",
            "run": "It belongs to another run, or config.yaml was changed since.",
        },
        torn="Start the run again.",
    )
    owned = {kind: _by_owner(tensors[kind], owners) for kind, owners in facts["owners"].items()}
    return Snapshot(
        rounds_done=facts["rounds_done"],
        clock_seconds=facts["clock_seconds"],
        adapter=tensors["adapter"],
        aggregate=tensors["aggregate"],
        folds=tensors["folds"],
        folds_held=facts["folds_held"],
        counted=facts["counted"],
        server_moments=owned["server"],
        device_moments=owned["device"],
        lost=owned["lost"],
        personal=owned["personal"],
        cursors=facts["cursors"],
        members=facts["members"],
        round_state=facts["round_state"],
        totals=facts["totals"],
        positions={name: Position(*position) for name, position in facts["positions"].items()},
    )


def _of_all(owners: Mapping[str, Adapter]) -> Adapter:
    return {f"{owner}/{name}": value for owner, held in owners.items() for name, value in held.items()}


def _by_owner(tensors: Adapter, owners: Iterable[str]) -> dict[str, Adapter]:
    """`<owner>/<name>` taken apart, in one pass: there may be a thousand owners; one without tensors has none."""
    result: dict[str, Adapter] = {owner: {} for owner in owners}
    for key, value in tensors.items():
        owner, _, name = key.partition("/")
        result[owner][name] = value
    return result
