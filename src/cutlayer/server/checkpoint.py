"""The commit point between two rounds: everything a run needs to go on as if it had never stopped.

    checkpoint/state.json            the facts of the tree {server, method, devices, run}
    checkpoint/tensors.safetensors   its tensors
    checkpoint/SHA256SUMS            the digests of both

Each branch is what a keeper says of itself (`state.py`); this file knows none of them. The folder appears whole or not
at all, and a torn or a foreign one is refused (`sealed.py`). What rounds measured is in metrics.jsonl, which only
grows: a checkpoint that held it too would be longer with every round.
"""

from __future__ import annotations

from pathlib import Path

from cutlayer.files import recover_folder
from cutlayer.sealed import seal, unseal
from cutlayer.state import State

FORMAT = 5
"""Raised by one whenever an older checkpoint would be misread."""


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
