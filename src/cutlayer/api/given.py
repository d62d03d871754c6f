"""The config of a run from what Python gives: a run file, a config, sections as keyword arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cutlayer.config import RunConfig, changed_config, changes, read_config
from cutlayer.errors import ConfigError
from cutlayer.reading import local
from cutlayer.report.run_folder import RunFolder
from cutlayer.run.inputs import completed
from cutlayer.run.longer import lengthen

Given = RunConfig | Mapping[str, Any] | str | Path | None
"""A config, its sections by name, a run file, the folder of a run, or None for the defaults."""

FIRST = {"model": "name", "data": "path", "method": "name"}
"""The key that a section means where a word stands in place of it: `method="memsfl"`."""


def config_from(given: Given, sections: Mapping[str, Any], where: str) -> RunConfig:
    """The config of a run.

    Args:
      given: What the run is described by.
      sections: Laid over it: `train={"rounds": 2}`, and `method="memsfl"` for `method={"name": "memsfl"}`.
      where: By which messages name the caller.

    Raises:
      ConfigError: Something in it cannot be.

    Example:
      >>> config = config_from({"train": {"rounds": 2}}, {"method": "fedlora", "data": {"max_length": 64}}, "simulate")
      >>> config.train.rounds, config.method.name, config.data.max_length
      (2, 'fedlora', 64)
    """
    values = dict(_dotted(sections))
    if isinstance(given, RunConfig):
        return changed_config(given, values, where)
    if isinstance(given, Mapping):
        return read_config(None, values={**dict(_dotted(given)), **values}, where=where)
    if given is None:
        return read_config(None, values=values, where=where)
    path = local(given)
    if path.is_dir():  # of a run, wherever it stands by now
        return read_config(path / "config.yaml", values={"out": str(path), **values}, where=where)
    return read_config(path, values=values, where=where)


def _dotted(sections: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every key that is given, with dots between the section and its key."""
    for name, value in sections.items():
        if isinstance(value, Mapping) and name != "fleet":
            yield from ((f"{name}.{key}", _plain(inner)) for key, inner in value.items())
        elif name in FIRST:
            yield f"{name}.{FIRST[name]}", _plain(value)
        else:
            yield name, _plain(value)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def goes_on(config: RunConfig, *, resume: bool) -> bool:
    """Whether a run is in its folder and is to go on; with more rounds, where the config has more.

    Args:
      config: Of the run.
      resume: Whether a run that is there may go on.

    Raises:
      ConfigError: The run that is there is another: its config differs, or its method has changed since.
    """
    stored = Path(config.out) / "config.yaml"
    if not resume or not stored.exists():
        return False
    there = completed(read_config(stored, values={"out": config.out}))
    for key, old, new in changes(there, completed(config)):
        if key == "train.rounds" and new > old:
            continue
        raise ConfigError(
            f"resume: expected the config of the run in {config.out}, got one whose {key} is {new!r}, not {old!r}. "
            "Say the same, or use another folder (out)."
        )
    lengthen(RunFolder.reopen(Path(config.out)), config.train.rounds)
    return True
