"""One round in one flat record: the line of metrics.jsonl that the display and TensorBoard read too.

round             counted from 0
loss              mean training loss over everything the round trained on, weighted by the loss normaliser
samples, weight   trained on in this round, over all devices
late              devices that had not finished when the round was closed
bytes_up, bytes_down   devices to server, server to devices
virtual_seconds   the clock of a modelled fleet at the end of the round; of real machines it is `seconds`, since the run
                  began, over all processes that held it (`clock_seconds` reads both, and older runs)
server_memory_bytes   what the server needs in a round of this plan, as the cost model predicts it, and the folds so far
wall_seconds      real time this round took; keys that start with `wall_` differ between equal runs
validation        the metrics by plain name, or {} where the round was not evaluated
held_out          what devices say of rows that they hold out, or {}: the metrics over all of them (which are
                  those of `validation` where the server has no rows), rows, and by device; with the seconds and bytes
                  that it took, which are in no other number of the row
devices           per device: steps, samples, weight, loss, seconds, bytes, FLOPs and what the plan gave it; all of its
                  `StepRecord`, so that a resumed run knows what the stopped one knew
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from cutlayer.errors import CheckpointError

if TYPE_CHECKING:  # torch takes seconds, and a page or a status needs none of it
    from cutlayer.types import StepRecord

MODELLED, REAL = "virtual_seconds", "seconds"
"""The keys of the run's clock."""


def round_row(
    records: Sequence[StepRecord],
    *,
    round: int,
    virtual_seconds: float,
    wall_seconds: float,
    server_memory_bytes: int,
    validation: Mapping[str, float],
    held_out: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The record of one round, from what its devices measured. `loss` is None where nobody trained."""
    weight = sum(record.weight for record in records)
    loss_sum = math.fsum(record.loss * record.weight for record in records if record.weight)
    return {
        "round": round,
        "loss": loss_sum / weight if weight else None,
        "samples": sum(record.samples for record in records),
        "weight": weight,
        "late": sum(record.late for record in records),
        "bytes_up": sum(record.bytes_up for record in records),
        "bytes_down": sum(record.bytes_down for record in records),
        "virtual_seconds": virtual_seconds,
        "server_memory_bytes": server_memory_bytes,
        "wall_seconds": wall_seconds,
        "validation": dict(validation),
        "held_out": dict(held_out),
        "devices": {record.device: _of_device(record) for record in records},
    }


def of_real_machines(row: Mapping[str, Any]) -> dict[str, Any]:
    """The record of a round whose clock is a real one: its name says so, in the same place.

    Example:
      >>> of_real_machines({"round": 0, "virtual_seconds": 2.5, "late": 0})
      {'round': 0, 'seconds': 2.5, 'late': 0}
    """
    return {REAL if key == MODELLED else key: value for key, value in row.items()}


def clock_seconds(row: Mapping[str, Any]) -> float:
    """The run's clock at the end of the round, real or modelled.

    Example:
      >>> clock_seconds({"virtual_seconds": 2.5}), clock_seconds({"seconds": 1.5})
      (2.5, 1.5)
    """
    seconds: float = row[REAL] if REAL in row else row[MODELLED]
    return seconds


def records_of(row: Mapping[str, Any]) -> list[StepRecord]:
    """The records that the line of a round was made of: what its devices measured, in the order of their names.

    JSON has made lists of tuples, and null of the loss of a device that took no step.

    Raises:
      CheckpointError: It is not the line of a round.
    """
    from cutlayer.types import StepRecord

    try:
        number: int = row["round"]
        return [
            StepRecord(
                round=number,
                device=device,
                **measured
                | {"ranks": tuple(measured["ranks"])}
                | {"loss": math.nan if measured["loss"] is None else measured["loss"]},
            )
            for device, measured in row["devices"].items()
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"metrics.jsonl: expected on every line a round and all that its devices measured, got one without "
            f"({error}). It was written by another version: use that one."
        ) from error


def _of_device(record: StepRecord) -> dict[str, Any]:
    return {key: value for key, value in asdict(record).items() if key not in ("round", "device")}
