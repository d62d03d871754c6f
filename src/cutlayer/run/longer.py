"""More rounds for a run that is there: its folder says so from then on, and whoever goes on with it plays them."""

from __future__ import annotations

from pathlib import Path

from cutlayer.config import RunConfig, changed_config, read_config
from cutlayer.errors import ConfigError
from cutlayer.reading import counted
from cutlayer.report.run_folder import RunFolder


def lengthen(folder: RunFolder, rounds: object) -> str:
    """Writes into a run's folder that it has more rounds; nothing where it has as many already.

    Args:
      folder: Of the run.
      rounds: In all, as a person said it.

    Returns:
      What a person should know of it: a line; empty where nothing changes.

    Raises:
      ConfigError: These are fewer, or late work of the run is under way that was dropped at its end.
    """
    stored = read_config(folder.path / "config.yaml")
    asked = changed_config(stored, {"train.rounds": rounds}, "--resume")
    before, after = stored.train.rounds, asked.train.rounds
    if after < before:
        raise ConfigError(
            f"--rounds: expected at least the {before} that {folder.path} has, got {after}. A run can be made longer "
            "and not shorter."
        )
    if after == before:
        return ""
    if stored.train.late == "keep":
        raise ConfigError(
            f"--rounds: expected a run that drops or uses late work, got {folder.path}, whose train.late is keep: what "
            "was under way at its end is gone. Start a new run with model.adapter."
        )
    folder.lengthen(asked.to_yaml())
    return f"{counted(after - before, 'round')} more, {after} in all: {_schedule(asked, before)}"


def keeps_its_rates(config: RunConfig) -> bool:
    """Whether rounds that a run gets later change no learning rate that it has had."""
    return config.train.schedule == "constant" and config.train.warmup == 0


def _schedule(config: RunConfig, before: int) -> str:
    train = config.train
    if keeps_its_rates(config):
        return "the learning rate is the same, and so is the adapter of a run that had as many from the beginning"
    return (
        f"from round {before + 1} on the learning rate is that of a {train.schedule} schedule over all "
        f"{train.rounds}, so it jumps there"
    )


def free_folder(path: Path) -> Path:
    """The first of PATH, PATH-2, PATH-3, ... that holds no run.

    Example:
      >>> free_folder(Path("runs/there-is-none"))
      PosixPath('runs/there-is-none')
    """
    number, free = 1, path
    while (free / "config.yaml").exists():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free
