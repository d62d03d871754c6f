"""Everything a run writes except checkpoints, in one folder.

    started.json    the command that plays the run, and what it was told beside config.yaml
    config.yaml     the complete configuration; its presence says that the folder holds a run
    about.json      what config.yaml only names: the model's blocks, the method in a sentence, versions
    metrics.jsonl   one line per round (`round_row.py`), with all that a planner may learn of it
    events.jsonl    one line per thing a machine did, in virtual seconds
    contributions.jsonl   one line per device and round: how far it moved the adapter (`server/contributions.py`)
    samples.jsonl   one line per prompt of `train.samples` and evaluation: what the model answered
    tensorboard/    the same as scalars (`scalars.py`), step = round counted from 1, with the config
    trackers.json   by which id other trackers (`trackers/`) know the run, where it reports to any
    summary.json    the result, written at the end
    report.svg      the Gantt chart of one round
    report.html     the run on one page (`page/run_page.py`)

Text files appear whole or not at all; the .jsonl files grow, and a checkpoint remembers how far they
were (`positions`), so that a resumed run cuts off (`rewind`) what the killed one wrote after it.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutlayer.errors import CheckpointError, ConfigError
from cutlayer.files import Lock, locked, private_folder, write_atomically
from cutlayer.reading import reading
from cutlayer.report.json_lines import JsonLines, Position, to_json
from cutlayer.report.round_row import MODELLED, REAL
from cutlayer.report.tensorboard import Scalars
from cutlayer.report.trackers.reports import Reports

if TYPE_CHECKING:  # a folder that is taken shows before torch is imported
    from cutlayer.types import Event, StepRecord

TENSORBOARD = "tensorboard"
"""The tracker of `train.report_to` whose files are a part of the folder."""

_log = logging.getLogger("cutlayer.trackers")


OF_A_ROUND = {
    "round": int,
    "late": int,
    "devices": dict,
    "validation": dict,
    f"{MODELLED} or {REAL}": int | float,
}
"""Fields of a line of metrics.jsonl without which nobody can read it, and their types."""
OF_A_CONTRIBUTION = {"round": int, "device": str}


class RunFolder:
    """The folder of one run. `create` makes one, `reopen` continues one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics = JsonLines(path / "metrics.jsonl", fields=OF_A_ROUND)
        self._events = JsonLines(path / "events.jsonl", only_shown=True)
        self._samples = JsonLines(path / "samples.jsonl", only_shown=True)
        self._contributions = JsonLines(path / "contributions.jsonl", only_shown=True, fields=OF_A_CONTRIBUTION)
        self._scalars: Scalars | None = None
        self._reports = Reports((), path, {})
        self._summary: Mapping[str, Any] | None = None
        self._lock: Lock | None = None

    @classmethod
    def create(cls, path: Path) -> RunFolder:
        """Makes the folder for a new run.

        Raises:
          ConfigError: it already holds a run or lines of one, or cannot be made.
        """
        cls.check_free(path)
        with reading("out", "a folder that can be made and written"):
            private_folder(path)
            with tempfile.TemporaryFile(dir=path):  # now, and not when the first round has been trained
                pass
        folder = cls(path)
        for name, position in folder.positions().items():
            if position != Position():
                raise ConfigError(
                    f"out: expected a folder without a run, got {path} which holds {name}. Use another --out."
                )
        return folder

    @staticmethod
    def check_free(path: Path) -> None:
        """Refuses a folder that holds a run already.

        Raises:
          ConfigError: it does, or cannot be looked at.
        """
        with reading("out", "a folder that can be made and written"):
            if (path / "config.yaml").exists():
                raise ConfigError(
                    f"out: expected a folder without a run, got {path} which holds config.yaml. "
                    f"Use another --out, or continue that run with --resume {path}."
                )

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Opens the folder of a run that was started before.

        Raises:
          CheckpointError: it holds no run.
        """
        with reading("resume", "a run folder", CheckpointError):
            if not (path / "config.yaml").is_file():
                raise CheckpointError(
                    f"resume: expected a run folder with config.yaml, got {path}. "
                    "Give the --out folder of a run that was started."
                )
        return cls(path)

    def write_config(self, text: str) -> None:
        """Writes config.yaml; from here on the folder holds a run."""
        write_atomically(self.path / "config.yaml", text)

    def lengthen(self, text: str) -> None:
        """Writes a config with more rounds; the run has not ended any more."""
        self.write_config(text)
        (self.path / "summary.json").unlink(missing_ok=True)

    def write_started(self, started: Mapping[str, Any]) -> None:
        """Writes by what `command` the run is played, and what no run file says: whoever goes on with it is told."""
        write_atomically(self.path / "started.json", to_json(started, indent=1) + "\n")

    def read_started(self) -> dict[str, Any]:
        """See `write_started`; empty where the run was started before there was such a file.

        Raises:
          CheckpointError: it is none.
        """
        file = self.path / "started.json"
        with reading("resume", "a run folder that can be read", CheckpointError):
            if not file.exists():
                return {}
            text = file.read_text(encoding="utf-8", errors="replace")
        try:
            return dict(json.loads(text))
        except (ValueError, TypeError):
            raise CheckpointError(
                f"{file}: expected the command that began the run, got {text[:40]!r}. Delete the file, and go on with "
                "that command and all of its flags."
            ) from None

    def write_about(self, about: Mapping[str, Any]) -> None:
        """Writes about.json: what a page says of the run and no other file does."""
        write_atomically(self.path / "about.json", to_json(about, indent=1) + "\n")

    def read_about(self) -> dict[str, Any]:
        """See `write_about`; empty where there is none that can be read, for nothing but what people are shown depends
        on it."""
        return _object(self.path / "about.json")

    def read_summary(self) -> dict[str, Any]:
        """See `write_summary`; empty where the run has not ended."""
        return _object(self.path / "summary.json")

    @cached_property
    def simulated(self) -> bool:
        """Whether the run's clock is that of a modelled fleet."""
        return bool(self.read_started().get("command", "train") == "train")

    def check_command(self, command: str) -> None:
        """Refuses to go on by another command than the run was started by.

        Raises:
          CheckpointError: it is another.
        """
        mine = self.read_started().get("command", command)
        if mine != command:
            raise CheckpointError(
                f"resume: expected a run that `{command}` began, got {self.path}, which `{mine}` did. Go on with it by "
                "the same command."
            )

    def read_config(self) -> str:
        return (self.path / "config.yaml").read_text(encoding="utf-8")

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Adds one round's line (`round_row`) and waits until it is on the disk."""
        self._metrics.append([row])

    def read_rows(self) -> list[dict[str, Any]]:
        """The rounds written so far.

        Raises:
          CheckpointError: a line is not a round's.
        """
        return list(self.rows())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Reads the rounds one by one; see `read_rows`."""
        return self._metrics.read()

    def num_rows(self) -> int:
        """Number of rounds that have a whole line."""
        return self._metrics.num_rows()

    def read_records(self) -> Iterator[StepRecord]:
        """Reads what each device measured in the rounds written so far, in the order in which they were played.

        Raises:
          CheckpointError: a line is not a round's.
        """
        from cutlayer.report.round_row import records_of

        for row in self._metrics.read():
            yield from records_of(row)

    def read_judged(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Reads what devices said of rows they hold out: over all when they were last asked, and each when it last was.

        Raises:
          CheckpointError: a line is not a round's.
        """
        metrics, devices = dict[str, float](), dict[str, dict[str, float]]()
        for row in self._metrics.read():
            if held_out := row.get("held_out"):
                metrics = held_out["metrics"]
                devices |= held_out["devices"]
        return metrics, devices

    def append_events(self, events: Iterable[Event]) -> None:
        """Adds one line per event and waits for the disk once: call it per round, not per event."""
        self._events.append(map(_event_row, events))

    def append_contributions(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds one line per device that moved the adapter in a round."""
        self._contributions.append(rows)

    def read_contributions(self) -> list[dict[str, Any]]:
        """Reads how far each device moved the adapter, in the rounds written so far.

        Raises:
          CheckpointError: a line is not one of them.
        """
        return list(self.contributions())

    def contributions(self) -> Iterator[dict[str, Any]]:
        """Reads the contributions one by one; see `read_contributions`."""
        return self._contributions.read()

    def append_samples(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds one line per answer: `rounds` of training before it, `prompt` and `text`."""
        self._samples.append(rows)

    def read_samples(self) -> list[dict[str, Any]]:
        """The answers written so far; a damaged line is left out."""
        return list(self._samples.read())

    def read_events(self) -> Iterator[Event]:
        """The events written so far, those before a resume too; a damaged line is left out."""
        for row in self._events.read():
            event = _event(row)
            if event is not None:
                yield event

    def positions(self) -> dict[str, Position]:
        """The positions of the growing files, by name, for the checkpoint."""
        return {file.path.name: file.position() for file in self._growing}

    @property
    def _growing(self) -> tuple[JsonLines, ...]:
        return self._metrics, self._events, self._samples, self._contributions

    def rewind(self, positions: Mapping[str, Position]) -> None:
        """Cuts the growing files back to what a checkpoint remembers; on refusal none is touched.

        Raises:
          CheckpointError: a file is shorter than remembered, or was changed.
        """
        files = self._growing
        if set(positions) != {file.path.name for file in files}:
            raise CheckpointError(
                f"{self.path}: expected the positions of {', '.join(file.path.name for file in files)}, "
                f"got {sorted(positions)}. The checkpoint is of another version; use another --out."
            )
        for file in files:
            file.check(positions[file.path.name])
        for file in files:
            file.cut_off(positions[file.path.name])

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes summary.json: sorted keys, null for a number that is not finite."""
        write_atomically(self.path / "summary.json", to_json(summary, indent=2) + "\n")
        self._summary = summary

    def write_report(self, svg: str) -> None:
        """Writes report.svg (`gantt_svg`)."""
        write_atomically(self.path / "report.svg", svg)

    def write_page(self, html: str) -> None:
        """Writes report.html."""
        write_atomically(self.path / "report.html", html)

    def report_to(self, names: Sequence[str], config: Mapping[str, Any]) -> None:
        """Says which trackers are told of the rounds (`train.report_to`), and of what config."""
        if TENSORBOARD in names:
            self._scalars = Scalars(self.path / "tensorboard", config)
        self._reports = Reports([name for name in names if name != TENSORBOARD], self.path, config)

    def scalars(self, row: Mapping[str, Any]) -> None:
        """Adds one round's numbers to TensorBoard, before the round's checkpoint.

        What an earlier process wrote for this round and later ones is purged.
        """
        if self._scalars is None:
            return
        try:
            self._scalars.add(row)
        except Exception as error:  # a full disk too: the round's checkpoint says so
            self._scalars = None
            _log.warning("%s: %s: %s; the run goes on", TENSORBOARD, type(error).__name__, error)

    def on_round(self, row: Mapping[str, Any]) -> None:
        """Tells the other trackers of a round, whose checkpoint is on the disk; whatever they do, the run goes on."""
        self._reports.on_round(row)

    @property
    def ended(self) -> bool:
        """Whether the run has ended: its summary is the last thing that it writes."""
        return (self.path / "summary.json").exists()

    @property
    def held(self) -> bool:
        """Whether a process is at work in it."""
        try:
            locked(self.path).close()
        except BlockingIOError:
            return True
        return False

    def hold(self) -> None:
        """Keeps other processes out, until the folder is closed or this process ends, however it does.

        Raises:
          ConfigError: another one is at work in it.
        """
        try:
            self._lock = locked(self.path)
        except BlockingIOError:
            raise ConfigError(
                f"out: expected a folder in which no other process is at work, got {self.path}. Wait for that one, or "
                "use another --out."
            ) from None

    def close(self) -> None:
        """Closes TensorBoard's file, ends the trackers and lets others in; everything else is already on the disk."""
        if self._scalars is not None:
            self._scalars.close()
        self._reports.close(self._summary)
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _event_row(event: Event) -> dict[str, Any]:
    row = {
        "who": event.who,
        "what": event.what,
        "start": event.start_seconds,
        "end": event.end_seconds,
        "round": event.round,
        "step": event.step,
        "peer": event.peer,
        "bytes": event.num_bytes,
        "flops": event.flops or None,
    }
    return {key: value for key, value in row.items() if value is not None}


def _event(row: dict[str, Any]) -> Event | None:
    from cutlayer.types import Event

    try:
        return Event(
            who=row["who"],
            what=row["what"],
            start_seconds=row["start"],
            end_seconds=row["end"],
            round=row["round"],
            step=row.get("step"),
            peer=row.get("peer"),
            num_bytes=row["bytes"],
            flops=row.get("flops", 0.0),
        )
    except KeyError:
        return None


def keeping_last_round(events: Iterable[Event], kept: list[Event]) -> Iterator[Event]:
    """The events one by one, for all of them would be gigabytes; those of the last round are kept as they pass.

    Where work outlives its round, the last one of which there are events need not be the run's last.

    Args:
      events: In the order in which they were recorded.
      kept: Gets those of the highest round.
    """
    for event in events:
        if kept and event.round > kept[-1].round:
            kept.clear()
        if not kept or event.round == kept[-1].round:
            kept.append(event)
        yield event
