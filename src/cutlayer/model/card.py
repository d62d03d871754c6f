"""The card of an adapter, `cutlayer.json` beside it, which says what it was trained for; read without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from cutlayer.errors import AdapterError
from cutlayer.model.families import Family, read_family
from cutlayer.reading import parse_yaml

CARD = "cutlayer.json"
BESIDE = ".."
BY_FINGERPRINT = "fingerprint:"
"""The start of the name of a model that has no other name than its fingerprint, which follows."""


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """Facts on an adapter: what it was trained for, and how.

    Attributes:
      base: the base model's name as the run gave it; `..` for a model in whose folder the adapter's folder is. In a
        file it is a name that means something elsewhere (`fingerprint.public_name`).
      task: classification or causal-lm.
      labels: class names in the order of their ids; empty for causal LM.
      pooling: how a sentence became a vector.
      max_length: tokens at which texts were cut off.
      pad_id: the id that padded.
      columns: which column of the data was what.
      family: where the parts of the model are, where its family is not of the table.
      eval_rows: validation rows by which it was judged, where they were a sample; None for all.
      revision: of a base model on the hub: what the run asked for.
      template: how chats were written: the text of the chat template, or `plain`; None for classes and plain text.
      system: the system turn that chats without one got.
      separator: what stood between prompt and answer, where `template` is `plain`.
      quantised: int8 or nf4, if the frozen weights were rounded to it while the adapter was trained.
    """

    base: str
    task: str
    labels: tuple[str, ...]
    pooling: str
    max_length: int
    pad_id: int
    columns: dict[str, str]
    family: Mapping[str, Any] | None = None
    eval_rows: int | None = None
    revision: str | None = None
    template: str | None = None
    system: str | None = None
    separator: str | None = None
    quantised: str | None = None

    @property
    def own_family(self) -> Family | None:
        """The row of somebody's own."""
        return None if self.family is None else read_family(self.family)


def read_card(folder: Path) -> AdapterCard:
    """The card of the adapter in `folder`.

    Raises:
      AdapterError: The folder holds no adapter of ours.
    """
    path = folder / CARD
    if not path.is_file():
        raise AdapterError(
            f"adapter {folder}: expected a folder with adapter_model.safetensors and cutlayer.json, got no card. "
            "Give the adapter/ folder of a run."
        )
    try:
        values = json.loads(path.read_text())
        card = AdapterCard(**{**values, "labels": tuple(values["labels"])})
    except (ValueError, TypeError, KeyError) as error:
        raise AdapterError(f"{path}: expected the card of an adapter, got {error}. Export the run again.") from error
    if card.base == BESIDE:
        return replace(card, base=str(folder.resolve().parent))
    if card.base.startswith(BY_FINGERPRINT) and (known := _base_of_run(folder.resolve())) is not None:
        return replace(card, base=known)
    return card


def _base_of_run(folder: Path) -> str | None:
    """The base of the run whose adapter this is (RUN/adapter, RUN/adapters/NAME); None where it lies elsewhere."""
    for config in (folder.parent / "config.yaml", folder.parent.parent / "config.yaml"):
        if config.is_file():
            try:
                name = parse_yaml(config.read_text())["model"]["name"]
            except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
                continue  # somebody else's config.yaml
            return str(name)
    return None


def base_name(card: AdapterCard, given: str | None, where: str) -> str:
    """The name of the base of an adapter.

    Args:
      card: The adapter's.
      given: What a person says that the base is; None for what the card says.
      where: By which a message names the adapter.

    Raises:
      AdapterError: It has no name that leads to it, and nobody says where it is.
    """
    if given is None and card.base.startswith(BY_FINGERPRINT):
        raise AdapterError(
            f"{where}: expected the folder of its base model, which has no hub name ({card.base}), got none. "
            "Name it with --model (in Python: base=)."
        )
    return given or card.base
