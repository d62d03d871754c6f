"""The devices that are here now, as a server writes them every few seconds for commands in other processes to read.

    RUN/here.json, FLEET/here.json   {"seconds", "run", "round", "rounds", "devices": [{"device", "state", ...}]}

It is no record of the run: it is replaced again and again, and believed while it is fresh. A server that was killed
leaves its last one behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cutlayer.files import write_atomically
from cutlayer.report.fleet_view import DeviceNow
from cutlayer.report.lines import Beating, Pulse

FILE = "here.json"
EVERY_SECONDS = 5.0
FRESH_SECONDS = 20.0
"""Seconds after which nobody believes the file any more."""


@dataclass(frozen=True, slots=True)
class Here:
    """The last word of a server on its run and its devices.

    Attributes:
      seconds: since 1970, when it said so.
      run: the folder of its run.
      round: rounds done.
      rounds: of the run.
      devices: how each is, as `DeviceNow` says it.
    """

    seconds: float
    run: str
    round: int
    rounds: int
    devices: tuple[dict[str, Any], ...]


def write_here(
    folders: Sequence[Path],
    run: Path,
    devices: Sequence[DeviceNow],
    *,
    rounds_done: int,
    rounds: int,
    clock: Callable[[], float] = time.time,
) -> None:
    """Writes the file in each folder; one that cannot be written is left out, because nothing depends on it."""
    rows = tuple(asdict(device) for device in devices)
    here = Here(clock(), str(run.resolve()), rounds_done, rounds, rows)
    for folder in folders:
        try:
            write_atomically(folder / FILE, json.dumps(asdict(here)), private=True)
        except OSError:
            continue


class Saying:
    """Says who is here, from a thread of its own, from `open` to `close`; a run of a few seconds says nothing.

    Args:
      folders: Where.
      run: The folder of the run.
      devices: How they are; called from that thread.
      rounds: Rounds done, and of the run.
      pulse: Makes what asks for it again and again.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        run: Path,
        devices: Callable[[], Sequence[DeviceNow]],
        rounds: Callable[[], tuple[int, int]],
        pulse: Callable[[Callable[[], None], float], Beating] = Pulse,
    ) -> None:
        self._folders, self._run, self._devices, self._rounds = folders, run, devices, rounds
        self._said, self._pulse = False, pulse(self._say, EVERY_SECONDS)

    def open(self) -> None:
        """Begins."""
        self._pulse.open()

    def close(self) -> None:
        """Ends, with a last word where there was a first."""
        self._pulse.close()
        if self._said:
            self._say()

    def _say(self) -> None:
        self._said = True
        done, rounds = self._rounds()
        write_here(self._folders, self._run, self._devices(), rounds_done=done, rounds=rounds)


def read_here(folder: Path, *, clock: Callable[[], float] = time.time) -> Here | None:
    """Reads what a server says in a folder; None where none has for a while, or where nobody can read it."""
    try:
        content = json.loads((folder / FILE).read_text())
        here = Here(**{**content, "devices": tuple(content["devices"])})
        fresh = abs(clock() - here.seconds) <= FRESH_SECONDS
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return here if fresh else None


def devices_of(here: Here) -> list[DeviceNow]:
    """The devices as the live display has them; a row of another version is left out."""
    devices = []
    for row in here.devices:
        try:
            devices.append(DeviceNow(**row))
        except TypeError:
            continue
    return devices
