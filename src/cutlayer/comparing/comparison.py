"""A comparison: which runs it takes, what they share, and the folder that holds them.

    compare.yaml     what the runs share; whoever compares something else here is refused
    runs/LABEL-seedN the run folder of each (`cutlayer train` would have made the same)
    compare.json, compare.md, report.html   the outcome, written at the end, of the methods of which no run failed

A run is named by its folder and told by its config, so runs of an earlier command here are kept where their config is
the one that is asked for: more methods and more seeds can be added to a comparison, one can be taken out. More rounds
can be where the learning rate does not hang on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cutlayer.comparing.entry import Entry
from cutlayer.comparing.metric import Metric
from cutlayer.config import MethodSection, RunConfig, changes, differences, read_config
from cutlayer.errors import ConfigError, UserError
from cutlayer.files import locked, write_atomically
from cutlayer.reading import yaml_text
from cutlayer.report.run_folder import RunFolder
from cutlayer.run.inputs import RunInputs, completed, method_of, prepare
from cutlayer.run.longer import keeps_its_rates, lengthen
from cutlayer.run.loop import Logbook
from cutlayer.run.run import situation_of


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a comparison.

    Attributes:
      entry: whose.
      seed: of its data order, its spread and its first adapter.
      config: the whole config.
    """

    entry: Entry
    seed: int
    config: RunConfig

    @property
    def folder(self) -> Path:
        return Path(self.config.out)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def done(self) -> bool:
        """Whether it has ended: its summary is the last thing that a run writes."""
        return (self.folder / "summary.json").exists()


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison as it is asked for.

    Attributes:
      shared: the config of every run, but for method, seed and folder.
      for_all: method options that every method gets.
      entries: the methods, whose own options come first.
      seeds: each method runs once with each.
      metric: what is compared.
      target: a value of the metric; None compares without one.
      folder: of the comparison.
    """

    shared: RunConfig
    for_all: Mapping[str, Any]
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    metric: Metric
    target: float | None
    folder: Path

    def runs(self) -> list[Run]:
        """Every run; all methods of a seed before the next seed, so that a comparison is soon one.

        Raises:
          ConfigError: There is no such fleet, method or option; or two words mean the same method.
        """
        return [Run(entry, seed, self._config(entry, seed)) for seed in self.seeds for entry in self.entries]

    def _config(self, entry: Entry, seed: int) -> RunConfig:
        try:
            return completed(
                self.shared.model_copy(
                    update={
                        "method": MethodSection(name=entry.method, **{**self.for_all, **entry.options}),
                        "train": self.shared.train.model_copy(update={"seed": seed}),
                        "out": str(self.folder / "runs" / f"{entry.slug}-seed{seed}"),
                    }
                )
            )
        except ConfigError as error:
            raise ConfigError(f"compare {entry.label}: {error}") from error

    def of_what_is_done(self) -> Comparison | None:
        """The comparison of those methods all of whose runs are done: a mean needs every seed. None without any."""
        undone = [run.entry for run in self.runs() if not run.done]
        entries = tuple(entry for entry in self.entries if entry not in undone)
        return replace(self, entries=entries) if entries else None

    def shared_content(self) -> dict[str, Any]:
        """The content of the config that all runs share, as compare.yaml says it."""
        return _shared(self.shared.self_contained())

    def check(self) -> RunInputs:
        """Finds what a person got wrong before anything runs or is written; quick things first.

        Returns: what the first run is made of.

        Raises:
          UserError: Whatever is wrong: an option, the folder, the data, a plan that does not fit.
        """
        runs = self.runs()
        methods = [str(run.config.method) for run in runs[: len(self.entries)]]
        for entry, method in zip(self.entries, methods, strict=True):
            if methods.count(method) > 1:
                raise ConfigError(
                    f"compare {entry.label}: expected different methods, got one that another word means too "
                    f"({method}). Leave one out."
                )
        self._check_folder(runs)
        inputs = prepare(runs[0].config)
        for run in runs[: len(self.entries)]:
            try:
                own = replace(inputs, config=run.config)  # what a step costs is the method's to say
                method_of(run.config).make_plan(0, situation_of(own, Logbook()))
            except UserError as error:
                raise ConfigError(f"compare {run.entry.label}: {error}") from error
        return inputs

    def _check_folder(self, runs: list[Run]) -> None:
        """Raises ConfigError if the folder holds other runs than these."""
        path = self.folder / "compare.yaml"
        if path.exists():
            stored = read_config(path)
            for key, old, new in differences(_shared(stored), self.shared_content()):
                if key == "train.rounds" and self._lengthens(stored, old, new):
                    continue
                raise ConfigError(
                    f"--out: expected a folder of this comparison, got {self.folder} whose {key} is {old}, not {new}. "
                    "Use another --out."
                )
        for run in runs:
            if (run.folder / "config.yaml").exists():
                stored = completed(read_config(run.folder / "config.yaml", values={"out": run.config.out}))
                for key, old, new in changes(stored, run.config):
                    if key == "train.rounds" and self._lengthens(stored, old, new):
                        continue
                    raise ConfigError(
                        f"--out: expected {run.folder} to hold this run, got one whose {key} is {old}, not {new}. "
                        "Use another --out, or remove that folder."
                    )

    def _lengthens(self, stored: RunConfig, old: int, new: int) -> bool:
        """Whether runs that are there can be given more rounds and be what they would have been with them.

        Raises:
          ConfigError: More are asked for, and they cannot.
        """
        if new <= old:
            return False
        if not keeps_its_rates(stored):
            raise ConfigError(
                f"--rounds: expected {old}, as the runs in {self.folder} have, got {new}: their learning rate falls to "
                "the end of the run, so longer runs are others from the beginning. Use another --out, or compare with "
                "--schedule constant --warmup 0, whose runs can be made longer."
            )
        return True

    def write(self) -> None:
        """Writes compare.yaml; from here on the folder holds this comparison, and runs that are there have its rounds.

        Raises:
          ConfigError: It cannot be made.
        """
        try:
            (self.folder / "runs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"--out: expected a folder that can be made, got {self.folder} ({error.strerror}). Use another."
            ) from error
        for run in self.runs():
            if (run.folder / "config.yaml").exists():
                lengthen(RunFolder.reopen(run.folder), run.config.train.rounds)
        text = yaml_text(self.shared_content())
        write_atomically(self.folder / "compare.yaml", text)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps a second comparison out of the folder, as long as this one is at work in it.

    Raises:
      ConfigError: One is at work there.
    """
    try:
        lock = locked(folder)
    except BlockingIOError:
        raise ConfigError(
            f"--out: expected a folder in which no comparison is at work, got {folder}. "
            "Wait for that one, or use another --out."
        ) from None
    with closing(lock):
        yield


def _shared(config: RunConfig) -> dict[str, Any]:
    """The config but for method, seed and folder. A run file that lacks a key, being older than it, has its default."""
    content = config.model_dump(mode="json", exclude={"method", "out"})
    del content["train"]["seed"]
    return content
