"""The commit points of a device on its disk: what it is after a round, so that it can go back to it.

    start/            as it was before its first round
    after-000007/     after round 7
    fold-000003/      the fold of this number, or the part of it that the device has (`model/folds.py`)

Each folder appears whole or not at all and names the run and the device that it belongs to (`sealed.py`). Folds are
kept once, not with every state.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import torch

from cutlayer.errors import CheckpointError
from cutlayer.files import recover_folder, write_atomically
from cutlayer.model.folds import by_number, numbered
from cutlayer.sealed import seal, unseal
from cutlayer.state import State
from cutlayer.types import Adapter

Point = int | None
"""A commit point: after the round of this number, or before the first."""


class Store(Protocol):
    """The commit points of one device in one run."""

    def points(self) -> set[Point]:
        """Those that it has."""

    def save(self, point: Point, state: State) -> None:
        """Keeps a state; when this returns, it outlives the process if anything here does.

        Raises:
          CheckpointError: There is no room for it.
        """

    def load(self, point: Point) -> State:
        """The state at a point.

        Raises:
          CheckpointError: It is not there, torn, or another run's or device's.
        """

    def keep(self, points: Collection[Point]) -> None:
        """Forgets all others."""

    def fold(self, folds: Adapter) -> None:
        """Keeps folds that the device is about to have.

        Raises:
          CheckpointError: It had another fold of that number.
        """

    def folds(self) -> Adapter:
        """All folds that the device has had."""


class MemoryStore:
    """Commit points that end with the process."""

    def __init__(self) -> None:
        self._states: dict[Point, State] = {}
        self._folds: Adapter = {}

    def points(self) -> set[Point]:
        return set(self._states)

    def save(self, point: Point, state: State) -> None:
        self._states[point] = state.copied()

    def load(self, point: Point) -> State:
        if point not in self._states:
            raise _not_there("this process", point, self.points())
        return self._states[point].copied()

    def keep(self, points: Collection[Point]) -> None:
        self._states = {point: state for point, state in self._states.items() if point in points}

    def fold(self, folds: Adapter) -> None:
        for number, stack in by_number(folds):
            _check_same("this process", number, stack, dict(by_number(self._folds)).get(number))
        self._folds |= folds

    def folds(self) -> Adapter:
        return dict(self._folds)


class FolderStore:
    """Commit points on the disk.

    Args:
      path: The folder; made when the first is kept.
      run: The run's identifier.
      device: The device's name.
    """

    def __init__(self, path: Path, run: str, device: str) -> None:
        self._path, self._owner = path, {"run": run, "device": device}
        for folder in path.glob(".*.old"):
            recover_folder(path / folder.name.removeprefix(".").removesuffix(".old"))

    def began_with(self, what: str, digest: str, mend: str) -> None:
        """Remembers something when the device first comes, and holds it to that whenever it comes again.

        Args:
          what: A word for it.
          digest: Of what it is now.
          mend: What to do where it is another.

        Raises:
          CheckpointError: It is another, or there is no room to remember it.
        """
        file = self._path / f"{what}.digest"
        try:
            if not file.exists():
                self._path.mkdir(parents=True, exist_ok=True)
                write_atomically(file, digest)
            then = file.read_text(encoding="utf-8")
        except OSError as error:
            raise self._no_room(error) from error
        if then != digest:
            raise CheckpointError(
                f"{self._path}: expected the {what} with which this device joined the run ({then}), got other {what} "
                f"({digest}). {mend}"
            )

    def points(self) -> set[Point]:
        rounds: set[Point] = set(self._numbers("after"))
        return rounds | ({None} if (self._path / "start").is_dir() else set())

    def save(self, point: Point, state: State) -> None:
        self._write(_name(point), state)

    def load(self, point: Point) -> State:
        if not (self._path / _name(point)).is_dir():
            raise _not_there(str(self._path), point, self.points())
        return self._read(_name(point))

    def keep(self, points: Collection[Point]) -> None:
        for point in self.points() - set(points):
            shutil.rmtree(self._path / _name(point))

    def fold(self, folds: Adapter) -> None:
        for number, stack in by_number(folds):
            known = self._fold(number) if number in self._numbers("fold") else None
            _check_same(str(self._path), number, stack, known)
            if known is None or not known.keys() >= stack.keys():
                self._write(f"fold-{number:06}", State(tensors={**(known or {}), **stack}))

    def folds(self) -> Adapter:
        found: Adapter = {}
        for number in self._numbers("fold"):
            found |= numbered(number, self._fold(number))
        return found

    def _fold(self, number: int) -> Adapter:
        return self._read(f"fold-{number:06}").tensors

    def _numbers(self, kind: str) -> list[int]:
        matches = (re.fullmatch(rf"{kind}-(\d+)", folder.name) for folder in self._path.glob(f"{kind}-*"))
        return sorted(int(match[1]) for match in matches if match)

    def _write(self, name: str, state: State) -> None:
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            seal(self._path / name, self._owner, state)
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self._path}: expected room for the state of this device, got {error.strerror or error}. The one "
            "before is whole: make room, then join again under the same name."
        )

    def _read(self, name: str) -> State:
        return unseal(
            self._path / name,
            self._owner,
            foreign=dict.fromkeys(self._owner, "Give each device a folder of its own, or delete this one."),
            torn="Delete the folder of this device's states and join under another name.",
        )


def _name(point: Point) -> str:
    return "start" if point is None else f"after-{point:06}"


def _not_there(where: str, point: Point, points: Collection[Point]) -> CheckpointError:
    wanted = "before its first round" if point is None else f"after round {point}"
    have = ", ".join(_name(one) for one in sorted(points, key=lambda one: -1 if one is None else one)) or "none"
    return CheckpointError(
        f"{where}: expected the state of this device {wanted}, which the server says counted last, got {have}. "
        "Bring its folder of states back, or join under another name."
    )


def _check_same(where: str, number: int, stack: Adapter, known: Mapping[str, torch.Tensor] | None) -> None:
    if any(not torch.equal(value, stack[name]) for name, value in (known or {}).items() if name in stack):
        raise CheckpointError(
            f"{where}: expected fold {number} as this device has had it, got another. The server has gone back to "
            "before that fold: delete the folder of this device's states and join under another name."
        )
