"""The beginning of a run: an adapter that is there already, or a fresh one; and what of its wishes cannot be."""

from __future__ import annotations

from pathlib import Path

from cutlayer.errors import AdapterError, ConfigError
from cutlayer.methods.method import Method
from cutlayer.model.card import read_card
from cutlayer.model.given import read_given
from cutlayer.report.trackers.reports import check_installed
from cutlayer.run.answers import answers_of
from cutlayer.run.inputs import ServerInputs
from cutlayer.types import Adapter


def starting_adapter(inputs: ServerInputs, method: Method, ranks: tuple[int, ...]) -> Adapter:
    """The full adapter that a run starts from.

    Args:
      inputs: What the run is made of.
      method: Which may begin from nothing but a seed.
      ranks: Of each block, or of each module; empty for the run's.

    Raises:
      AdapterError: `model.adapter` holds none that fits.
      ConfigError: The method cannot go on from one.
    """
    base, folder = inputs.base, inputs.config.model.adapter
    fresh = base.initial_adapter(inputs.config.train.seed, ranks)
    if folder is None:
        return fresh
    if getattr(method.round, "begins_from_seed", False):
        raise ConfigError(
            f"model.adapter: expected none with method {inputs.config.method.name}, whose devices make the first "
            f"adapter from a seed, got {folder}. Merge it (cutlayer export --merged), and name the merged model."
        )
    given = read_given(Path(folder))
    if (given.folder / "cutlayer.json").is_file() and (labels := read_card(given.folder).labels) != inputs.labels:
        raise AdapterError(
            f"adapter {folder}: expected the classes {list(inputs.labels)}, got {list(labels)}. Name its classes, in "
            "their order, with --labels."
        )
    return given.begun(fresh, base)


def check_wishes(inputs: ServerInputs, method: Method, ranks: tuple[int, ...] | None = None) -> None:
    """Looks, before anything is written, at what a run begins with, is to keep, and is to be judged by.

    Args:
      inputs: What the run is made of.
      method: How it decides.
      ranks: Of the full adapter; None where nobody knows them before devices have come.

    Raises:
      UserError: One of these cannot be.
    """
    train = inputs.config.train
    if method.moved is not None and (train.keep == "best" or train.save_every):
        raise ConfigError(
            "train.keep: expected last, and no train.save_every, where the method moves the base's own weights, got "
            f"{train.keep} and {train.save_every}. Leave both out, or choose a method that trains an adapter."
        )
    answers_of(inputs)
    check_installed(train.report_to)
    if ranks is not None:
        starting_adapter(inputs, method, ranks)
    elif inputs.config.model.adapter is not None:
        read_given(Path(inputs.config.model.adapter)).on(inputs.base)
