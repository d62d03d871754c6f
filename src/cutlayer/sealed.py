"""A folder with a state that appears whole or not at all, and shows whether it is as it was written.

state.json            whose it is, and the facts
tensors.safetensors   the tensors
SHA256SUMS            the digests of both, for `sha256sum -c` too
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cutlayer.errors import CheckpointError, TornError
from cutlayer.files import Retire, remove, sha256, write_folder_atomically
from cutlayer.state import State

FACTS, TENSORS, DIGESTS = "state.json", "tensors.safetensors", "SHA256SUMS"


def seal(folder: Path, owner: Mapping[str, object], state: State, *, retire: Retire = remove) -> None:
    """Replaces `folder` by one that holds a state; a crash leaves the old one or the new one.

    Args:
      folder: Where.
      owner: Facts by which `unseal` knows whose it is.
      state: What JSON and safetensors can hold.
      retire: What becomes of the one before, see `files.write_folder_atomically`.

    Raises:
      OSError: There is no room for it; the old one stays.
    """
    flat = {name: value.detach().cpu().contiguous() for name, value in state.tensors.items()}

    def fill(temporary: Path) -> None:
        (temporary / FACTS).write_text(json.dumps({**owner, "facts": state.facts}, sort_keys=True))
        try:
            save_file(flat, temporary / TENSORS)
        except SafetensorError as error:  # its own word for what the system said
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else 0, str(error)) from error
        (temporary / DIGESTS).write_text(_digests(temporary))

    write_folder_atomically(folder, fill, retire=retire)


def unseal(folder: Path, owner: Mapping[str, object], *, foreign: Mapping[str, str], torn: str) -> State:
    """The state in a folder that `seal` wrote.

    Args:
      folder: Which.
      owner: Facts that must be as they are here.
      foreign: By fact of `owner`, what to do if it is another.
      torn: What to do if the folder is not as it was written.

    Raises:
      CheckpointError: It is somebody else's.
      TornError: It is not as it was written.
    """
    try:
        said = json.loads((folder / FACTS).read_text())
        for key, expected in owner.items():
            if said[key] != expected:
                raise CheckpointError(f"{folder}: expected {key} {expected}, got {said[key]}. {foreign[key]}")
        if (folder / DIGESTS).read_text() != _digests(folder):
            raise ValueError(f"files of which {DIGESTS} says otherwise")
        return State(said["facts"], load_file(folder / TENSORS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise TornError(
            f"{folder}: expected it as it was written, got {type(error).__name__}: {error}. It is torn. {torn}"
        ) from error


def _digests(folder: Path) -> str:
    return "".join(f"{sha256(folder / name)}  {name}\n" for name in (FACTS, TENSORS))
