"""Finds the folder that the adapter of a run, or of a folder, is read from: by the disk alone, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cutlayer.errors import AdapterError, CheckpointError
from cutlayer.model.card import CARD, base_name, read_card
from cutlayer.model.place import check_place
from cutlayer.reading import reading

PEFTS, FACTORS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class Whence:
    """The place that an adapter is read from.

    Attributes:
      kind: `adapter`, of ours or plain PEFT's; `merged`, a whole model with its adapter in it; `checkpoint` of a run
        that has not ended.
      folder: which.
    """

    kind: Literal["adapter", "merged", "checkpoint"]
    folder: Path


def whence(path: Path, *, round: int | None = None, merged: bool = False) -> Whence:
    """Finds where the adapter is.

    Args:
      path: RUN, RUN/adapter, or any adapter's folder.
      round: Of a run, after which round; None for what the run ends with, or would end with now.
      merged: Whether a model that `cutlayer export --merged` wrote serves too.

    Raises:
      UserError: There is none.
    """
    with reading(f"adapter {path}", "a folder that can be read", AdapterError):
        return _whence(path, round, merged=merged)


def _whence(path: Path, round: int | None, *, merged: bool) -> Whence:
    if not (path / "config.yaml").is_file():
        if round is not None:
            raise AdapterError(f"--round: expected a run's folder with it, got {path}. Give RUN, or leave --round out.")
        whole = merged and (path / "config.json").is_file() and (path / CARD).is_file()
        return Whence("merged" if whole else "adapter", path)
    if round is not None:
        folder = path / "adapters" / f"round-{round}"
        if not folder.is_dir():
            saved = sorted(one.name for one in (path / "adapters").glob("round-*"))
            raise AdapterError(
                f"run {path}: expected adapters/round-{round}, got {', '.join(saved) or 'no saved round'}. "
                "Set train.save_every to save more of them."
            )
        return Whence("adapter", folder)
    for name in ("pruned/adapter", "adapter"):
        if (path / name).is_dir():
            return Whence("adapter", path / name)
    if (path / "model").is_dir():
        raise AdapterError(
            f"run {path}: expected an adapter, got a run that moved the base's own weights. Its model/ folder is the "
            "whole model already."
        )
    return Whence("checkpoint", path)


def check_there(found: Whence, *, model: str | None) -> str | None:
    """Looks whether the files are there that will be read, those of the base too, as far as names and the disk say.

    Args:
      found: Where the adapter is.
      model: What a person says that the base is; None for what the adapter says.

    Returns:
      What the adapter was trained for; None where that is not known yet.

    Raises:
      UserError: Something is not there.
    """
    folder = found.folder
    if model is not None:
        check_place(model)
    if found.kind == "checkpoint":
        if not any(folder.glob(".checkpoint*")) and not any(folder.glob("checkpoint*")):
            raise no_round_yet(folder)
        return None
    if found.kind == "adapter":
        folder = folder if (folder / PEFTS).is_file() else folder / "adapter"
        for name in (PEFTS, FACTORS):
            if not (folder / name).is_file():
                raise AdapterError(
                    f"adapter {found.folder}: expected a folder with {PEFTS} and {FACTORS}, got no {name}. Give the "
                    "adapter/ folder of a run, or one that PEFT saved."
                )
    if not (folder / CARD).is_file():
        return None
    card = read_card(folder)
    if found.kind == "adapter":
        check_place(base_name(card, model, f"adapter {found.folder}"))
    return card.task


def no_round_yet(run: Path) -> CheckpointError:
    """The error of a run of which no round is over."""
    return CheckpointError(f"run {run}: expected at least one round that is over, got none. Wait for it.")
