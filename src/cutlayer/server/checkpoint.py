"""The commit point between two rounds: everything a run needs to go on as if it had never stopped.

    checkpoint/state.json            the facts of the tree {server, method, devices, run, best}
    checkpoint/tensors.safetensors   its tensors
    checkpoint/SHA256SUMS            the digests of both
    checkpoint.1, checkpoint.2       those of the rounds before

Each branch is what a keeper says of itself (`state.py`); this file knows none of them. The folder appears whole or not
at all, and a torn or a foreign one is refused (`sealed.py`): a run goes on from the newest that is whole. What rounds
measured is in metrics.jsonl, which only grows: a checkpoint that held it too would be longer with every round.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

from cutlayer.errors import TornError
from cutlayer.files import recover_folder, remove
from cutlayer.sealed import seal, unseal
from cutlayer.state import State

_log = logging.getLogger("cutlayer.checkpoint")

FORMAT = 7
"""Raised by one whenever an older checkpoint would be misread."""
TRIES = 10
"""Two renames in a row are over long before so many readings are."""


def save_checkpoint(folder: Path, state: State, run: str, *, keep: int = 1) -> None:
    """Makes this one the checkpoint in `folder`; a crash leaves one of the two whole.

    Args:
      folder: Of the newest; those before it stand beside it, as NAME.1, NAME.2, ...
      state: What it holds.
      run: Whose it is.
      keep: So many are kept, this one included. More cost no time: they are renamed.
    """

    def retire(old: Path) -> None:
        if keep == 1:
            remove(old)
            return
        remove(_earlier(folder, keep - 1))
        for number in range(keep - 2, 0, -1):
            if _earlier(folder, number).exists():
                os.replace(_earlier(folder, number), _earlier(folder, number + 1))
        os.replace(old, _earlier(folder, 1))

    seal(folder, {"format": FORMAT, "run": run}, state, retire=retire)


def _earlier(folder: Path, number: int) -> Path:
    return folder.with_name(f"{folder.name}.{number}")


def kept(folder: Path) -> list[Path]:
    """The checkpoints that there are, the newest first."""
    numbers = sorted(
        int(path.suffix[1:]) for path in folder.parent.glob(f"{folder.name}.*") if path.suffix[1:].isdecimal()
    )
    return [*([folder] if folder.exists() else []), *(_earlier(folder, number) for number in numbers)]


def load_checkpoint(folder: Path, run: str, *, told: Callable[[str], None] = _log.warning) -> State | None:
    """The newest checkpoint that is whole; None if no round has been completed yet.

    Args:
      folder: Of the newest.
      run: Whose it must be.
      told: A line for each that is left out, and of which one it is then.

    Raises:
      TornError: None of them is whole.
      CheckpointError: One is of another run, or of another version of cutlayer.
    """
    recover_folder(folder)
    first: TornError | None = None
    for place in kept(folder):
        try:
            state = unseal(
                place,
                {"format": FORMAT, "run": run},
                foreign={
                    "format": "It was written by another version: use that one.",
                    "run": "It belongs to another run, or config.yaml was changed since.",
                },
                torn="Start the run again.",
            )
        except TornError as error:
            told(f"left out: {error}")
            first = first or error
            continue
        if place != folder:
            told(f"going on from {place}, an earlier checkpoint: the newest that is whole")
        return state
    if first is not None:
        raise first
    return None


def read_checkpoint(folder: Path) -> State | None:
    """The last checkpoint of a run that may be going on: nothing is changed, and none that is half written is seen.

    Args:
      folder: Of the checkpoint. While another process replaces it, its files may be of two checkpoints for an instant,
        or the last one stands under another name: then it is read again. Where it stays torn, the one before it counts.

    Returns:
      None where no round has been completed yet.

    Raises:
      TornError: None of them is whole.
      CheckpointError: One is of another version of cutlayer.
    """
    beside = folder.with_name(f".{folder.name}.old")  # `files.write_folder_atomically`
    foreign = {"format": "It was written by another version: use that one."}
    torn: TornError | None = None
    for attempt in range(TRIES + 1):
        earlier = kept(folder) if attempt == TRIES else []  # it is torn, and not by us
        for place in (folder, beside, *earlier):
            if not place.exists():
                continue
            try:
                return unseal(place, {"format": FORMAT}, foreign=foreign, torn="Go on with the run, or start anew.")
            except TornError as error:
                torn = torn or error
                if attempt < TRIES:
                    break
    if torn is not None:
        raise torn
    return None
