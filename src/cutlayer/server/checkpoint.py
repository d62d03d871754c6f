"""The commit point between two rounds: everything a run needs to go on as if it had never stopped.

    checkpoint/state.json            the facts of the tree {server, method, devices, run, best}
    checkpoint/tensors.safetensors   its tensors
    checkpoint/SHA256SUMS            the digests of both

Each branch is what a keeper says of itself (`state.py`); this file knows none of them. The folder appears whole or not
at all, and a torn or a foreign one is refused (`sealed.py`). What rounds measured is in metrics.jsonl, which only
grows: a checkpoint that held it too would be longer with every round.
"""

from __future__ import annotations

from pathlib import Path

from cutlayer.errors import CheckpointError
from cutlayer.files import recover_folder
from cutlayer.sealed import seal, unseal
from cutlayer.state import State

FORMAT = 8
"""Raised by one whenever an older checkpoint would be misread."""
TRIES = 10
"""Two renames in a row are over long before so many readings are."""


def save_checkpoint(folder: Path, state: State, run: str) -> None:
    """Replaces the checkpoint in `folder` by this one; a crash leaves one of the two whole."""
    seal(folder, {"format": FORMAT, "run": run}, state)


def load_checkpoint(folder: Path, run: str) -> State | None:
    """The checkpoint in `folder`; None if no round has been completed yet.

    Raises:
      CheckpointError: It is torn, of another run, or of another version of cutlayer.
    """
    recover_folder(folder)
    if not folder.exists():
        return None
    return unseal(
        folder,
        {"format": FORMAT, "run": run},
        foreign={
            "format": "It was written by another version: use that one.",
            "run": "It belongs to another run, or config.yaml was changed since.",
        },
        torn="Start the run again.",
    )


def read_checkpoint(folder: Path) -> State | None:
    """The last checkpoint of a run that may be going on: nothing is changed, and none that is half written is seen.

    Args:
      folder: Of the checkpoint. While another process replaces it, its files may be of two checkpoints for an instant,
        or the last one stands under another name: then it is read again.

    Returns:
      None where no round has been completed yet.

    Raises:
      CheckpointError: It is torn, or of another version of cutlayer.
    """
    beside = folder.with_name(f".{folder.name}.old")  # `files.write_folder_atomically`
    torn: CheckpointError | None = None
    for _ in range(TRIES):
        known = next((place for place in (folder, beside) if place.exists()), None)
        if known is None:
            continue
        try:
            foreign = {"format": "It was written by another version: use that one."}
            return unseal(known, {"format": FORMAT}, foreign=foreign, torn="Go on with the run, or start anew.")
        except CheckpointError as error:
            torn = error
    if torn is not None:
        raise torn
    return None
